"""Tools that the client executes: their calls on the wire, and the toolset that pydantic-ai uses.

`RemoteCalls` holds the open tool calls of a run, on the event loop of the link. `RemoteToolset` waits for their answers
on the event loop of the agent, which in mode `run_sync` belongs to another thread.
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
from axon_zmq.worker.adapter.tool_wait import ToolWait

TOOLSET_ID: Final = "client"
"""Name of the toolset in messages of pydantic-ai."""


class ClientRetry(ModelRetry):
    """Asks the model to call a tool of the client again; if no retries are left, the run ends with `error_type`."""

    def __init__(self, tool: str, message: str, error_type: str) -> None:
        super().__init__(message)
        self.tool = tool
        self.error_type = error_type


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTool:
    """A tool of the client, with compiled schemas."""

    data: ClientTool
    parameters: CompiledSchema
    returns: CompiledSchema | None
    arguments: SchemaValidator

    @property
    def kind(self) -> Any:
        """pydantic-ai's kind of tool, which decides what happens to a call."""
        return "unapproved" if self.data.approval else "external" if self.data.mode == "deferred" else "function"


def remote_tools(tools: Sequence[ClientTool]) -> list[RemoteTool]:
    """Compile the schemas of a request's tools.

    Raises:
        RequestError: `invalid_request` or `too_large`, with a JSON pointer to the schema.
    """
    budget = Budget()  # one for all tools: many schemas cost as much as one large schema
    return [_remote_tool(tool, f"/tools/{index}", budget) for index, tool in enumerate(tools)]


def _remote_tool(tool: ClientTool, pointer: str, budget: Budget) -> RemoteTool:
    parameters = load_schema(tool.parameters, f"{pointer}/parameters", budget)
    if parameters.schema.get("type") != "object":
        raise invalid([(f"{pointer}/parameters/type", 'must be "object": a tool has named arguments')])
    returns = None if tool.returns is None else load_schema(tool.returns, f"{pointer}/returns", budget)
    return RemoteTool(data=tool, parameters=parameters, returns=returns, arguments=arguments_validator(parameters))


@dataclass(slots=True, eq=False, kw_only=True)
class RemoteCall:
    """One tool call, until it is answered."""

    tool: RemoteTool
    wanted_id: str
    """pydantic-ai's id of the call. It is also the id on the wire, unless the run has used it before."""
    args: Mapping[str, object]
    answer: asyncio.Future[ToolResult | None]
    """The client's answer; None if it did not answer in time. A future of the agent's event loop."""
    call_id: str = ""
    """Id of the call on the wire."""
    seq: int = 0
    """`seq` of its `tool_call` message."""
    left: float | None = None
    """Seconds that the client has left to answer, as of the last time when the timer stopped; None: no limit."""
    timer: asyncio.TimerHandle | None = None
    due: float = 0.0
    """When the timer fires, in seconds of the loop's clock. Kept here because uvloop's handle of a timer whose time has
    passed has no `when`."""
    is_read: bool = False
    """Whether an answer has arrived and is being checked in a thread."""

    def settle(self, answer: ToolResult | None) -> None:
        """Pass the answer to the waiting agent, from any thread."""
        call_on(self.answer.get_loop(), self._set, answer)

    def _set(self, answer: ToolResult | None) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class RemoteCalls:
    """The calls of client tools that one run makes; to be used on the event loop of the link only.

    Args:
        send: Sends a message of the run and returns its `seq`.
    """

    def __init__(self, send: Callable[[bytes, dict[str, object]], int]) -> None:
        self._send = send
        self._open: dict[str, RemoteCall] = {}
        self._closed: dict[str, str] = {}
        """How each closed call was closed, as the rest of the sentence "call X …" in a refusal."""
        self._paused = False
        self._ended = False

    def __repr__(self) -> str:
        return f"<RemoteCalls {len(self._open)} open, {len(self._closed)} closed>"

    def open(self, call: RemoteCall) -> None:
        """Send a call to the client, and start its timer."""
        # The agent's code may still make calls, because it is stuck or does not know yet that the run has ended.
        if self._ended:
            call.settle(_RUN_HAS_ENDED)
            return
        call.call_id = self._unique(call.wanted_id)
        name = call.tool.data.name
        try:
            call.seq = self._send(kinds.TOOL_CALL, {"call_id": call.call_id, "name": name, "args": call.args})
        except AxonError as error:
            # The arguments, which the model wrote, cannot be packed: for example an integer over 64 bits.
            self._closed[call.call_id] = "was never made"
            call.settle(ToolResult(error=ToolFault(message=error.message, retry=True)))
            return
        self._open[call.call_id] = call
        if (timeout_ms := call.tool.data.timeout_ms) is not None:
            call.left = timeout_ms / 1000
            if not self._paused:
                self._start_timer(call, call.left)

    def expected(self, call_id: str) -> RemoteCall:
        """Return an open call that waits for its answer.

        Raises:
            RequestError: `unknown_request` if no such call is open.
        """
        call = self._open.get(call_id)
        if call is None or call.is_read:
            how = "was answered already" if call is not None else self._closed.get(call_id, "was never made")
            raise RequestError("unknown_request", f"call {call_id!r} {how}")
        return call

    def start_reading(self, call_id: str) -> RemoteCall:
        """Stop the timer of an open call whose answer has arrived and will be checked in a thread.

        Raises:
            RequestError: `unknown_request`, as `expected`.
        """
        call = self.expected(call_id)
        call.is_read = True
        self._stop_timer(call)
        return call

    def reopen(self, call: RemoteCall) -> None:
        """Let a call wait for another answer, because the one that was read is invalid."""
        call.is_read = False
        if call.left is not None and not self._paused and self._open.get(call.call_id) is call:
            self._start_timer(call, call.left)

    def take(self, call: RemoteCall, answer: ToolResult) -> None:
        """Close a call with its answer; does nothing if the call is no longer open."""
        if self._open.get(call.call_id) is call:
            self._close(call, "was answered already")
            call.settle(answer)

    def drop(self, call: RemoteCall) -> None:
        """Cancel a call, because the agent no longer waits for its answer."""
        if self._open.get(call.call_id) is call:
            self._cancel(call, "was cancelled")

    def drop_all(self) -> None:
        """Cancel all calls, because the run is about to end.

        Every call gets an answer, and later calls are answered at once, so that code of a stuck run does not wait for
        a client that will never answer.
        """
        self._ended = True
        for call in list(self._open.values()):
            self.drop(call)
            call.settle(_RUN_HAS_ENDED)
        # `send` is a method of the run, which has this object. Without this cycle, the memory of the run is free as
        # soon as it has ended, and not only at the next garbage collection.
        self._send = _sends_nothing

    def pause_timers(self) -> None:
        """Stop the timers of all open calls, because the client is gone."""
        self._paused = True
        for call in self._open.values():
            self._stop_timer(call)

    def continue_timers(self) -> None:
        """Start the timers of all open calls again with the time that was left, because the client is back."""
        self._paused = False
        for call in self._open.values():
            if call.left is not None and call.timer is None and not call.is_read:
                self._start_timer(call, call.left)

    def listed(self) -> list[dict[str, Any]]:
        """Return the open calls, in the form in which `resumed` lists them."""
        return [
            {"seq": call.seq, "call_id": call_id, "name": call.tool.data.name, "args": call.args}
            for call_id, call in self._open.items()
        ]

    def _unique(self, wanted: str) -> str:
        """Return `wanted`, or an id made from it if this run has used it before.

        Some providers number the tool calls of each response from the same start.
        """
        if 0 < len(wanted) <= limits.MAX_CALL_ID and wanted not in self._open and wanted not in self._closed:
            return wanted
        # 16 characters are left for the suffix, so that the id stays within the limit of the protocol.
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


