"""Prompts, messages and events of every type that pydantic-ai has.

The types are collected from pydantic-ai's unions. tests/support/new_content.py makes samples of the types and fields
that a later version adds, so that they are tested too.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
import types
import typing
import warnings
from base64 import b64encode
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, get_args
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, field_serializer
from pydantic_ai import Agent
from pydantic_ai import messages as ai
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ModelResponse
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied

from axon_zmq.errors import ModelError, RequestError
from axon_zmq.protocol import msgpack as our_msgpack
from axon_zmq.protocol import plain as plain_values
from axon_zmq.protocol import requests
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.plain import Plain, packer
from axon_zmq.protocol.requests import Steer, checked, run_request, tool_result
from axon_zmq.worker.adapter import compat, deferred, messages
from axon_zmq.worker.modes import run_stream
from tests.support.content import (
    AT,
    CALLED,
    CITATIONS,
    CONTENT,
    DETAILS,
    FAULTS,
    FILES,
    MAPS,
    MESSAGES,
    PARTS,
    PDF,
    PNG,
    RAW,
    REQUEST_PARTS,
    RESPONSE_PARTS,
    RETURNED,
    SOURCES,
    TOOL_RETURNS,
    USAGE,
    WHOLE,
    packed,
    told,
    unpacked,
)
from tests.support.new_content import (
    FAMILIES,
    NEVER_TOLD,
    instances,
    members,
    reachable,
    samples_with_new,
    untold_fields,
)

# --- pydantic-ai's types ----------------------------------------------------------------------------


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    OLD_RETRIES = [
        ai.RetryPromptPart("again", tool_name="look_up", tool_call_id="1", timestamp=AT),
        ai.RetryPromptPart(FAULTS, timestamp=AT),
    ]


HANDMADE = [*MESSAGES, ModelRequest(OLD_RETRIES)]
ALL_REQUEST_PARTS = samples_with_new(ai.ModelRequestPart, [*REQUEST_PARTS, *OLD_RETRIES], HANDMADE)
ALL_RESPONSE_PARTS = samples_with_new(ai.ModelResponsePart, RESPONSE_PARTS, HANDMADE)
ALL_MESSAGES: list[Any] = samples_with_new(
    ai.ModelMessage,
    [
        *MESSAGES,
        *[ModelRequest([part]) for part in ALL_REQUEST_PARTS if part not in [*REQUEST_PARTS, *OLD_RETRIES]],
        *[
            ModelResponse([part], timestamp=AT, usage=USAGE)
            for part in ALL_RESPONSE_PARTS
            if part not in RESPONSE_PARTS
        ],
    ],
    [ModelRequest(OLD_RETRIES)],
)


@pytest.mark.parametrize(
    ("union", "samples"),
    [
        (ai.ModelMessage, WHOLE),
        (ai.ModelRequestPart, ALL_REQUEST_PARTS),
        (ai.ModelResponsePart, ALL_RESPONSE_PARTS),
        (ai.UserContent, CONTENT),
        (ai.MultiModalContent, FILES),
    ],
    ids=["ModelMessage", "ModelRequestPart", "ModelResponsePart", "UserContent", "MultiModalContent"],
)
def test_each_type_of_pydantic_ais_unions_has_a_sample(union, samples):
    missing = set(members(union)) - {type(sample) for sample in samples}
    assert not missing, f"new in pydantic-ai: {missing}. Treat it: give it a sample here, and see that it comes back"


def test_tools_may_return_text_files_and_plain_data():
    plain = {str, Mapping, typing.get_origin(typing.Sequence[int]), Any}
    assert set(members(ai.ToolReturnContent)) == {*members(ai.MultiModalContent), *plain}, "new in ToolReturnContent"
    assert {type(each) for each in TOOL_RETURNS} >= set(members(ai.MultiModalContent)) | {str, list, dict}


def test_each_field_of_a_message_is_set_in_some_sample():
    untold = untold_fields(reachable(ai.ModelMessage), [*ALL_MESSAGES, ModelRequest(OLD_RETRIES)])
    untold = [name for name in untold if name not in NEVER_TOLD]
    assert not untold, f"new in pydantic-ai: {untold}. Give each another value than its default in a sample"


def as_json(given: list[Any]) -> str:
    """The form of messages that pydantic-ai dumps, with fields that `==` ignores; bytes are base64."""
    return ModelMessagesTypeAdapter.dump_json(given).decode()


def times(value: Any) -> Iterator[Any]:
    """Each value whose key marks it as a datetime."""
    if isinstance(value, dict):
        yield from (item for key, item in value.items() if key in ("timestamp", "at") and item is not None)
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from times(item)


@pytest.mark.parametrize("message", ALL_MESSAGES, ids=told)
def test_a_message_is_unchanged_after_a_round_trip(message):
    body = packed([message])
    sent = unpacked(body)
    back = messages.load(sent)
    assert back == [message]
    assert as_json(back) == as_json([message])
    assert packed(back) == body
    assert all(isinstance(at, datetime) and at.tzinfo is not None for at in times(sent))
    if b64encode(RAW).decode() in as_json([message]):
        assert msgpack.packb(RAW) in body
        assert b64encode(RAW) not in body


@pytest.mark.parametrize("part", OLD_RETRIES)
def test_retry_prompts_of_old_histories_are_read_as_pydantic_ai_reads_them(part):
    old = [ModelRequest([part])]
    [back] = messages.load(unpacked(packed(old)))
    [meant] = ModelMessagesTypeAdapter.validate_json(as_json(old))
    assert type(back.parts[0]) is type(meant.parts[0])
    assert back.parts[0].timestamp == AT
    assert msgpack.packb(RAW) in packed(old) or isinstance(part.content, str)


def test_a_long_history_is_read_in_one_validation():
    assert messages.load(unpacked(packed(ALL_MESSAGES))) == ALL_MESSAGES
    assert messages.load(None) is None
    assert messages.dump([]) == []


# --- tool results in messages --- -------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 3


class Word(enum.StrEnum):
    YES = "yes"


class Mark(enum.Enum):
    SET = AT
    CUT = (RAW,)


class Model(BaseModel):
    raw: bytes = RAW
    at: datetime = AT
    inner: Any = None


@dataclasses.dataclass
class Data:
    raw: bytes = RAW
    inner: Any = None


class Pair(NamedTuple):
    left: int
    right: Any


class Moment(datetime):
    """A subclass of datetime, as pendulum and pandas have."""


class Broken(BaseModel):
    x: int = 1

    @field_serializer("x")
    def serialize(self, _value: int) -> int:
        raise RuntimeError("no")


class Verbose:
    def __str__(self) -> str:
        return "x" * 5_000


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no")


def holding_itself() -> list[Any]:
    values: list[Any] = [1]
    values += [values, {"again": values}]
    return values


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = {"in": value}
    return value


CEST = timezone(timedelta(hours=2))
IN_MAP = {"raw": RAW, "at": AT, "inner": None}
PDF_MAP = {
    "kind": "binary",
    "data": RAW,
    "media_type": "application/pdf",
    "identifier": "mine",
    "vendor_metadata": DETAILS,
}
KEPT: list[tuple[Any, Any]] = [
    (RAW, RAW),
    (bytearray(RAW), RAW),
    (memoryview(RAW), RAW),
    (AT, AT),
    (AT.astimezone(CEST), AT),
    (Moment(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC), AT),
    (-(2**63), -(2**63)),
    (2**64 - 1, 2**64 - 1),
    (0.1, 0.1),
    (True, True),
    (None, None),
    ([1, [2]], [1, [2]]),
    ({"a": {"b": RAW}}, {"a": {"b": RAW}}),
    ("é\x00", "é\x00"),
]
"""Values that stay unchanged or become their equivalent in every language."""
PLAIN: list[tuple[Any, Any]] = [
    (datetime(2024, 2, 29, 12, 30), "2024-02-29T12:30:00"),
    (date(2024, 2, 29), "2024-02-29"),
    (time(12, 30), "12:30:00"),
    (timedelta(days=1, microseconds=5), "P1DT0.000005S"),
    (Decimal("1.50"), "1.50"),
    (Decimal("NaN"), "NaN"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Path("/a/b"), "/a/b"),
    (Fraction(1, 3), "1/3"),
    (2j, "2j"),
    (Color.RED, "red"),
    (Size.BIG, 3),
    (Word.YES, "yes"),
    (Mark.SET, AT),
    (Mark.CUT, [RAW]),
    (SecretStr("hush"), "**********"),
    (float("nan"), None),
    (float("-inf"), None),
    ({RAW}, [RAW]),
    (frozenset((AT,)), [AT]),
    ((1, (RAW, 2)), [1, [RAW, 2]]),
    (deque([RAW]), [RAW]),
    (Pair(1, AT), [1, AT]),
    (types.MappingProxyType({"a": RAW}), {"a": RAW}),
    (OrderedDict(a=RAW), {"a": RAW}),
    (Model(), IN_MAP),
    (Model(inner=[Data(inner=(Color.RED, PDF))]), IN_MAP | {"inner": [{"raw": RAW, "inner": ["red", PDF_MAP]}]}),
    (Data(), {"raw": RAW, "inner": None}),
    (Data(inner=Model()), {"raw": RAW, "inner": IN_MAP}),
    ({1: "a", None: "b", Color.RED: "c", Word.YES: "d"}, {"1": "a", "None": "b", "red": "c", "yes": "d"}),
    ({True: "a", 1.5: "b", b"c": "c"}, {"true": "a", "1.5": "b", "c": "c"}),
    ({(1, 2): "a", date(2024, 2, 29): "b"}, {"1,2": "a", "2024-02-29": "b"}),
]
"""Values that are converted to plain values."""
TOLD: list[tuple[Any, Any]] = [
    (ValueError("no such place"), "no such place"),
    (len, str(len)),
    (int, "<class 'int'>"),
    (threading.Lock, str(threading.Lock)),
    (Broken(), "x=1"),
    (Data(inner=Broken()), {"raw": RAW, "inner": "x=1"}),
    (Mute(), "<Mute>"),
    (Verbose(), "x" * 1_000),
    (10**5000, "<int>"),
    (Model(inner=(1, 2**64)), IN_MAP | {"inner": [1, str(2**64)]}),
    ([2**70, Broken(), RAW], [str(2**70), "x=1", RAW]),
]
"""Values without a plain form: described as text in messages, rejected in a result."""
PLACES: dict[str, tuple[Any, Any]] = {
    "what a tool returned": (
        lambda value: ModelRequest([ai.ToolReturnPart("t", value, "1", timestamp=AT)]),
        lambda message: message["parts"][0]["content"],
    ),
    "a tool's metadata": (
        lambda value: ModelRequest([ai.ToolReturnPart("t", 1, "1", metadata=value, timestamp=AT)]),
        lambda message: message["parts"][0]["metadata"],
    ),
    "a tool's arguments": (
        lambda value: ModelResponse([ai.ToolCallPart("t", {"v": value}, "1")], timestamp=AT, usage=USAGE),
        lambda message: message["parts"][0]["args"]["v"],
    ),
    "a provider's details": (
        lambda value: ModelResponse([ai.TextPart("x", provider_details={"v": value})], timestamp=AT, usage=USAGE),
        lambda message: message["parts"][0]["provider_details"]["v"],
    ),
    "a message's metadata": (
        lambda value: ModelRequest([ai.UserPromptPart("x", timestamp=AT)], metadata={"v": value}),
        lambda message: message["metadata"]["v"],
    ),
    "a part of a prompt": (
        lambda value: ModelRequest([ai.UserPromptPart([ai.TextContent("x", metadata=value)], timestamp=AT)]),
        lambda message: message["parts"][0]["content"][0]["metadata"],
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("value", "plain"), [*KEPT, *PLAIN, *TOLD], ids=lambda value: type(value).__name__)
def test_any_message_content_can_be_packed_and_read_again(value, plain, place):
    assert plain_values.plain({"v": value}) == {"v": plain}
    make, found_in = PLACES[place]
    body = packed([make(value)])
    [sent] = unpacked(body)
    assert found_in(sent) == plain
    assert type(found_in(sent)) is type(plain)
    assert without_records(packed(messages.load([sent]))) == without_records(body)


def without_records(body: bytes) -> list[dict[str, Any]]:
    """Packed messages without pydantic-ai's records of files.

    pydantic-ai (2.68) writes one only if a value is not text or a number, which a value may be after its conversion.
    """
    sent = unpacked(body)
    for message in sent:
        for part in message["parts"]:
            part.pop("content_file_digests", None)
    return sent


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [holding_itself(), nested(900), {"a": nested(900)}], ids=["itself", "deep", "a"])
def test_recursive_and_deeply_nested_values_are_truncated(value, place):
    make, _ = PLACES[place]
    body = packed([make(value)])
    assert b"that contains itself, or is nested more than 256 deep" in body
    assert without_records(packed(messages.load(unpacked(body)))) == without_records(body)


def test_a_lone_surrogate_is_sent_as_a_question_mark():
    [sent] = unpacked(packed([ModelResponse([ai.TextPart("half \ud83d", provider_details={"\ud83d": "\ud83d"})])]))
    assert (sent["parts"][0]["content"], sent["parts"][0]["provider_details"]) == ("half ?", {"?": "?"})


def test_a_part_that_cannot_be_dumped_does_not_change_the_other_parts():
    ids = [ai.InstructionId(source, name="limits") for source in SOURCES]
    good = [ai.UserPromptPart([PNG], timestamp=AT), *(ai.InstructionDeltaPart(id=id, content="less") for id in ids)]
    bad = ai.ToolReturnPart("t", PDF, "1", metadata={"b": Broken(), "self": holding_itself()}, timestamp=AT)
    other = ModelResponse([ai.TextPart("so")], timestamp=AT, usage=USAGE)
    [back, after] = messages.load(unpacked(packed([ModelRequest([*good, bad], metadata={"b": Broken()}), other])))
    assert back.parts[:-1] == good
    assert back.parts[-1].content == PDF
    assert back.parts[-1].metadata["b"] == "x=1"
    assert back.metadata == {"b": "x=1"}
    assert after == other


def test_dumping_messages_writes_nothing_to_the_log(recwarn):
    odd = ModelResponse([ai.ToolCallPart("t", ["no", "map"], "1")], finish_reason="odd", timestamp="late")  # pyright: ignore
    assert packed([odd])
    assert not recwarn.list  # pydantic's warning would repeat the value


# --- answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "plain"), [*KEPT, *PLAIN], ids=lambda value: type(value).__name__)
def test_a_result_is_converted_to_plain_values(value, plain):
    sent = unpack(packer()({"result": value}), "it")["result"]
    assert (sent, type(sent)) == (plain, type(plain))


@pytest.mark.parametrize(
    "value",
    [*[value for value, _ in TOLD], holding_itself(), nested(900), {"a": [nested(900)]}],
    ids=lambda value: type(value).__name__,
)
def test_a_result_without_a_plain_form_is_rejected_and_the_next_one_is_packed(value):
    pack = packer()
    with pytest.raises(ModelError, match="cannot be packed as msgpack") as caught:
        pack({"result": [1, value]})
    assert caught.value.error_type == "invalid_output"
    assert unpack(pack({"result": 1}), "it") == {"result": 1}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.uuids()
    | st.dates()
    | st.timedeltas()
    | st.datetimes(timezones=st.none() | st.just(UTC), min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1))
    | st.sampled_from([Color.RED, Size.BIG, Word.YES, Model(), Data(), Broken(), Mute(), PDF]),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(anything)
def test_any_value_can_be_packed_after_conversion_to_plain_values(value):
    plain = plain_values.plain(value)
    body = packer()({"it": plain})
    assert packer()({"it": Plain([plain])})[-len(body) + 4 :] == body[4:]
    assert packer()({"it": unpack(body, "it")["it"]}) == body
    assert plain_values.plain(plain) == plain


MADE = [made for _, made in PARTS]


def over_the_wire(body: dict[str, Any]) -> dict[str, Any]:
    return unpack(our_msgpack.pack(body), "the body")


def test_a_prompt_may_contain_each_kind_of_content():
    kinds = {kind.kind for kind in set(members(ai.UserContent)) - {str}}
    assert kinds == set(get_args(requests.PartKind)), "pydantic-ai has other kinds of content: update messages.Part"
    assert kinds == {part["kind"] for part in MAPS}
    assert kinds == messages.CONTENT_CLASSES.keys()


def test_a_prompt_may_contain_each_field_of_content():
    models = [requests.TextPart, requests.StructuredPart, requests.UrlPart, requests.BinaryPart]
    for model in [*models, requests.UploadedPart, requests.CachePart]:
        for kind in get_args(model.model_fields["kind"].annotation):
            fields = {field.name.removeprefix("_") for field in dataclasses.fields(messages.CONTENT_CLASSES[kind])}
            only_given = {"format"} if kind == "structured-content" else set()
            assert model.model_fields.keys() == fields | only_given, f"pydantic-ai has other fields for {kind}"
    providers = requests.UploadedPart.model_fields["provider_name"].annotation
    assert set(get_args(providers)) == set(get_args(ai.UploadedFileProviderName))


@pytest.mark.parametrize(("part", "made"), PARTS, ids=lambda value: value["kind"] if isinstance(value, dict) else "")
def test_a_part_of_a_prompt_has_the_name_that_pydantic_ai_uses(part, made):
    request = run_request(over_the_wire({"agent": "a", "prompt": ["see", part]}))
    assert messages.prompt(request.prompt) == ["see", made]
    answer = tool_result(over_the_wire({"result": 1, "content": [part]}))
    assert messages.prompt(answer.content) == [made]
    steer = checked(Steer, over_the_wire({"content": [part, "more"]}))
    assert messages.prompt(steer.content) == [made, "more"]


@pytest.mark.parametrize("made", CONTENT, ids=lambda made: type(made).__name__)
def test_content_from_messages_may_be_sent_as_a_prompt(made):
    [message] = unpacked(packed([ModelRequest([ai.UserPromptPart([made])])]))
    content = message["parts"][0]["content"]
    request = run_request(over_the_wire({"agent": "a", "prompt": content}))
    assert messages.prompt(request.prompt) == [made]


BAD: list[tuple[Any, str, str]] = [
    (5, "", "must be text, or a map with a `kind`"),
    ([], "", "must be text, or a map with a `kind`"),
    ({}, "/kind", "is missing"),
    ({"kind": None}, "/kind", "is missing"),
    ({"kind": 5}, "/kind", "input should be 'image-url', 'audio-url'"),
    ({"kind": ["binary"]}, "/kind", "input should be 'image-url', 'audio-url'"),
    ({"kind": "<text>"}, "/kind", "'uploaded-file' or 'cache-point'"),
    ({"kind": "hologram", "url": "x"}, "/kind", "'text-content', 'structured-content', 'binary'"),
    ({"kind": "text-content"}, "/content", "is missing"),
    ({"kind": "text-content", "content": b"x"}, "/content", "valid string"),
    ({"kind": "text-content", "content": "x", "value": 1}, "/value", "is unknown"),
    ({"kind": "structured-content"}, "/value", "is missing"),
    ({"kind": "structured-content", "value": 1, "format": "yaml"}, "/format", "'json' or 'xml'"),
    ({"kind": "structured-content", "value": 1, "tag": "No Tag"}, "/tag", "match pattern"),
    ({"kind": "structured-content", "value": 1, "tag": "system"}, "", "cannot be 'system'"),
    ({"kind": "structured-content", "value": RAW}, "", "cannot be made into text for the model"),
    ({"kind": "structured-content", "value": nested(900)}, "", "cannot be made into text for the model"),
    ({"kind": "structured-content", "value": nested(900), "format": "xml"}, "", "cannot be made into text"),
    ({"kind": "image-url"}, "/url", "is missing"),
    ({"kind": "image-url", "url": ""}, "/url", "at least 1 character"),
    ({"kind": "video-url", "url": "x", "force_download": "allow-local"}, "/force_download", "valid boolean"),
    ({"kind": "audio-url", "url": "x", "data": b"x"}, "/data", "is unknown"),
    ({"kind": "binary", "media_type": "image/png"}, "/data", "is missing"),
    ({"kind": "binary", "data": 5, "media_type": "image/png"}, "/data", "valid bytes"),
    ({"kind": "binary", "data": b"x"}, "/media_type", "is missing"),
    ({"kind": "binary", "data": b"x", "media_type": "x/y", "vendor_metadata": []}, "/vendor_metadata", "dictionary"),
    ({"kind": "uploaded-file", "file_id": "x"}, "/provider_name", "is missing"),
    ({"kind": "uploaded-file", "file_id": "x", "provider_name": "other"}, "/provider_name", "'anthropic', 'openai'"),
    ({"kind": "uploaded-file", "provider_name": "openai"}, "/file_id", "is missing"),
    ({"kind": "cache-point", "ttl": "2h"}, "/ttl", "'5m' or '1h'"),
    ({"kind": "cache-point", "ttl": 5}, "/ttl", "'5m' or '1h'"),
]


@pytest.mark.parametrize(("part", "pointer", "words"), BAD, ids=lambda value: str(value)[:40])
def test_an_invalid_part_is_rejected_with_its_position_and_a_fix(part, pointer, words):
    with pytest.raises(RequestError) as caught:
        messages.prompt(run_request(over_the_wire({"agent": "a", "prompt": ["x", part]})).prompt)
    assert (caught.value.error_type, caught.value.details["errors"][0]["pointer"]) == (
        "invalid_request",
        f"/prompt/1{pointer}",
    )
    assert words in caught.value.message
    with pytest.raises(RequestError, match=f": /content/0{pointer}: "):
        messages.prompt(checked(Steer, over_the_wire({"content": [part]})).content, "/content")
    with pytest.raises(RequestError, match=f": /content/0{pointer}: "):
        messages.prompt(tool_result(over_the_wire({"result": 1, "content": [part]})).content, "/content")


# --- forbidden requests ------- ---------------------------------------------------------------------

LOCAL: dict[str, Any] = {"url": "http://127.0.0.1:1/x.png", "media_type": "image/png", "force_download": "allow-local"}
URL_KINDS = sorted(kind.kind for kind in set(members(ai.UserContent)) - {str} if issubclass(kind, ai.FileUrl))


def in_prompt(item: Any) -> dict[str, Any]:
    return {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": ["x", item]}]}


def in_tool_return(item: Any) -> dict[str, Any]:
    part = {"part_kind": "tool-return", "tool_name": "t", "tool_call_id": "1", "content": {"deep": [item]}}
    return {"kind": "request", "parts": [part]}


def in_native_return(item: Any) -> dict[str, Any]:
    part = {"part_kind": "builtin-tool-return", "tool_name": "t", "tool_call_id": "1", "content": item}
    return {"kind": "response", "parts": [part]}


@pytest.mark.parametrize("kind", URL_KINDS)
@pytest.mark.parametrize(
    ("message", "at"),
    [(in_prompt, "content/1"), (in_tool_return, "content/deep/0"), (in_native_return, "content")],
)
@pytest.mark.parametrize("ask", ["allow-local", "anything", b"allow-local", 1, None])
def test_a_history_cannot_request_downloads_from_local_addresses(kind, message, at, ask):
    item = LOCAL | {"kind": kind, "force_download": ask}
    with pytest.raises(RequestError) as caught:
        messages.load(over_the_wire({"m": [message(item)]})["m"])
    assert caught.value.details["errors"][0]["pointer"] == f"/message_history/0/parts/0/{at}/force_download"


@pytest.mark.parametrize("more", [{}, {"file_id": "x", "provider_name": "openai"}, {"data": b"x"}, {"content": "x"}])
def test_a_map_without_a_kind_is_not_taken_for_a_url(more):
    """A tool result may contain such maps, as data of the tool."""
    for message in (in_tool_return(LOCAL | more), in_native_return(LOCAL | more)):
        loaded = messages.load(over_the_wire({"m": [message]})["m"])
        assert not [each for each in instances(loaded) if isinstance(each, ai.FileUrl)]
        assert b"allow-local" in packed(loaded)
    try:
        loaded = messages.load(over_the_wire({"m": [in_prompt(LOCAL | more)]})["m"])
    except RequestError:
        return
    assert not [each for each in instances(loaded) if isinstance(each, ai.FileUrl)]


def test_the_data_of_a_tool_is_not_taken_for_a_part():
    data = {"force_download": "nightly", "url": "x"}
    sent = [ModelRequest([ai.ToolReturnPart("t", data, "1", timestamp=AT, metadata=data)])]
    assert messages.load(unpacked(packed(sent))) == sent


@pytest.mark.parametrize("more", [{}, {"kind": "structured-content"}, {"kind": "structured-content", "format": "xml"}])
def test_a_deeply_nested_history_is_read_or_rejected(more):
    value = {"value": nested(900), **more}
    for message in (in_prompt(value), in_tool_return(value)):
        try:
            loaded = messages.load(over_the_wire({"m": [message]})["m"])
        except RequestError as refused:
            assert refused.error_type == "invalid_request"
        else:
            assert packed(loaded)


# --- events of a stream -----------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class ProgressEvent(ai.CustomEvent):
    done: int
    raw: bytes = RAW
    at: datetime = AT


@dataclasses.dataclass(kw_only=True)
class BudgetEvent(ai.CapabilityEvent, namespace="budget"):
    left: Decimal
    raw: bytes = RAW


CALL = ai.ToolCallPart("look_up", {"raw": RAW, "at": AT}, **CALLED)
RETURN = ai.ToolReturnPart("look_up", {"file": PDF, "raw": RAW}, **RETURNED)
PROMPTED = ModelRequest([ai.UserPromptPart([PNG, *CONTENT], timestamp=AT)], timestamp=AT)
INFO: dict[str, Any] = {"provider_name": "openai", "provider_details": DETAILS}
DELTAS: list[Any] = [
    ai.TextPartDelta("so", citations_delta=CITATIONS, **INFO),
    ai.ThinkingPartDelta(content_delta="hm", signature_delta="s", **INFO),
    ai.ToolCallPartDelta(tool_name_delta="look", args_delta={"raw": RAW}, tool_call_id="1", **INFO),
    ai.SpeechPartDelta(speaker="user", transcript_delta="h", transcript="oh", audio_chunk=RAW),
]
EVENTS: list[Any] = [
    *[ai.PartStartEvent(index=1, part=part, previous_part_kind="text") for part in RESPONSE_PARTS],
    *[ai.PartEndEvent(index=1, part=part, next_part_kind="file") for part in RESPONSE_PARTS],
    *[ai.PartDeltaEvent(index=1, delta=delta) for delta in DELTAS],
    ai.FinalResultEvent(tool_name="final", tool_call_id="1"),
    ai.EnqueuedMessagesEvent(enqueue_id="1", messages=(PROMPTED,), parts=tuple(REQUEST_PARTS)),
    ai.FunctionToolCallEvent(CALL, args_valid=True),
    ai.FunctionToolResultEvent(RETURN, content=CONTENT),
    ai.ToolAvailabilityDeltaEvent(part=ai.ToolAvailabilityDeltaPart(tools_added=["look_up"])),
    ai.ModelSettingsDeltaEvent(part=ai.ModelSettingsDeltaPart(settings={"thinking": "high"})),
    ai.OutputToolCallEvent(CALL, args_valid=False),
    ai.OutputToolResultEvent(RETURN),
    ai.DeferredToolRequestsEvent(DeferredToolRequests(calls=[CALL], approvals=[CALL], metadata={"1": DETAILS})),
    ai.DeferredToolResultsEvent(
        DeferredToolResults(
            calls={"1": ai.ToolReturn(RAW, content=CONTENT, metadata=DETAILS, tools=["look_up"]), "2": {"raw": RAW}},
            approvals={"3": ToolApproved(override_args={"raw": RAW}), "4": ToolDenied("no"), "5": True},
            metadata={"1": DETAILS},
        )
    ),
    ai.RealtimeTurnCompleteEvent(),
    ai.RealtimeInputSpeechStartEvent(item_id="1"),
    ai.RealtimeInputSpeechEndEvent(item_id="1"),
    ai.RealtimeOutputSpeechStartEvent(),
    ai.RealtimeOutputSpeechEndEvent(),
    ai.RealtimeResponseInterruptedEvent(),
    ai.RealtimeInputTranscriptionErrorEvent("no", type="t", code="c", item_id="1", content_index=2),
    ai.RealtimeSessionReconnectEvent(state_restored=True),
    ai.RealtimeSessionErrorEvent("no", type="t", code="c", recoverable=False),
    ProgressEvent(done=1, tool_call_id="1", tool_name="look_up"),
    BudgetEvent(left=Decimal("0.5"), capability_id="1", tool_call_id="1", tool_name="look_up"),
]


ALL_DELTAS = samples_with_new(ai.ModelResponsePartDelta, DELTAS)
ALL_EVENTS = samples_with_new(
    ai.AgentStreamEvent,
    [*EVENTS, *[ai.PartDeltaEvent(index=1, delta=delta) for delta in ALL_DELTAS if delta not in DELTAS]],
    [*ALL_MESSAGES, ModelRequest(OLD_RETRIES)],
)


def event_over_the_wire(event: Any) -> tuple[bytes, Any]:
    sent: list[Any] = []
    run_stream.Chunks(lambda *chunk: sent.append(chunk), False, lambda: False).relay_whole(event)
    body = packer()({"data": sent[0][1]})
    return body, unpack(body, "it")["data"]


def test_each_event_and_delta_has_a_sample():
    missing = set(members(ai.AgentStreamEvent)) - {type(event) for event in ALL_EVENTS}
    missing -= {base for base in (ai.CustomEvent, ai.CapabilityEvent) if any(isinstance(e, base) for e in EVENTS)}
    missing |= set(members(ai.ModelResponsePartDelta)) - {type(delta) for delta in ALL_DELTAS}
    assert not missing, f"new in pydantic-ai: {missing}. Treat it: give it a sample here, and see that it can be packed"


def test_each_field_of_an_event_is_set_in_some_sample():
    untold = untold_fields(reachable(ai.AgentStreamEvent), [*ALL_EVENTS, *ALL_MESSAGES, ModelRequest(OLD_RETRIES)])
    untold = [name for name in untold if name not in NEVER_TOLD and not name.startswith(FAMILIES)]
    assert not untold, f"new in pydantic-ai: {untold}. Give each another value than its default in a sample"


@pytest.mark.parametrize("event", ALL_EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_packed_as_pydantic_ai_dumps_it(event):
    adapter: Any = TypeAdapter(ai.AgentStreamEvent, config=ConfigDict(ser_json_bytes="base64"))
    body, sent = event_over_the_wire(event)
    back = adapter.validate_python(sent, context=compat.FILES_ARE_REBUILT)
    assert back == event
    if b64encode(RAW) in adapter.dump_json(event):
        assert msgpack.packb(RAW) in body
        assert b64encode(RAW) not in body
    assert all(isinstance(at, datetime) and at.tzinfo is not None for at in times(sent))


def test_an_event_with_values_without_a_plain_form_is_still_sent():
    merge: Any = lambda details: {**(details or {}), "more": 1}  # noqa: E731
    delta = ai.ThinkingPartDelta(content_delta="hm", provider_details=merge)
    _, sent = event_over_the_wire(ai.PartDeltaEvent(index=0, delta=delta))
    assert sent["delta"]["provider_details"] is None
    failed = DeferredToolResults(calls={"1": ToolFailed("no"), "2": ModelRetry("again")})
    _, sent = event_over_the_wire(ai.DeferredToolResultsEvent(failed))
    assert [call["message"] for call in sent["results"]["calls"].values()] == ["no", "again"]
    odd = ai.ToolReturnPart("t", 2**70, "1", metadata={"b": Broken(), "self": holding_itself()})
    _, sent = event_over_the_wire(ai.FunctionToolResultEvent(odd, content=[PNG]))
    assert sent["part"]["content"] == str(2**70)
    assert sent["part"]["metadata"]["b"] == "x=1"
    assert sent["content"][0]["data"] == RAW


def test_an_event_type_that_was_defined_late_is_still_sent():
    event_over_the_wire(ai.RealtimeTurnCompleteEvent())

    @dataclasses.dataclass(kw_only=True)
    class LateEvent(ai.CustomEvent):
        raw: bytes = RAW

    _, sent = event_over_the_wire(LateEvent())
    assert (sent["event_kind"], sent["name"], sent["raw"]) == ("custom", "late", RAW)


@pytest.mark.parametrize("key", ["return_value", "content"])
def test_deferred_results_cannot_request_downloads_from_local_addresses(key):
    part = LOCAL | {"kind": "image-url"}
    given = {"calls": {"1": {"kind": "tool-return", "return_value": 1, key: [part]}}}
    with pytest.raises(RequestError) as caught:
        deferred.results(given, (), Agent(), ())
    pointer = f"/deferred_tool_results/calls/1/{key}/0/force_download"
    assert caught.value.details["errors"][0]["pointer"] == pointer


# --- types that no version of pydantic-ai has -------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class HologramPart:
    """A part or delta that is in none of pydantic-ai's unions."""

    size: int
    raw: bytes = RAW
    at: datetime = AT
    inner: Any = None
    part_kind: str = "hologram"


