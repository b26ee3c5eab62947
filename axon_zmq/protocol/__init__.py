"""The wire formats of the client protocol and of the protocol between broker and workers, without I/O.

Internal: may change in any release.
"""
