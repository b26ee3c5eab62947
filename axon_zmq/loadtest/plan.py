"""Plan of a load test: which requests are sent, how fast and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints

if TYPE_CHECKING:
    from axon_zmq.client.options import RunOptions

SLOW_CREDIT: Final = 8
"""Credit of a slow reader, in messages."""
_SYNTHETIC: Final = {"model": "synthetic:tokens=20,delay_ms=20"}
_COUNTED: Final = "".join(f"{number:04d} " for number in range(20))
"""The answer of the model in `_SYNTHETIC`."""
_ADD: Final[Mapping[str, Any]] = {
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
    "returns": {"type": "number"},
}


class Scenario(StrEnum):
    """Which requests are sent."""

    UNARY = "unary"
    STREAMS = "streams"
    MIXED = "mixed"
    TOOLS = "tools"
    SLOW_READERS = "slow-readers"
    RECONNECTS = "reconnects"


def _no_options() -> RunOptions:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request. Figures are kept separately for each kind."""

    name: str
    mode: str
    agent: str | Mapping[str, Any]
    prompt: str
    answer: str | None
    """The expected answer; None if only the agent knows it."""
    options: RunOptions = field(default_factory=_no_options)
    """Options of each run."""
    reads_slowly: bool = False
    """Whether the reader pauses after each chunk."""

    @property
    def stalls(self) -> bool:
        """Whether a slow reader leaves its socket unread: without credit, only an unread socket holds the daemon
        back."""
        return self.reads_slowly and "credit" not in self.options


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of one load test."""

    endpoint: str
    scenario: Scenario
    rate: float | None
    """Requests per second, sent on a schedule; None to keep `streams` requests open instead."""
    streams: int
    """Number of open requests if `rate` is None."""
    duration: float
    """Measured seconds."""
    warmup: float
    """Seconds of load before the measurement."""
    most: int
    """Maximum number of requests."""
    clients: int
    """Number of connections. Stalled readers get the same number of further connections."""
    timeout: float
    """Seconds after which a request is ended."""
    read_ms: float
    """Milliseconds for which a slow reader pauses after each chunk."""
    drop_every: float
    """Seconds between two drops of one connection, in `reconnects`."""
    agent: str | Mapping[str, Any] | None = None
    """Agent to run instead of the offline agents."""
    prompt: str | None = None
    """Prompt to send instead of the built-in ones."""
    sync: bool = False
    """Whether mode `run_sync` is used instead of `run`."""

    @property
    def drops(self) -> bool:
        """Whether clients drop their connections."""
        return self.scenario is Scenario.RECONNECTS

    @property
    def pace(self) -> str:
        """The load in words, for titles."""
        return f"{self.streams} at a time" if self.rate is None else f"{self.rate:g} requests/s"

    def kinds(self) -> tuple[Kind, ...]:
        """Return the kinds of request, which are sent in turn."""
        mode = "run_sync" if self.sync else "run"
        unary = self._kind("unary", mode, "echo", "Hello from the load test", "Hello from the load test")
        stream = self._kind("stream", "run_stream", _SYNTHETIC, "Count", _COUNTED)
        script = json.dumps([{"name": "add", "args": {"a": 2, "b": 3}}])
        tools = replace(self._kind("tools", mode, {"model": "tools"}, script, "[5]"), options={"tools": [_ADD]})
        slow = replace(stream, name="slow", reads_slowly=True)
        credited = replace(slow, name="slow, credit", options={"credit": SLOW_CREDIT})
        return {
            Scenario.UNARY: (unary,),
            Scenario.STREAMS: (stream,),
            Scenario.MIXED: (unary, stream, tools),
            Scenario.TOOLS: (tools,),
            Scenario.SLOW_READERS: (stream, slow, credited),
            Scenario.RECONNECTS: (stream,),
        }[self.scenario]

    def _kind(self, name: str, mode: str, agent: str | Mapping[str, Any], prompt: str, answer: str) -> Kind:
        own = self.agent is not None or self.prompt is not None
        return Kind(
            name=name,
            mode=mode,
            agent=self.agent or agent,
            prompt=self.prompt or prompt,
            answer=None if own else answer,
        )


def check_target(endpoint: str, remote: bool) -> str:
    """Check the endpoint of the daemon under test, and return it.

    Args:
        endpoint: `tcp://HOST:PORT` or `ipc://PATH`.
        remote: Whether the endpoint may be on another machine.

    Raises:
        ConfigurationError: The endpoint is invalid, or on another machine without `remote`.
    """
    is_tcp = endpoints.check(endpoint).startswith("tcp://")
    if is_tcp and not remote and not endpoints.is_loopback(endpoints.tcp_address(endpoint)[0]):
        raise ConfigurationError(f"{endpoint!r} is on another machine: add --remote if you may put load on it")
    return endpoint
