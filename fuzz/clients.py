"""Harness of the client core: any messages from the daemon, between requests of the application."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from axon_zmq.client.core import ClientCore, Run
from axon_zmq.client.messages import Catalog, Pong
from axon_zmq.errors import AxonError, RequestError
from axon_zmq.events import Complete, ToolCall
from axon_zmq.protocol import kinds
from fuzz import corpus
from fuzz.harness import Harness, Outcome, check, check_text
from fuzz.steps import Step

_TERMINAL: Final = (Complete, AxonError, Catalog, Pong)
_SENT: Final = frozenset(
    (*kinds.POOLS, kinds.DESCRIBE, kinds.PING, kinds.CANCEL, kinds.RESUME, kinds.CREDIT, kinds.TOOL_RESULT, kinds.STEER)
)
MAX_SENT: Final = 64
"""Messages that the core may send in answer to one message, for the four requests of an input."""


class _Application:
    """Starts requests, reads their inboxes and answers their tool calls, as the shell of the client does."""

    def __init__(self, outcome: Outcome) -> None:
        self.now = 1000.0
        self.core = ClientCore()
        self.runs: dict[bytes, Run] = {}
        self.all_runs: list[Run] = []
        """Also the replaced ones, so that no `id` of an object is used again."""
        self.called: Counter[tuple[int, str]] = Counter()
        self.ended: Counter[int] = Counter()
        self._outcome = outcome
        self.core.connected(self.now)

    def begin(self, op: int) -> None:
        """Start a request."""
        name = corpus.IDS[op % 3]
        if name in self.core.open:
            return
        if op % 7 == 0:
            described = self.core.describe(None, self.now)
            self.runs[described.id] = described
            self.all_runs.append(described)
            return
        options: Any = {"id": name, "credit": 4 if op % 2 else None, "timeout_ms": 30_000}
        self.runs[name] = self.core.run(("run", "run_stream")[op % 2], "echo", "hi", options, self.now)
        self.all_runs.append(self.runs[name])

    def act(self, op: int) -> None:
        """Do something else than receiving a message."""
        names = list(self.runs)
        name = names[op % len(names)]
        match op % 8:
            case 0:
                self.core.cancel(name)
            case 1:
                self.core.steer(name, "more", "asap")
            case 2:
                self.core.connected(self.now)
            case 3:
                self.now += 6.0
            case 4:
                self.now += 50.0
            case 5:
                self.core.abandon(self.runs[name])
            case _:
                self.begin(op // 8)
        self.core.tick(self.now)

    def receive(self, frames: list[bytes]) -> None:
        """Receive one message of the daemon."""
        known = set(self.core.open)
        # The probe has a random id, which is the only one that the core does not share with the application.
        if len(frames) == 3 and frames[0] == kinds.PONG:
            frames = [frames[0], next((each for each in known if each.startswith(b"probe-")), frames[1]), frames[2]]
        changed = self.core.receive(frames, self.now)
        if changed is not None:
            self._outcome.passed += 1
            check(changed.id in known, "a message was given to a request that was not open")
            self._outcome.signs.update((frames[-3], type(item).__name__) for item in list(changed.inbox)[-1:])
        elif len(frames) >= 3 and (frames[-2] in known or frames[-3] == kinds.ALIVE):
            self._outcome.passed += 1

    def read(self) -> None:
        """Read all inboxes, answer tool calls, and check what the core would send."""
        for run in self.all_runs:
            while run.inbox:
                item = run.inbox.popleft()
                check(not self.ended[id(run)], "a request has an item after its end")
                self.ended[id(run)] += isinstance(item, _TERMINAL)
                if isinstance(item, AxonError):
                    check_text(item.message[:1])
                else:
                    self.core.acknowledge(run, item)  # pyright: ignore[reportArgumentType]
            check(not run.ended or self.ended[id(run)] == 1 or not run.inbox, "a request ended without a last item")
        while self.core.tool_events:
            run, event = self.core.tool_events.popleft()
            if isinstance(event, ToolCall):
                self.called[id(run), event.call_id] += 1
                check(self.called[id(run), event.call_id] == 1, f"tool call {event.call_id!r:.80} was given twice")
                self._answer(run.id, event.call_id)
        check(len(self.core.outgoing) <= MAX_SENT, f"{len(self.core.outgoing)} messages are sent at once")
        for kind, name, *_ in self.core.outgoing:
            check(kind in _SENT, f"a message of kind {kind!r:.40} is sent")
            check(name in self.runs or name.startswith(b"probe-"), f"sent for unknown id {name!r:.80}")
        self.core.outgoing.clear()
        check(len(self.core.open) <= len(self.runs) + 1, "requests stay open that the application did not start")

    def _answer(self, name: bytes, call_id: str) -> None:
        try:
            self.core.answer(name, call_id, {"result": 1})
        except RequestError as error:  # a `pong` may have lowered max_body
            check(error.error_type == "too_large", f"unexpected {error}")


def examine(steps: Sequence[Step]) -> Outcome:
    """Give each message to a core with open requests."""
    outcome = Outcome()
    application = _Application(outcome)
    application.begin(1)
    application.begin(2)
    for op, frames in steps:
        if op < 200:
            outcome.messages += 1
            application.receive(frames)
        else:
            try:
                application.act(op)
            except RequestError as error:
                check(error.error_type in ("invalid_request", "too_large"), f"unexpected {error}")
        application.read()
    application.now += 100_000.0
    application.core.tick(application.now)
    application.read()
    check(all(run.ended for run in application.all_runs), "a request is open after its deadline")
    return outcome


def more(rng: Random) -> Step:
    """Make a message of the daemon about one of the requests, or an action of the application."""
    if rng.random() < 0.15:
        return Step(rng.randrange(200, 256), [])
    kind, id, body = rng.choice(corpus.to_client())
    return Step(rng.randrange(200), [kind, rng.choice(corpus.IDS[:3]) if id else id, body])


CLIENTS: Final = Harness(
    name="client",
    about="client/core with client/messages and client/tool_calls",
    legal="none for a received message; RequestError for an action of the application",
    invariants=(
        "a request gets at most one last item, nothing after it, and exactly one after its deadline",
        "no tool call is given to the application twice",
        "only messages of known kinds are sent, only about the client's own requests, and a limited number at once",
    ),
    examine=examine,
    begin=lambda rng: [more(rng) for _ in range(rng.choice((2, 4, 8)))],
    more=more,
    share=8,
    ci_inputs=600,
)
