"""The wire, without I/O: frames, msgpack, kinds, requests, limits.

Internal: may change in any release.
"""
