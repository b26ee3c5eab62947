"""Example agents, which the daemon serves until `AXON_AGENTS` registers others.

Internal: may change in any release.
"""