@dataclasses.dataclass(kw_only=True)
class HologramEvent:
    part: Any
    index: int = 3
    event_kind: str = "hologram"


HOLOGRAM: Any = HologramPart(size=2, inner=[PNG, {"kind": "hologram"}])
HOLOGRAM_MAP = {
    "size": 2,
    "raw": RAW,
    "at": AT,
    "inner": [PDF_MAP | {"identifier": "picture", "media_type": "image/png"}, {"kind": "hologram"}],
    "part_kind": "hologram",
}


def test_an_unknown_part_is_sent_as_a_map_beside_known_parts():
    sent = unpacked(packed([ModelResponse([ai.TextPart("a"), HOLOGRAM, ai.TextPart("b")]), ModelRequest([HOLOGRAM])]))
    assert [part.get("content") for part in sent[0]["parts"]] == ["a", None, "b"]
    assert sent[0]["parts"][1] == HOLOGRAM_MAP
    assert sent[1]["parts"] == [HOLOGRAM_MAP]


def test_an_unknown_part_of_a_history_is_rejected_with_its_position():
    """It would be lost silently otherwise: the model cannot receive it."""
    [request] = unpacked(packed([ModelRequest([ai.UserPromptPart("a"), HOLOGRAM])]))
    with pytest.raises(RequestError, match="/message_history/0/request/parts/1: input tag 'hologram'"):
        messages.load([request])


