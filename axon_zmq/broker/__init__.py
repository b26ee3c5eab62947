"""The broker: a pure core that decides, and a thin loop of sockets around it.

Internal: may change in any release.
"""
