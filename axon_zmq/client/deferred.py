"""Answers to deferred tool calls, for the run that continues after a run that ended with such calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from axon_zmq.client.tool_functions import ToolResultBody, outcome_body, to_plain
from axon_zmq.events import Complete

Call = Mapping[str, Any]
"""A deferred call as in `Complete.deferred`: `{call_id, name, args}`."""
Approval = bool | str | Mapping[str, object]
"""Decision on a call: True approves it, False or text (a reason) denies it, a map approves it with other arguments."""


def deferred_results(
    complete: Complete,
    approve: Approval | Mapping[str, Approval] | Callable[[Call], Approval] | None = None,
    calls: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Build the option `deferred_tool_results` for the run that continues after deferred tool calls.

    The next run needs the same `tools`; its `message_history` is the history of the first run plus `complete.messages`.

    Args:
        complete: Last event of the first run; `complete.deferred` has the calls, each `{call_id, name, args}`.
        approve: Decisions on the calls that need an approval: a function that takes a call and returns a decision, a
            map from `call_id` to a decision, or one decision for all calls. A decision is True (approve), False (deny),
            text (deny, with this reason for the model), or a map (approve, with these arguments instead of the
            model's). A map cannot be given as the one decision for all calls. Default: None, for a run without such
            calls.
        calls: Results of the calls that were to be executed elsewhere, by `call_id`: a value, a `ToolAnswer`, or an
            exception if the call failed; after a `ToolRetry` the model may try again. Default: None, for a run without
            such calls.

    Returns:
        The value of the option `deferred_tool_results`.

    Raises:
        ValueError: A deferred call has no answer, or an answer belongs to no deferred call.
    """
    deferred = complete.deferred or {}
    wanted = {call["call_id"]: call for call in deferred.get("approvals", ())}
    if callable(approve):
        choices: Mapping[str, Approval] = {call_id: approve(call) for call_id, call in wanted.items()}
    elif isinstance(approve, Mapping):
        choices = cast("Mapping[str, Approval]", approve)
    else:
        choices = {} if approve is None else dict.fromkeys(wanted, approve)
    results = {call_id: outcome_body(result) for call_id, result in (calls or {}).items()}
    _check_answers("approve", wanted, choices)
    _check_answers("calls", {call["call_id"]: call for call in deferred.get("calls", ())}, results)
    return {
        "calls": {call_id: executed(body) for call_id, body in results.items()},
        "approvals": {call_id: approved(choice) for call_id, choice in choices.items()},
    }


def _check_answers(which: str, wanted: Mapping[str, Call], answers: Mapping[str, object]) -> None:
    """Check that each call has an answer and each answer a call.

    Raises:
        ValueError: A call has no answer, or an answer has no call.
    """
    if missing := wanted.keys() - answers.keys():
        first = min(missing)
        raise ValueError(
            f"{which} has no answer for call {first!r} of tool {wanted[first]['name']!r}: each deferred call needs one"
        )
    if unknown := answers.keys() - wanted.keys():
        known = ", ".join(map(repr, wanted)) or "none"
        raise ValueError(f"{which} has an answer for unknown call {min(unknown)!r}; deferred calls: {known}")


def executed(body: ToolResultBody) -> dict[str, Any]:
    """Convert the body of a `tool_result` to the answer of a deferred call in pydantic-ai's format."""
    if "error" in body:
        kind = "model-retry" if body["error"]["retry"] else "tool-failed"
        return {"kind": kind, "message": body["error"]["message"]}
    more = {key: value for key, value in body.items() if key in ("content", "metadata")}
    return {"kind": "tool-return", "return_value": body.get("result"), **more}


def approved(choice: Approval) -> bool | dict[str, Any]:
    """Convert a decision to an approval in pydantic-ai's format."""
    match choice:
        case bool():
            return choice
        case str():
            return {"kind": "tool-denied", "message": choice}
        case _:
            return {"kind": "tool-approved", "override_args": to_plain(dict(choice))}
