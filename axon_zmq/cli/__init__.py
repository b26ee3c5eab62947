"""The command line `axon-zmq`, and everything that is printed for people.

Internal: may change in any release.
"""
