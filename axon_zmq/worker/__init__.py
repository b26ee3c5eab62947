"""The workers: the only place that imports pydantic_ai and runs agents.

Internal: may change in any release.
"""
