"""Delivery of a run's messages to its client: replay, credit, handover."""
