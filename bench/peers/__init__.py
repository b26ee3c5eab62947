"""The same service as others would write it: the same agents over other protocols, each in processes of its own."""
