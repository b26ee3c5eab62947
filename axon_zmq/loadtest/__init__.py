"""Load on a running daemon, over the wire, and what its clients saw of it.

`axon-zmq loadtest` does it; `docs/loadtest.md` says what each figure means.

Internal: may change in any release.
"""

from __future__ import annotations

from importlib.util import find_spec

from axon_zmq.errors import ConfigurationError


def require_extra() -> None:
    """See that the libraries of `axon-zmq[loadtest]` are there.

    Raises:
        ConfigurationError: One is not; the message names the extra.
    """
    missing = [library for library, module in (("hdrhistogram", "hdrh"), ("plotly", "plotly")) if not find_spec(module)]
    if missing:
        raise ConfigurationError(f"{' and '.join(missing)} not installed: pip install 'axon-zmq[loadtest]'")
