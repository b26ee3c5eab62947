"""Integration with supervisord: its configuration, its XML-RPC interface and its events.

Internal: may change in any release.
"""
