"""A sample of each type of content, message part and event that pydantic-ai has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic_ai import messages as ai
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.usage import RequestUsage

from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.adapter import messages

RAW = b"\x00\xff raw bytes \xfe\x89PNG"
"""Bytes that are not UTF-8 and whose base64 form occurs nowhere else."""
AT = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)


DETAILS = {"signature": RAW, "at": AT, "deep": {"list": [1, "two", RAW]}}
URL = {"force_download": True, "media_type": "x/y", "identifier": "mine", "vendor_metadata": DETAILS}
PDF = ai.BinaryContent(RAW, media_type="application/pdf", identifier="mine", vendor_metadata=DETAILS)
PNG = ai.BinaryImage(RAW, media_type="image/png", identifier="picture", vendor_metadata=DETAILS)
WAV = ai.BinaryContent(RAW, media_type="audio/wav")

CONTENT: list[Any] = [
    "text",
    ai.TextContent("text", metadata={"raw": RAW, "at": AT}),
    ai.StructuredContent({"raw": RAW, "at": AT}, content="told", tag="state", description="What is", metadata=DETAILS),
    ai.StructuredContent({"n": 1}, format="xml", tag="state"),
    ai.ImageUrl("https://example.org/picture", **URL),
    ai.AudioUrl("https://example.org/sound", **URL),
    ai.DocumentUrl("https://example.org/paper", **URL),
    ai.VideoUrl("https://example.org/film", **URL),
    ai.ImageUrl("https://example.org/no-type"),
    ai.VideoUrl("https://youtu.be/x"),
    PDF,
    PNG,
    ai.UploadedFile("file-1", "openai", media_type="x/y", identifier="mine", vendor_metadata=DETAILS),
    ai.CachePoint(ttl="1h"),
]
FILES = [item for item in CONTENT if isinstance(item, ai.MULTI_MODAL_CONTENT_TYPES)]
TOOL_RETURNS: list[Any] = ["text", *FILES, FILES, {"file": PDF, "list": [PNG, {"raw": RAW}]}, 5, None, [AT, RAW]]

INSTRUCTION = ai.InstructionId(ai.ToolsetInstructionSource("weather"), name="limits")
SOURCES = [
    ai.AgentInstructionSource(),
    ai.ToolsetInstructionSource("weather"),
    ai.CapabilityInstructionSource("budget"),
    ai.RunInstructionSource(),
]
RETURNED: dict[str, Any] = {"tool_call_id": "1", "metadata": DETAILS, "timestamp": AT}
PROVIDED: dict[str, Any] = {"id": "x", "provider_name": "openai", "provider_details": DETAILS}
CALLED: dict[str, Any] = {"tool_call_id": "1", **PROVIDED}
FOUND: Any = {"discovered_tools": [{"name": "look_up"}], "message": "one"}
RETRY: Any = ai.RetryInfo(cause="validation_error", attempt=1, max_retries=3)
FAULTS: Any = [{"type": "missing", "loc": ("a", 0), "msg": "Field required", "input": {"raw": RAW}}]

REQUEST_PARTS: list[Any] = [
    ai.SystemPromptPart("be kind", timestamp=AT, dynamic_ref="f", scope="request", metadata=DETAILS),
    ai.UserPromptPart("text", timestamp=AT),
    *[ai.UserPromptPart([item], timestamp=AT) for item in CONTENT],
    ai.SpeechPart(speaker="user", transcript="hm", audio=WAV, interrupted_at_ms=5, **PROVIDED),
    ai.ToolSearchReturnPart(content=FOUND, **RETURNED),
    ai.LoadCapabilityReturnPart(content={"message": "loaded", "instructions": "do"}, **RETURNED),
    *[ai.ToolReturnPart("look_up", item, **RETURNED) for item in TOOL_RETURNS],
    ai.ToolReturnPart("look_up", "no", **RETURNED, outcome="retried", retry=RETRY, tool_kind="shop.look_up"),
    ai.RetryFeedbackPart(FAULTS, retry=RETRY, timestamp=AT),
    ai.RetryFeedbackPart("shorter", retry=ai.RetryInfo(cause="model_retry"), timestamp=AT),
    ai.ToolAvailabilityDeltaPart(tools_added=["look_up"], tool_call_id="1"),
    ai.ModelSettingsDeltaPart(settings={"thinking": "high"}, top_level=True),
    *[
        ai.InstructionDeltaPart(id=ai.InstructionId(source, name="limits"), content="less", base_hash="00")
        for source in SOURCES
    ],
    ai.InstructionBaselinePart(
        instructions=[
            ai.InstructionPart("be brief", dynamic=True, on_change="append", name="limits", id=INSTRUCTION),
            ai.InstructionDigest(id=INSTRUCTION, dynamic=True, content_hash="00"),
        ]
    ),
    ai.CompactionPart("a summary", metadata=DETAILS),
]
CITATIONS = [
    ai.Citation(
        [ai.WebCitationSource("https://example.org", title="Example", excerpts=["so"])],
        anchor=ai.ContentCitationAnchor(start=0, end=2),
    ),
    ai.Citation(
        [ai.DocumentCitationSource(document_id="1", title="Paper", excerpts=["so"])],
        anchor=ai.MarkerCitationAnchor(start=0, end=2),
    ),
]
RESPONSE_PARTS: list[Any] = [
    ai.TextPart("so it is", citations=CITATIONS, **PROVIDED),
    ai.ToolSearchCallPart(args={"queries": ["weather"]}, **CALLED),
    ai.LoadCapabilityCallPart(args={"id": "budget"}, **CALLED),
    ai.ToolCallPart("look_up", {"raw": RAW, "at": AT, "n": 2**64 - 1}, **CALLED, tool_kind="shop.look_up"),
    ai.ToolCallPart("look_up", '{"a": 1', **CALLED),
    ai.NativeToolSearchCallPart(args={"queries": ["weather"]}, **CALLED),
    ai.NativeToolCallPart("web_search", {"query": "x"}, **CALLED, tool_kind="shop.look_up"),
    ai.NativeToolSearchReturnPart(content=FOUND, **RETURNED, provider_name="openai", provider_details=DETAILS),
    ai.NativeToolReturnPart(
        "web_search",
        {"file": PDF},
        **RETURNED,
        provider_name="openai",
        provider_details=DETAILS,
        outcome="failed",
        tool_kind="shop.look_up",
    ),
    ai.ThinkingPart("hm", signature="s", **PROVIDED),
    ai.CompactionPart("a summary", metadata=DETAILS, **PROVIDED),
    ai.FilePart(PDF, **PROVIDED),
    ai.FilePart(PNG, **PROVIDED),
    ai.SpeechPart(speaker="assistant", transcript="hm", audio=WAV, interrupted_at_ms=5, **PROVIDED),
]

COUNTS = ("input_tokens", "cache_write_tokens", "cache_write_1h_tokens", "cache_read_tokens", "output_tokens")
USAGE = RequestUsage(
    **dict.fromkeys(COUNTS, 7),
    unmeasured_requests=1,
    output_reasoning_tokens=7,
    input_audio_tokens=7,
    cache_audio_read_tokens=7,
    output_audio_tokens=7,
    audio_seconds=1.5,
    details={"searches": 2},
    cost=Decimal("0.00123"),
    images=3,  # not a field: pydantic-ai also keeps further counts of providers
)
RUN: dict[str, Any] = {"run_id": "r", "conversation_id": "c", "metadata": DETAILS, "timestamp": AT}
ATTEMPT = ai.ModelRequestAttempt(
    model_name="m",
    provider_name="openai",
    outcome="error",
    error="E: no",
    timestamp=AT,
    duration=timedelta(seconds=1, microseconds=1),
    usage=RequestUsage(input_tokens=7, audio_seconds=1.5),
)
WHOLE: list[Any] = [
    ModelRequest([ai.UserPromptPart("text", timestamp=AT)], instructions="be kind", state="interrupted", **RUN),
    ModelResponse(
        [ai.TextPart("so")],
        usage=USAGE,
        model_name="m",
        provider_name="openai",
        provider_url="https://example.org",
        provider_details=DETAILS,
        provider_response_id="resp",
        finish_reason="length",
        workspace_ref=ai.WorkspaceRef(provider="p", id="1"),
        history_digest="00",
        failed_attempts=[ATTEMPT],
        state="interrupted",
        **RUN,
    ),
]
MESSAGES: list[Any] = [
    *WHOLE,
    *[ModelRequest([part]) for part in REQUEST_PARTS],
    *[ModelResponse([part], timestamp=AT, usage=USAGE) for part in RESPONSE_PARTS],
]


def packed(given: list[Any]) -> bytes:
    """Messages as the terminal message of a run contains them, unpacked."""
    return packer()({"messages": messages.dump(given)})


def unpacked(body: bytes) -> list[dict[str, Any]]:
    return unpack(body, "the body")["messages"]


def told(message: Any) -> str:
    part = message.parts[0]
    inside = part.content[0] if isinstance(part, ai.UserPromptPart) else getattr(part, "content", None)
    return f"{type(part).__name__}-{type(inside).__name__}"


MORE: dict[str, Any] = {"media_type": "x/y", "identifier": "mine", "vendor_metadata": {"raw": RAW, "at": AT}}
PARTS: list[tuple[dict[str, Any], Any]] = [
    ({"kind": "text-content", "content": "x", "metadata": {"raw": RAW}}, ai.TextContent("x", metadata={"raw": RAW})),
    ({"kind": "structured-content", "value": {"n": 1}}, ai.StructuredContent({"n": 1})),
    (
        {"kind": "structured-content", "value": [1, 2], "format": "xml", "tag": "n", "description": "Numbers"},
        ai.StructuredContent([1, 2], format="xml", tag="n", description="Numbers"),
    ),
    (
        {"kind": "structured-content", "value": {"raw": RAW, "at": AT}, "content": "told", "metadata": 5},
        ai.StructuredContent({"raw": RAW, "at": AT}, content="told", metadata=5),
    ),
    *[
        ({"kind": kind, "url": "https://example.org/it", "force_download": True, **MORE}, made)
        for kind, made in {
            "image-url": ai.ImageUrl("https://example.org/it", force_download=True, **MORE),
            "audio-url": ai.AudioUrl("https://example.org/it", force_download=True, **MORE),
            "document-url": ai.DocumentUrl("https://example.org/it", force_download=True, **MORE),
            "video-url": ai.VideoUrl("https://example.org/it", force_download=True, **MORE),
        }.items()
    ],
    ({"kind": "image-url", "url": "https://example.org/a.png"}, ai.ImageUrl("https://example.org/a.png")),
    ({"kind": "image-url", "url": "https://example.org/no-type"}, ai.ImageUrl("https://example.org/no-type")),
    ({"kind": "binary", "data": RAW, **MORE}, ai.BinaryContent(RAW, **MORE)),
    ({"kind": "binary", "data": RAW, "media_type": "image/png"}, ai.BinaryImage(RAW, media_type="image/png")),
    (
        {"kind": "uploaded-file", "file_id": "file-1", "provider_name": "openai", **MORE},
        ai.UploadedFile("file-1", "openai", **MORE),
    ),
    ({"kind": "cache-point"}, ai.CachePoint()),
    ({"kind": "cache-point", "ttl": "1h"}, ai.CachePoint(ttl="1h")),
]
MAPS = [part for part, _ in PARTS]
