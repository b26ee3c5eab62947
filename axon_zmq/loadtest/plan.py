"""What a load test sends, how fast and for how long."""

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
"""Messages that may be on their way to a slow reader that gives credit."""
_SYNTHETIC: Final = {"model": "synthetic:tokens=20,delay_ms=20"}
_COUNTED: Final = "".join(f"{number:04d} " for number in range(20))
"""What that model answers."""
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
    """What is sent."""

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
    """Requests of one sort; each sort has figures of its own."""

    name: str
    mode: str
    agent: str | Mapping[str, Any]
    prompt: str
    answer: str | None
    """The expected answer; None if only the agent knows it."""
    options: RunOptions = field(default_factory=_no_options)
    """Of each run."""
    reads_slowly: bool = False

    @property
    def stalls(self) -> bool:
        """Whether its reader leaves the socket unread meanwhile, since no credit holds the daemon back."""
        return self.reads_slowly and "credit" not in self.options


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A load test."""

    endpoint: str
    scenario: Scenario
    rate: float | None
    """Requests a second by schedule; None: `streams` at a time, each followed by the next."""
    streams: int
    duration: float
    """Seconds that are measured."""
    warmup: float
    """Seconds before that."""
    most: int
    """Requests."""
    clients: int
    """Connections that requests are spread over; those that leave their sockets unread are as many more."""
    timeout: float
    """Seconds of each request."""
    read_ms: float
    """What a slow reader takes for a chunk."""
    drop_every: float
    """Seconds between two drops of one connection, in `reconnects`."""
    agent: str | Mapping[str, Any] | None = None
    """In place of the offline examples."""
    prompt: str | None = None
    sync: bool = False
    """`run_sync` in place of `run`."""

    @property
    def drops(self) -> bool:
        """Whether clients drop their connections."""
        return self.scenario is Scenario.RECONNECTS

    @property
    def pace(self) -> str:
        """For a title."""
        return f"{self.streams} at a time" if self.rate is None else f"{self.rate:g} requests/s"

    def kinds(self) -> tuple[Kind, ...]:
        """What is sent, in turns."""
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
    """Check the endpoint that load is put upon.

    Args:
        endpoint: `tcp://host:port` or `ipc://path`.
        remote: Whether it may be another machine's.

    Raises:
        ConfigurationError: It is none, or another machine's.
    """
    is_tcp = endpoints.check(endpoint).startswith("tcp://")
    if is_tcp and not remote and not endpoints.is_loopback(endpoints.tcp_address(endpoint)[0]):
        raise ConfigurationError(f"{endpoint!r} is another machine: --remote says that it is yours to put load upon")
    return endpoint
