"""The command line: everything that a person sees.

Internal: may change in any release.
"""
