"""Attacks on a daemon that this package starts itself, on 127.0.0.1 only; see docs/security.md.

Internal: may change in any release.
"""
