"""Functions as tools, outside of runs: their definitions for the model, and their answers."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, Field

from axon_zmq import RequestError, Tool, ToolAnswer, ToolRetry, deferred_results
from axon_zmq.client import tool_functions as tools
from axon_zmq.events import Complete
from axon_zmq.jsonschema import self_contained
from axon_zmq.protocol.msgpack import pack, unpack

# --- definitions ------------------------------------------------------------------------------------


class Unit(Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


class Reading(BaseModel):
    place: str
    celsius: float
    taken: datetime | None = None


def forecast(
    place: Annotated[str, Field(description="Where.", min_length=2)],
    day: date,
    unit: Unit = Unit.CELSIUS,
    *,
    hours: list[int] | None = None,
) -> Reading:
    """The weather of a day,
    as far as it is known.

    Nobody reads this.

    Args:
        place: Not used, since the annotation tells.
        day (date): Which day;
            today is good.
        unit: Of temperatures.

    Returns:
        A reading.
    """
    assert isinstance(day, date)
    return Reading(place=f"{place} {day:%d.%m.} {unit.value} {hours}", celsius=1.5)


def body_of(tool: Callable[..., Any] | Tool, **args: Any) -> dict[str, Any]:
    """The answer of a tool that is called outside of a run."""
    made = tool if isinstance(tool, Tool) else Tool(tool)

    async def at_once(call: Callable[[], Any]) -> Any:
        return call()

    return asyncio.run(made.answer(args, at_once))


def test_the_schema_for_the_model_is_built_from_the_signature():
    definition = Tool(forecast).definition
    assert definition["name"] == "forecast"
    assert definition["description"] == "The weather of a day, as far as it is known."
    parameters = definition["parameters"]
    assert parameters["required"] == ["place", "day"]
    assert parameters["additionalProperties"] is False
    shown = parameters["properties"]
    assert shown["place"] == {"type": "string", "description": "Where.", "minLength": 2}
    assert shown["day"] == {"type": "string", "format": "date", "description": "Which day; today is good."}
    assert shown["unit"] == {"$ref": "#/$defs/Unit", "default": "C", "description": "Of temperatures."}
    assert "description" not in shown["hours"]
    returned = definition["returns"]["properties"]
    assert returned["celsius"] == {"type": "number"}
    assert returned["taken"]["anyOf"][0] == {"format": "date-time"}  # it stays a datetime


def test_only_values_that_differ_from_the_defaults_are_sent():
    def plain(x: int):
        return x

    assert Tool(plain).definition == {
        "name": "plain",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}},
            "required": ["x"],
            "additionalProperties": False,
        },
    }
    chosen = {"mode": "deferred", "approval": True, "timeout_ms": 5, "sequential": True}
    rich = Tool(plain, name="other", description="Says x.", **chosen)
    assert rich.definition.items() >= {"name": "other", "description": "Says x.", **chosen}.items()


class Tree(BaseModel):
    children: list[Tree]


class Strange:
    pass


@pytest.mark.parametrize("annotation", [None, Any, ToolAnswer, ToolAnswer | int, Strange])
def test_a_result_schema_is_sent_only_if_the_type_has_one(annotation):
    def tool():
        return 1

    tool.__annotations__["return"] = annotation
    assert "returns" not in Tool(tool).definition
    assert body_of(tool) == {"result": 1}


def test_recursive_result_types_have_a_schema():
    def tool() -> list[Tree]:
        return []

    assert Tool(tool).definition["returns"]["items"] == {"$ref": "#/$defs/Tree"}
    assert self_contained(Tool(tool).definition["returns"], "/returns")["$defs"].keys() == {"Tree"}


class Counter:
    """Counts."""

    def __call__(self, by: int) -> int:
        return by

    async def later(self, by: int) -> int:
        """Counts later."""
        return by

    @staticmethod
    def fixed(by: int) -> int:
        return by


def _decorated(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


@_decorated
def decorated(by: int) -> int:
    """Has another function around it."""
    return by


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Counter(), "Counter"),
        (Counter().later, "later"),
        (Counter.fixed, "fixed"),
        (functools.partial(decorated), "decorated"),
        (functools.partial(Counter().later), "later"),
        (decorated, "decorated"),
    ],
)
def test_any_callable_can_be_a_tool(function, name):
    tool = Tool(function)
    assert tool.name == name
    assert tool.definition["parameters"]["required"] == ["by"]
    assert body_of(tool, by="3") == {"result": 3}


def test_a_function_may_return_an_awaitable():
    async def later(by: int) -> int:
        return by

    assert body_of(Tool(lambda by: later(by), name="soon"), by=3) == {"result": 3}


def test_a_partial_function_keeps_its_signature_and_its_bound_arguments():
    def area(width: int, height: int) -> int:
        return width * height

    tool = Tool(functools.partial(area, height=3))
    assert tool.definition["parameters"]["required"] == ["width"]
    assert body_of(tool, width=2) == {"result": 6}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (5, "invalid tool 5: expected a function"),
        ("add", "invalid tool 'add'"),
        (lambda *args: 1, "give each parameter a name"),
        (Strange, "invalid tool <class"),
    ],
)
def test_an_object_that_cannot_be_a_tool_is_rejected_at_once(wrong, message):
    with pytest.raises((TypeError, RequestError), match=message):
        Tool(wrong, name="wrong")


def test_a_type_without_a_schema_is_rejected_at_once():
    def tool(x: Strange):
        return x

    with pytest.raises(TypeError, match="the signature of tool 'tool' has no JSON Schema"):
        Tool(tool)

    def postponed(x: Missing):  # noqa: F821
        return x

    with pytest.raises(TypeError, match="'Missing' is not defined"):
        Tool(postponed)


def test_an_invalid_tool_name_or_number_is_rejected_at_once():
    with pytest.raises(RequestError, match="tool '<lambda>': /name"):
        Tool(lambda: 1)
    with pytest.raises(RequestError, match="/timeout_ms"):
        Tool(forecast, timeout_ms=0)
    with pytest.raises(RequestError, match=r"tool 'x': /parametres: is unknown"):
        tools.toolbox([{"name": "x", "parametres": {}}])
    with pytest.raises(TypeError, match="expected a list"):
        tools.toolbox(forecast)
    with pytest.raises(TypeError, match="expected a list"):
        tools.toolbox({"name": "x"})


# --- answers ----------------------------------------------------------------------------------------


def test_arguments_have_the_annotated_types():
    body = body_of(forecast, place="Oslo", day="2026-02-03", unit="F", hours=["1"])
    assert body == {"result": {"place": "Oslo 03.02. F [1]", "celsius": 1.5, "taken": None}}


@pytest.mark.parametrize(
    ("args", "faults"),
    [
        ({}, ["/place: missing required argument", "/day: missing required argument"]),
        ({"place": "O", "day": "2026-02-03"}, ["/place: string should have at least 2 characters"]),
        ({"place": "Oslo", "day": "soon", "hours": [1, "x"]}, ["/day: ", "/hours/1: "]),
        ({"place": "Oslo", "day": "2026-02-03", "extra": 1}, ["/extra: unexpected keyword argument"]),
    ],
)
def test_invalid_arguments_are_reported_to_the_model_with_path_and_reason(args, faults):
    error = body_of(forecast, **args)["error"]
    assert error["retry"] is True
    assert all(fault in error["message"] for fault in faults), error


class SpeechlessError(Exception):
    def __str__(self) -> str:
        pytest.fail("no words")


class SpeechlessRetryError(SpeechlessError, ToolRetry):
    pass


def raising(error: BaseException) -> Callable[[], None]:
    def tool() -> None:
        raise error

    return tool


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (ToolRetry("which one?"), {"message": "which one?", "retry": True}),
        (ValueError("no"), {"message": "ValueError: no", "retry": False}),
        (StopIteration(), {"message": "RuntimeError: coroutine raised StopIteration", "retry": False}),
        (SystemExit(3), {"message": "SystemExit: 3", "retry": False}),
        (KeyboardInterrupt(), {"message": "KeyboardInterrupt", "retry": False}),
        (pytest.fail.Exception("no good"), {"message": "Failed: no good", "retry": False}),
        (SpeechlessError(), {"message": "SpeechlessError", "retry": False}),
        (SpeechlessRetryError(), {"message": "SpeechlessRetryError", "retry": True}),
        (KeyError("half \ud83d"), {"message": "KeyError: 'half \\ud83d'", "retry": False}),
        (OSError("half \ud83d"), {"message": "OSError: half ?", "retry": False}),
    ],
)
def test_an_exception_of_a_tool_is_its_answer(raised, error):
    assert body_of(raising(raised)) == {"error": error}


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (ToolRetry("not that one"), {"message": "not that one", "retry": True}),
        (KeyError("x"), {"message": "KeyError: 'x'", "retry": False}),
        (pytest.skip.Exception("not now"), {"message": "Skipped: not now", "retry": False}),
        (SpeechlessError(), {"message": "SpeechlessError", "retry": False}),
        (ValueError("odd"), {"message": "invalid arguments: /n: value error, odd", "retry": True}),
    ],
)
def test_an_exception_of_an_application_validator_is_an_answer(raised, error):
    def judge(_: int) -> int:
        raise raised

    def tool(n):
        return n

    tool.__annotations__["n"] = Annotated[int, AfterValidator(judge)]
    assert body_of(tool, n=1) == {"error": error}


def test_a_validation_error_inside_a_tool_is_not_blamed_on_the_model():
    def tool() -> None:
        Reading.model_validate({})

    error = body_of(tool)["error"]
    assert error["message"].startswith("ValidationError: 2 validation errors for Reading")
    assert error["retry"] is False


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@dataclass
class Place:
    name: str
    at: datetime


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        (NOON, NOON),
        (NOON.replace(tzinfo=None), "2026-01-02T12:00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(minutes=1), "PT1M"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        (Unit.CELSIUS, "C"),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (deque([1]), [1]),
        ({1: "a", Unit.CELSIUS: {"b": b"c"}}, {"1": "a", "C": {"b": b"c"}}),
        (float("nan"), None),
        ([Place("Oslo", NOON)], [{"name": "Oslo", "at": NOON}]),
        (Reading(place="Oslo", celsius=1, taken=NOON), {"place": "Oslo", "celsius": 1.0, "taken": NOON}),
        (None, None),
    ],
)
def test_results_are_dumped_by_pydantic_and_keep_bytes_and_datetimes(value, plain):
    def tool():
        return value

    assert body_of(tool) == {"result": plain}
    unpack(pack(body_of(tool)), "what is sent")


def test_a_result_is_dumped_according_to_its_annotation():
    class Renamed(BaseModel):
        celsius: Annotated[float, Field(serialization_alias="degrees")] = 1.0

    def tool() -> Renamed:
        return Renamed()

    tool.__annotations__["return"] = Renamed
    assert list(Tool(tool).definition["returns"]["properties"]) == ["degrees"]
    assert body_of(tool) == {"result": {"degrees": 1.0}}


def test_a_result_without_a_plain_form_fails_the_call():
    def tool():
        return Strange()

    assert "Unable to serialize unknown type" in body_of(tool)["error"]["message"]


def test_a_tool_answer_has_separate_content_for_the_model_and_the_application():
    def tool() -> ToolAnswer:
        picture = {"kind": "binary", "data": b"x"}
        return ToolAnswer(Unit.CELSIUS, content=["look", picture], metadata=Place("Oslo", NOON))

    assert body_of(tool) == {
        "result": "C",
        "content": ["look", {"kind": "binary", "data": b"x"}],
        "metadata": {"name": "Oslo", "at": NOON},
    }


# --- deferred calls ---------------------------------------------------------------------------------


def deferred(calls: list[str], approvals: list[str]) -> Complete:
    made = {
        kind: [{"call_id": id, "name": f"tool_{id}", "args": {"n": 1}} for id in ids]
        for kind, ids in (("calls", calls), ("approvals", approvals))
    }
    return Complete(1, None, {}, [], None, None, None, made)


def test_deferred_results_use_pydantic_ais_names():
    complete = deferred(["a", "b", "c", "d"], [])
    given = {"a": {"kind": "of weather"}, "b": ToolAnswer(1, "more", "meta"), "c": ToolRetry("again"), "d": KeyError(1)}
    assert deferred_results(complete, calls=given) == {
        "calls": {
            "a": {"kind": "tool-return", "return_value": {"kind": "of weather"}},
            "b": {"kind": "tool-return", "return_value": 1, "content": "more", "metadata": "meta"},
            "c": {"kind": "model-retry", "message": "again"},
            "d": {"kind": "tool-failed", "message": "KeyError: 1"},
        },
        "approvals": {},
    }


@pytest.mark.parametrize(
    ("approve", "approvals"),
    [
        (True, {"x": True, "y": True}),
        (False, {"x": False, "y": False}),
        ("too late", {id: {"kind": "tool-denied", "message": "too late"} for id in "xy"}),
        ({"x": True, "y": {"n": 2}}, {"x": True, "y": {"kind": "tool-approved", "override_args": {"n": 2}}}),
        (lambda call: call["name"] == "tool_x", {"x": True, "y": False}),
    ],
)
def test_approvals_may_be_given_for_all_calls_by_call_or_by_a_function(approve, approvals):
    assert deferred_results(deferred([], ["x", "y"]), approve)["approvals"] == approvals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "approve has no answer for call 'x' of tool 'tool_x'"),
        ({"approve": {"x": True, "z": True}}, "approve has an answer for unknown call 'z'; deferred calls: 'x'"),
        ({"approve": True}, "calls has no answer for call 'a'"),
        ({"approve": True, "calls": {"a": 1, "x": 1}}, "calls has an answer for unknown call 'x'"),
    ],
)
def test_each_deferred_call_needs_an_answer_and_each_answer_a_call(arguments, message):
    with pytest.raises(ValueError, match=message):
        deferred_results(deferred(["a"], ["x"]), **arguments)
