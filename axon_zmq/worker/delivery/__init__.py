"""From a run to its client: replay, credit, handover."""
