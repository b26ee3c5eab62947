"""The continuation of a run that ended with calls to approve or to execute elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from axon_zmq.client.tool_functions import ToolResultBody, given, to_plain
from axon_zmq.events import Complete

Call = Mapping[str, Any]
"""A deferred call: `{call_id, name, args}`."""
Approval = bool | str | Mapping[str, object]
"""True; False, or the reason for it; or the arguments that are approved instead of the model's."""


def deferred_results(
    complete: Complete,
    approve: Approval | Mapping[str, Approval] | Callable[[Call], Approval] | None = None,
    calls: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The `deferred_tool_results` for the run after one that ended with calls to approve or to execute.

    That run has the same `tools`, and in `message_history` the old history and `complete.messages`.

    Args:
        complete: The end of the run; `complete.deferred` has the calls, each `{call_id, name, args}`.
        approve: For all calls that need approval: True or False, or a function that decides on each; or
            a map by call_id. Instead of False, a string is the reason that the model gets; a map is the
            arguments to use instead of the model's.
        calls: By call_id, the result of each call that was to be executed: a value, a `ToolAnswer`, or, if it
            failed, an exception. A `ToolRetry` lets the model try again.

    Raises:
        ValueError: A call has no answer, or an answer has no call.
    """
    deferred = complete.deferred or {}
    wanted = {call["call_id"]: call for call in deferred.get("approvals", ())}
    if callable(approve):
        choices: Mapping[str, Approval] = {call_id: approve(call) for call_id, call in wanted.items()}
    elif isinstance(approve, Mapping):
        choices = cast("Mapping[str, Approval]", approve)
    else:
        choices = {} if approve is None else dict.fromkeys(wanted, approve)
    results = {call_id: given(result) for call_id, result in (calls or {}).items()}
    _matching("approve", wanted, choices)
    _matching("calls", {call["call_id"]: call for call in deferred.get("calls", ())}, results)
    return {
        "calls": {call_id: executed(body) for call_id, body in results.items()},
        "approvals": {call_id: approved(choice) for call_id, choice in choices.items()},
    }


def _matching(which: str, wanted: Mapping[str, Call], answers: Mapping[str, object]) -> None:
    if missing := wanted.keys() - answers.keys():
        first = min(missing)
        raise ValueError(f"{which} lacks {first!r}, a call of {wanted[first]['name']!r}: each needs an answer")
    if unknown := answers.keys() - wanted.keys():
        known = ", ".join(map(repr, wanted)) or "none"
        raise ValueError(f"{which} has {min(unknown)!r}, which was not deferred; deferred were {known}")


def executed(body: ToolResultBody) -> dict[str, Any]:
    """A deferred call's answer in pydantic-ai's format, from the body of a `tool_result`."""
    if "error" in body:
        kind = "model-retry" if body["error"]["retry"] else "tool-failed"
        return {"kind": kind, "message": body["error"]["message"]}
    more = {key: value for key, value in body.items() if key in ("content", "metadata")}
    return {"kind": "tool-return", "return_value": body.get("result"), **more}


def approved(choice: Approval) -> bool | dict[str, Any]:
    """An approval in pydantic-ai's format."""
    match choice:
        case bool():
            return choice
        case str():
            return {"kind": "tool-denied", "message": choice}
        case _:
            return {"kind": "tool-approved", "override_args": to_plain(dict(choice))}
