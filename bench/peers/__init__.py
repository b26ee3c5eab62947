"""Peers: the same service and the same agents over other protocols, each in separate processes."""
