"""The broker process: a sans-I/O core that makes the decisions, and a thin shell of sockets around it.

Internal: may change in any release.
"""
