"""Load tester: sends requests to a running daemon, and measures what its clients receive.

The command is `axon-zmq loadtest`; `docs/loadtest.md` explains each figure.

Internal: may change in any release.
"""

from __future__ import annotations

from importlib.util import find_spec

from axon_zmq.errors import ConfigurationError


def require_extra() -> None:
    """Check that the libraries of the extra `axon-zmq[loadtest]` are installed.

    Raises:
        ConfigurationError: A library is missing; the message names the extra.
    """
    missing = [library for library, module in (("hdrhistogram", "hdrh"), ("plotly", "plotly")) if not find_spec(module)]
    if missing:
        raise ConfigurationError(f"{' and '.join(missing)} not installed: run pip install 'axon-zmq[loadtest]'")