def _sends_nothing(_kind: bytes, _body: dict[str, object]) -> int:
    return 0


_RUN_HAS_ENDED: Final = ToolResult(error=ToolFault(message="the run has ended"))


@dataclass(eq=False, kw_only=True)
class RemoteToolset(AbstractToolset[object]):
    """The client's tools of one request, as pydantic-ai's toolset.

    Args:
        tools: The tools.
        calls: Sends their calls.
        post: Calls a function on the event loop of the link, from any thread, in order.
        wait: Lets the run leave its slot while it only waits for answers.
    """

    tools: Sequence[RemoteTool]
    calls: RemoteCalls
    post: Callable[..., None]
    wait: ToolWait
    _by_name: dict[str, RemoteTool] = field(init=False)

    def __post_init__(self) -> None:
        self._by_name = {tool.data.name: tool for tool in self.tools}

    @property
    def id(self) -> str:
        """Name of the toolset in messages of pydantic-ai."""
        return TOOLSET_ID

    @property
    def tool_name_conflict_hint(self) -> str:
        """Advice in pydantic-ai's error if the agent has a tool of the same name."""
        return "Rename the client's tool."

    async def get_tools(self, ctx: RunContext[object]) -> dict[str, ToolsetTool[object]]:
        """Return the definition of each tool for the model, with the validator of its arguments."""
        return {name: self._toolset_tool(tool, ctx.max_retries) for name, tool in self._by_name.items()}

    def _toolset_tool(self, tool: RemoteTool, max_retries: int) -> ToolsetTool[object]:
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
        """Send the call to the client, and wait for its answer.

        Raises:
            ModelRetry: The client did not answer in time, or asks the model to try again.
            ToolFailed: The client reports that the tool failed.
            CallDeferred: The tool is deferred. pydantic-ai calls this method for it only after an approval; the client
                must still execute the call.
        """
        called = self._by_name[name]
        if called.data.mode == "deferred":
            raise CallDeferred
        answer: asyncio.Future[ToolResult | None] = asyncio.get_running_loop().create_future()
        call = RemoteCall(tool=called, wanted_id=ctx.tool_call_id or "", args=tool_args, answer=answer)
        self.post(self.calls.open, call)
        try:
            with self.wait.unanswered():
                await answer
            await self.wait.continue_after_answer()
            return _returned(name, called.data.timeout_ms, answer.result())
        finally:
            # The agent's task was cancelled: the client must be told that its answer is no longer needed.
            if not answer.done() or answer.cancelled():
                self.post(self.calls.drop, call)


def read_answer(tool: RemoteTool, body: bytes) -> ToolResult:
    """Decode and check the body of a `tool_result`.

    Raises:
        RequestError: `invalid_msgpack` or `invalid_request` if the body is invalid, or if the result does not match
            the schema in the tool's `returns`.
    """
    answer = tool_result(unpack(body, "the body", limits.MAX_ITEMS))
    if answer.error is None and tool.returns is not None and (faults := tool.returns.faults(answer.result)):
        raise invalid([(f"/result{pointer}", reason) for pointer, reason in faults])
    # Checked now, although it is converted later: the client can still send another answer.
    messages.prompt(answer.content, "/content")
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
