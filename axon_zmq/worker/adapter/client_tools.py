"""Tools that live in the client: their calls on the wire, and the toolset that pydantic-ai sees.

`RemoteCalls` keeps a run's open calls, on the loop of the link. `RemoteToolset` awaits their answers on
the loop of the run, which in mode `run_sync` is another thread's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from pydantic_ai import ModelRetry, RunContext, ToolReturn
from pydantic_ai.exceptions import CallDeferred, ToolFailed
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.jsonschema import Budget, CompiledSchema, load_schema
from axon_zmq.process.event_loop import call_on
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.requests import ClientTool, ToolFault, ToolResult, invalid, tool_result
from axon_zmq.worker.adapter import messages
from axon_zmq.worker.adapter.output import arguments_validator

TOOLSET_ID: Final = "client"
"""The toolset's name in pydantic-ai's messages."""


class ClientRetry(ModelRetry):
    """The model is asked to try a tool of the client's again; where it may not, `error_type` ends the run."""

    def __init__(self, tool: str, message: str, error_type: str) -> None:
        super().__init__(message)
        self.tool = tool
        self.error_type = error_type


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTool:
    """A client's tool, its schemas read."""

    data: ClientTool
    parameters: CompiledSchema
    returns: CompiledSchema | None
    arguments: SchemaValidator

    @property
    def kind(self) -> Any:
        """pydantic-ai's word for what becomes of a call."""
        return "unapproved" if self.data.approval else "external" if self.data.mode == "deferred" else "function"


def remote_tools(tools: Sequence[ClientTool]) -> list[RemoteTool]:
    """Read the schemas of a request's tools, all within one budget.

    Raises:
        RequestError: `invalid_request` or `too_large`, naming the schema.
    """
    budget = Budget()
    return [_remote_tool(tool, f"/tools/{index}", budget) for index, tool in enumerate(tools)]


def _remote_tool(tool: ClientTool, pointer: str, budget: Budget) -> RemoteTool:
    parameters = load_schema(tool.parameters, f"{pointer}/parameters", budget)
    if parameters.schema.get("type") != "object":
        raise invalid([(f"{pointer}/parameters/type", 'must be "object": a tool has named arguments')])
    returns = None if tool.returns is None else load_schema(tool.returns, f"{pointer}/returns", budget)
    return RemoteTool(data=tool, parameters=parameters, returns=returns, arguments=arguments_validator(parameters))


