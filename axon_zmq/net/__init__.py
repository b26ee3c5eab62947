"""ZeroMQ sockets and endpoints.

Internal: may change in any release.
"""
