"""`python -m axon_zmq.cli`: the command `axon-zmq`."""

from __future__ import annotations

from axon_zmq.cli.app import main

if __name__ == "__main__":
    main()
