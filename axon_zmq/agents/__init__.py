"""The example agents that ship; `AXON_AGENTS` replaces them with yours.

Internal: may change in any release.
"""
