"""Sockets and endpoints.

Internal: may change in any release.
"""
