"""Run directory, locks, log format, backoff and parent supervision, which all processes of the daemon share.

Internal: may change in any release.
"""
