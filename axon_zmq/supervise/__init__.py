"""The glue to supervisord.

Internal: may change in any release.
"""
