"""The wire, without I/O: frames, msgpack, kinds, requests, limits."""
