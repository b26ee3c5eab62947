"""The worker process, which executes runs with pydantic-ai.

Internal: may change in any release.
"""
