"""Deferred tool calls: runs that end with calls for the client to decide, and runs that continue with the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied, ToolReturn
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.toolsets import FunctionToolset

from axon_zmq.protocol.plain import plain
from axon_zmq.protocol.requests import from_validation, invalid, pointer_of
from axon_zmq.worker.adapter import compat
from axon_zmq.worker.adapter.client_tools import RemoteTool
from axon_zmq.worker.adapter.messages import refuse_local_downloads

RESULTS_POINTER: Final = "/deferred_tool_results"
_RESULTS: Final = TypeAdapter(DeferredToolResults)
_DECISIONS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "tool-approved": TypeAdapter(ToolApproved),
    "tool-denied": TypeAdapter(ToolDenied),
}
_KEYS: Final = ("calls", "approvals", "metadata")


def results(
    given: Mapping[str, object],
    tools: Sequence[RemoteTool],
    agent: Agent[object, object],
    history: Sequence[ModelMessage],
) -> DeferredToolResults:
    """Read `deferred_tool_results`, which answer the tool calls of the last response in the history.

    Args:
        given: The value in the request.
        tools: The client's tools of this request.
        agent: The agent that continues.
        history: The message history of the request.

    Raises:
        RequestError: `invalid_request`, with a JSON pointer to the call: the response has no such call, this run does
            not have the tool, the decision has the wrong kind, the result does not match the `returns` of the client's
            tool, or the arguments do not match its `parameters`.
    """
    if unknown := [key for key in given if key not in _KEYS]:
        raise invalid([(RESULTS_POINTER + pointer_of(unknown[:1]), f"is unknown: expected one of {', '.join(_KEYS)}")])
    refuse_local_downloads(given, RESULTS_POINTER)
    try:
        read = _RESULTS.validate_python({**given, **_decided(given)}, context=compat.FILES_ARE_REBUILT)
    except ValidationError as error:
        raise from_validation(error, RESULTS_POINTER) from None
    called = {call.tool_call_id: call.tool_name for call in _last_calls(history)}
    by_name = {tool.data.name: tool for tool in tools}
    _check_tools(called, read, {*by_name}, agent)
    for call_id, result in read.calls.items():
        _check_result(RESULTS_POINTER + pointer_of(("calls", call_id)), called.get(call_id), by_name, result)
    for call_id, decision in read.approvals.items():
        _check_approval(RESULTS_POINTER + pointer_of(("approvals", call_id)), called.get(call_id), by_name, decision)
    return read


def _decided(given: Mapping[str, object]) -> dict[str, Any]:
    """Return `{"approvals": …}` with the decoded decisions; an empty map if `approvals` is missing or not a map."""
    approvals = given.get("approvals")
    if not isinstance(approvals, dict):
        return {}
    decisions = cast("dict[str, Any]", approvals).items()
    return {
        "approvals": {id: _decision(RESULTS_POINTER + pointer_of(("approvals", id)), value) for id, value in decisions}
    }


def _decision(place: str, given: object) -> bool | ToolApproved | ToolDenied:
    if isinstance(given, bool):
        return given
    kind: Any = cast("dict[str, Any]", given).get("kind") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in _DECISIONS:
        raise invalid([(place, f"must be true, false, or a map whose kind is {' or '.join(_DECISIONS)}")])
    try:
        return _DECISIONS[kind].validate_python(given)
    except ValidationError as error:
        raise from_validation(error, place) from None


def _check_tools(
    called: Mapping[str, str], read: DeferredToolResults, clients: set[str], agent: Agent[object, object]
) -> None:
    """Check that the run has the tool of each call.

    Otherwise pydantic-ai would answer the model that the tool does not exist, and the client's decision would be lost.

    Raises:
        RequestError: `invalid_request`, with a JSON pointer to the call.
    """
    if any(not isinstance(toolset, FunctionToolset) for toolset in agent.toolsets):
        return  # the tools of other toolsets are not known before the run
    known = clients.union(*(toolset.tools for toolset in agent.toolsets if isinstance(toolset, FunctionToolset)))
    for which, ids in (("calls", read.calls), ("approvals", read.approvals)):
        for call_id in ids:
            if (name := called.get(call_id)) is not None and name not in known:
                fault = f"answers {name!r}, a tool that this run does not have: send the same tools as before"
                raise invalid([(RESULTS_POINTER + pointer_of((which, call_id)), fault)])


def _last_calls(history: Sequence[ModelMessage]) -> Sequence[ToolCallPart]:
    return next((message.tool_calls for message in reversed(history) if isinstance(message, ModelResponse)), ())


def _check_result(place: str, name: str | None, tools: Mapping[str, RemoteTool], result: object) -> None:
    tool = _called(place, name, tools)
    if tool is None or isinstance(result, ToolFailed | ModelRetry):
        return
    if tool.data.mode != "deferred":
        raise invalid([(place, f"{name!r} waits for an approval: move the entry to approvals")])
    if tool.returns is not None:
        value, inside = (result.return_value, "/return_value") if isinstance(result, ToolReturn) else (result, "")
        _fits(f"{place}{inside}", tool.returns.faults(value))


def _check_approval(place: str, name: str | None, tools: Mapping[str, RemoteTool], decision: object) -> None:
    tool = _called(place, name, tools)
    if tool is None:
        return
    if tool.kind != "unapproved":
        raise invalid([(place, f"{name!r} waits for a result: move the entry to calls")])
    if isinstance(decision, ToolApproved) and decision.override_args is not None:
        _fits(f"{place}/override_args", tool.parameters.faults(decision.override_args))


def _called(place: str, name: str | None, tools: Mapping[str, RemoteTool]) -> RemoteTool | None:
    """Return the client's tool of a call; None if the tool is a Python function of the agent.

    Raises:
        RequestError: `invalid_request` if the response has no such call.
    """
    if name is None:
        raise invalid([(place, "the last response in message_history has no tool call with this id")])
    return tools.get(name)


def _fits(place: str, faults: Sequence[tuple[str, str]]) -> None:
    if faults:
        raise invalid([(place + pointer, reason) for pointer, reason in faults])


def requested(requests: DeferredToolRequests) -> dict[str, Any]:
    """Return the `deferred` of a `complete`: the calls that the client must decide."""
    return {
        "calls": [_call(call, requests) for call in requests.calls],
        "approvals": [_call(call, requests) for call in requests.approvals],
    }


def _call(call: ToolCallPart, requests: DeferredToolRequests) -> dict[str, Any]:
    made: dict[str, Any] = {"call_id": call.tool_call_id, "name": call.tool_name, "args": call.args_as_dict()}
    if metadata := requests.metadata.get(call.tool_call_id):
        made["metadata"] = plain(metadata)
    return made


def may_defer(agent: Agent[object, object]) -> bool:
    """Whether tools of the agent itself may need an approval or be executed elsewhere.

    Only a `FunctionToolset` shows its tools before the run, so any other toolset counts as one that may.
    """
    return any(
        not isinstance(toolset, FunctionToolset) or any(tool.requires_approval for tool in toolset.tools.values())
        for toolset in agent.toolsets
    )


def allowed(agent: Agent[object, object], output: Any) -> Any:
    """Return an output type with which a run may end with deferred calls.

    pydantic-ai ends a run with deferred calls only if `DeferredToolRequests` is part of its output type.

    Args:
        agent: The agent.
        output: The output type of the request; None if it has none.

    Returns:
        The output type for the run; None to use the agent's own.
    """
    if compat.has_output_validators(agent):
        return output  # pydantic-ai refuses another output type for such an agent
    types = agent.output_type if output is None else output
    listed = list(types) if isinstance(types, list | tuple) else [types]
    return output if DeferredToolRequests in listed else [*listed, DeferredToolRequests]