@pytest.mark.parametrize(
    ("event", "meant"),
    [
        (HologramEvent(part=HOLOGRAM), {"part": HOLOGRAM_MAP, "index": 3, "event_kind": "hologram"}),
        (
            ai.PartStartEvent(index=1, part=HOLOGRAM),
            {"part": HOLOGRAM_MAP, "index": 1, "event_kind": "part_start", "previous_part_kind": None},
        ),
        (
            ai.PartDeltaEvent(index=1, delta=HOLOGRAM),
            {"delta": HOLOGRAM_MAP, "index": 1, "event_kind": "part_delta"},
        ),
    ],
    ids=["event", "part", "delta"],
)
def test_an_unknown_event_part_or_delta_is_sent_as_a_map(event, meant):
    _, sent = event_over_the_wire(event)
    assert meant.items() <= sent.items()


def test_a_text_stream_ignores_unknown_events_parts_and_deltas():
    sent: list[Any] = []
    chunks = run_stream.Chunks(lambda *chunk: sent.append(chunk), False, lambda: False)
    events: list[Any] = [
        HologramEvent(part=HOLOGRAM),
        ai.PartStartEvent(index=0, part=HOLOGRAM),
        ai.PartDeltaEvent(index=0, delta=HOLOGRAM),
        ai.PartStartEvent(index=1, part=ai.TextPart("so")),
    ]
    for event in events:
        chunks.relay(event)
    assert sent == [("text", "so", 1, 1)]