@dataclass(slots=True, eq=False, kw_only=True)
class RemoteCall:
    """One call of a client's tool, until it is answered. `answer` belongs to the run's own loop."""

    tool: RemoteTool
    wanted_id: str
    """pydantic-ai's id of the call, which is the wire's too unless it came before in this run."""
    args: Mapping[str, object]
    answer: asyncio.Future[ToolResult | None]
    """None: there was none in time."""
    call_id: str = ""
    seq: int = 0
    left: float | None = None
    """Seconds that the client may take, while they do not run."""
    timer: asyncio.TimerHandle | None = None
    due: float = 0.0
    """When the timer fires, in seconds of the loop's clock. uvloop's handle of a timer that is due has no `when`."""
    is_read: bool = False
    """An answer has come, and is being checked in a thread."""

    def settle(self, answer: ToolResult | None) -> None:
        """Give the run its answer, from any thread."""
        call_on(self.answer.get_loop(), self._set, answer)

    def _set(self, answer: ToolResult | None) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class RemoteCalls:
    """A run's calls of its client's tools. On the link's loop only.

    Args:
        send: Sends a message of the run's; returns its `seq`.
    """

    def __init__(self, send: Callable[[bytes, dict[str, object]], int]) -> None:
        self._send = send
        self._open: dict[str, RemoteCall] = {}
        self._closed: dict[str, str] = {}
        """How each earlier call came to its end."""
        self._paused = False
        self._ended = False

    def __repr__(self) -> str:
        return f"<RemoteCalls {len(self._open)} open, {len(self._closed)} closed>"

    def open(self, call: RemoteCall) -> None:
        """Send a call to the client."""
        if self._ended:
            call.settle(_RUN_HAS_ENDED)
            return
        call.call_id = self._unique(call.wanted_id)
        name = call.tool.data.name
        try:
            call.seq = self._send(kinds.TOOL_CALL, {"call_id": call.call_id, "name": name, "args": call.args})
        except AxonError as error:  # what the model wrote cannot be packed
            self._closed[call.call_id] = "was never made"
            call.settle(ToolResult(error=ToolFault(message=error.message, retry=True)))
            return
        self._open[call.call_id] = call
        if (timeout_ms := call.tool.data.timeout_ms) is not None:
            call.left = timeout_ms / 1000
            if not self._paused:
                self._start_timer(call, call.left)

    def expected(self, call_id: str) -> RemoteCall:
        """An open call.

        Raises:
            RequestError: `unknown_request`, where no such call is open.
        """
        call = self._open.get(call_id)
        if call is None or call.is_read:
            how = "was answered already" if call is not None else self._closed.get(call_id, "was never made")
            raise RequestError("unknown_request", f"call {call_id!r} {how}")
        return call

    def reading(self, call_id: str) -> RemoteCall:
        """An open call whose answer has come and takes a while to be read: its time stands still.

        Raises:
            RequestError: As `expected`.
        """
        call = self.expected(call_id)
        call.is_read = True
        self._stop_timer(call)
        return call

    def reopen(self, call: RemoteCall) -> None:
        """What was read is no answer: the call waits for another."""
        call.is_read = False
        if call.left is not None and not self._paused and self._open.get(call.call_id) is call:
            self._start_timer(call, call.left)

    def take(self, call: RemoteCall, answer: ToolResult) -> None:
        """Give a call its answer; nothing happens where it is no longer open."""
        if self._open.get(call.call_id) is call:
            self._close(call, "was answered already")
            call.settle(answer)

    def drop(self, call: RemoteCall) -> None:
        """Nobody waits for the answer any more."""
        if self._open.get(call.call_id) is call:
            self._cancel(call, "is no longer wanted")

    def drop_all(self) -> None:
        """The run is about to end; code of it that goes on regardless shall not wait."""
        self._ended = True
        for call in list(self._open.values()):
            self.drop(call)
            call.settle(_RUN_HAS_ENDED)

    def pause(self) -> None:
        """The client is gone: the time of its tools stands still."""
        self._paused = True
        for call in self._open.values():
            self._stop_timer(call)

    def go_on(self) -> None:
        """The client is there again."""
        self._paused = False
        for call in self._open.values():
            if call.left is not None and call.timer is None and not call.is_read:
                self._start_timer(call, call.left)

    def listed(self) -> list[dict[str, Any]]:
        """The unanswered calls, whole, as `resumed` tells them."""
        return [
            {"seq": call.seq, "call_id": call_id, "name": call.tool.data.name, "args": call.args}
            for call_id, call in self._open.items()
        ]

    def _unique(self, wanted: str) -> str:
        """Some providers number the calls of each response anew."""
        if 0 < len(wanted) <= limits.MAX_CALL_ID and wanted not in self._open and wanted not in self._closed:
            return wanted
        numbered = (f"{wanted[: limits.MAX_CALL_ID - 16]}~{number}" for number in count(2))
        return next(name for name in numbered if name not in self._open and name not in self._closed)

    def _start_timer(self, call: RemoteCall, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        call.due = loop.time() + seconds
        call.timer = loop.call_later(seconds, self._too_late, call)

    def _stop_timer(self, call: RemoteCall) -> None:
        if call.timer is not None:
            call.left = max(0.0, call.due - asyncio.get_running_loop().time())
            call.timer.cancel()
            call.timer = None

    def _too_late(self, call: RemoteCall) -> None:
        self._cancel(call, f"was not answered within {call.tool.data.timeout_ms} ms")
        call.settle(None)

    def _cancel(self, call: RemoteCall, how: str) -> None:
        self._close(call, how)
        self._send(kinds.TOOL_CANCELLED, {"call_id": call.call_id})

    def _close(self, call: RemoteCall, how: str) -> None:
        del self._open[call.call_id]
        self._closed[call.call_id] = how
        if call.timer is not None:
            call.timer.cancel()


_RUN_HAS_ENDED: Final = ToolResult(error=ToolFault(message="the run has ended"))


@dataclass(eq=False)
class RemoteToolset(AbstractToolset[object]):
    """The tools of one request that live in its client.

    Args:
        tools: Their schemas read.
        calls: Where their calls go.
        post: Calls a function on the link's loop, from any thread, in order.
    """

    tools: Sequence[RemoteTool]
    calls: RemoteCalls
    post: Callable[..., None]
    _by_name: dict[str, RemoteTool] = field(init=False)

    def __post_init__(self) -> None:
        self._by_name = {tool.data.name: tool for tool in self.tools}

    @property
    def id(self) -> str:
        """For pydantic-ai's own messages."""
        return TOOLSET_ID

    @property
    def tool_name_conflict_hint(self) -> str:
        """What mends it when the agent has a tool of the same name."""
        return "Rename the client's tool."

    async def get_tools(self, ctx: RunContext[object]) -> dict[str, ToolsetTool[object]]:
        """What the model is shown, and what judges the arguments that it gives."""
        return {name: self._shown(tool, ctx.max_retries) for name, tool in self._by_name.items()}

    def _shown(self, tool: RemoteTool, max_retries: int) -> ToolsetTool[object]:
        definition = ToolDefinition(
            name=tool.data.name,
            description=tool.data.description,
            parameters_json_schema=tool.parameters.schema,
            return_schema=None if tool.returns is None else tool.returns.schema,
            sequential=tool.data.sequential,
            kind=tool.kind,
        )
        return ToolsetTool(
            toolset=self,
            tool_def=definition,
            max_retries=max_retries,
            args_validator=tool.arguments,
        )

    async def call_tool(
        self,
        name: str,
        tool_args: dict[str, object],
        ctx: RunContext[object],
        tool: ToolsetTool[object],  # noqa: ARG002
    ) -> Any:
        """Ask the client, and wait for its answer.

        Raises:
            ModelRetry: The model shall try again: no answer in time, or the client says so.
            ToolFailed: The tool failed, as the client says.
            CallDeferred: An approved call of a deferred tool.
        """
        called = self._by_name[name]
        if called.data.mode == "deferred":
            raise CallDeferred
        answer: asyncio.Future[ToolResult | None] = asyncio.get_running_loop().create_future()
        call = RemoteCall(tool=called, wanted_id=ctx.tool_call_id or "", args=tool_args, answer=answer)
        self.post(self.calls.open, call)
        try:
            return _returned(name, called.data.timeout_ms, await answer)
        finally:
            if not answer.done() or answer.cancelled():
                self.post(self.calls.drop, call)


def read_answer(tool: RemoteTool, body: bytes) -> ToolResult:
    """The answer in a `tool_result`; in a thread where it is large, for a schema takes its time with it.

    Raises:
        RequestError: `invalid_request` or `invalid_msgpack`, where it is none, or not what the tool `returns`.
    """
    answer = tool_result(unpack(body, "the body"))
    if answer.error is None and tool.returns is not None and (faults := tool.returns.faults(answer.result)):
        raise invalid([(f"/result{pointer}", reason) for pointer, reason in faults])
    messages.prompt(answer.content, "/content")  # raises here, while the call can be answered again
    return answer


def _returned(name: str, timeout_ms: int | None, answer: ToolResult | None) -> Any:
    if answer is None:
        raise ClientRetry(name, f"Tool {name!r} did not answer within {timeout_ms} ms.", "tool_timeout")
    if answer.error is not None:
        if answer.error.retry:
            raise ClientRetry(name, answer.error.message, "tool_failed")
        raise ToolFailed(answer.error.message)
    if answer.content is None and answer.metadata is None:
        return answer.result
    return ToolReturn(answer.result, content=messages.prompt(answer.content), metadata=answer.metadata)
