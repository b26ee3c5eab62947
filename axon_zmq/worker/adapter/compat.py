"""Every use of pydantic-ai behaviour that its documentation does not promise.

Private names, texts of exceptions, frames of tracebacks and the order of internal calls may change in any release. No
other module of this project uses them; test_compat.py finds any other use. It also has a test for each function
and constant below, which fails when pydantic-ai changes the behaviour that the function relies on.

Each docstring names the behaviour (`Relies on`), the reason why the public API is not enough, and the effect of a
change (`If this changes`). All of it was tested with the versions in `VERIFIED`; a docstring that names a version is
about a measurement or a bug of that version.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import FrameType
from typing import Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter
from pydantic_ai import Agent, RunContext
from pydantic_ai import exceptions as ai
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import (
    FileUrl,
    ModelMessage,
    ModelResponse,
    ModelResponseStreamEvent,
    PartStartEvent,
    ToolCallPart,
    UploadedFile,
)
from pydantic_ai.models import Model, ModelRequestContext, StreamedResponse, download_item
from pydantic_ai.providers import Provider
from pydantic_ai.tool_manager import ToolManager
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset
from pydantic_core import SchemaSerializer

from axon_zmq.protocol.plain import plain

T = TypeVar("T")

VERIFIED: Final = ("2.62.0", "2.68.0")
"""Versions of pydantic-ai with which test_compat.py passes."""

# --- texts of exceptions ---------------------------------------------------------------------------

_OUTPUT_RETRIES_TEXT: Final = "Exceeded maximum output retries"
_TOOL_TIMEOUT_TEXT: Final = "Timed out after "
_EXTERNAL_TOOL_TEXT: Final = "External tools cannot be called"


def are_output_retries_exhausted(error: BaseException) -> bool:
    """Whether a run failed because no answer of the model matched the output schema.

    Relies on the text of `UnexpectedModelBehavior`. The class is the same as for every other unusable response of a
    model, without an attribute that distinguishes them. If this changes, the run ends as `model_behavior` instead
    of `invalid_output`.
    """
    return isinstance(error, ai.UnexpectedModelBehavior) and _OUTPUT_RETRIES_TEXT in str(error)


def is_tool_timeout(error: BaseException | None) -> bool:
    """Whether a Python tool took longer than its `timeout`.

    Relies on the text of the `ModelRetry` that `FunctionToolset.call_tool` raises. That method drops the
    `TimeoutError` with `from None`, and a tool may raise `ModelRetry` itself. If this changes, the error is
    `tool_failed` or `model_behavior` instead of `tool_timeout`.
    """
    return isinstance(error, ai.ModelRetry) and error.message.startswith(_TOOL_TIMEOUT_TEXT)


def is_external_tool_approved(error: BaseException) -> bool:
    """Whether a deferred call of an external tool was approved instead of answered with a result.

    Relies on the text of the `RuntimeError` of `ToolManager.execute_tool_call`, which raises no specific class. If this
    changes, the error is `internal` instead of `invalid_request`.
    """
    return str(error) == _EXTERNAL_TOOL_TEXT


def without_model_output(error: ai.UnexpectedModelBehavior) -> str:
    """Return the first line of the message, which repeats nothing of the model's answer.

    Relies on the layout of the text: further lines, and `body`, contain the answer. The exception has no
    attribute for the reason alone. If this changes, error messages may contain parts of an answer.
    """
    return error.message.partition("\n")[0]


def download_failure(error: Exception) -> str | None:
    """Return the reason why a URL of the prompt could not be fetched, without the URL; None for any other error.

    Relies on the traceback passing through `pydantic_ai.models.download_item`, and on the first sentence of the text
    being the reason. The exceptions are `ValueError`, exceptions of the HTTP client, and others, which a tool or a
    model may raise too. If this changes, the error is `internal` instead of `invalid_request`.
    """
    if not any(frame.f_code is download_item.__code__ for frame in _frames(error)):
        return None
    return str(error).partition(". ")[0] or type(error).__name__


# --- origins of exceptions -------------------------------------------------------------------------


def raising_tool(error: Exception) -> str | None:
    """Return the name of the Python tool that raised an exception; None if no tool did.

    Relies on the traceback passing through `FunctionToolset.call_tool`, and on its parameter `name`. pydantic-ai passes
    a tool's exception on unchanged, without the name of the tool. Exceptions of pydantic-ai itself may pass through the
    same frame, but belong to the run and not to the tool. If this changes, the error is `internal` instead of
    `tool_failed`.
    """
    if isinstance(error, ai.AgentRunError | ai.UserError):
        return None
    for frame in _frames(error):
        if frame.f_code is FunctionToolset.call_tool.__code__:
            return str(frame.f_locals.get("name", "?"))
    return None


def is_raised_by_model_code(error: Exception) -> bool:
    """Whether pydantic-ai's code for a provider's API raised an exception itself.

    Relies on that code being in modules below `pydantic_ai.models`. A response that does not have the documented form
    makes it raise `AttributeError`, `LookupError` or `TypeError`, which our own code may raise too. If this changes,
    the error is `internal` instead of `model_behavior`.
    """
    raised_in = ""
    for frame in _frames(error):
        raised_in = str(frame.f_globals.get("__name__"))
    return raised_in.startswith("pydantic_ai.models.")


def _frames(error: Exception) -> Iterator[FrameType]:
    """Yield the frames of an exception's traceback; the last one raised the exception."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


# --- contents of exceptions ------------------------------------------------------------------------


def last_attempt(error: Exception) -> Exception | None:
    """Return the error of the last model that a `FallbackModel` tried; None for any other error.

    Relies on the exception group being in the order of the attempts. Its attribute `attempts` is documented as ordered,
    but does not survive durable execution. If this changes, the error of another model is reported.
    """
    last = error.exceptions[-1] if isinstance(error, ai.FallbackExceptionGroup) else None
    return last if isinstance(last, Exception) else None


def is_unreadable_response(error: Exception) -> bool:
    """Whether a provider's response could not be read, as opposed to an error that the provider reported.

    Relies on `ModelAPIError` itself, and none of its subclasses, being raised for a response that cannot be decoded,
    and on `in_stream` being set only for errors that a provider reported in a stream. This case has no class in
    pydantic-ai. If this changes, the error is `model_unavailable` instead of `model_behavior`.
    """
    return type(error) is ai.ModelAPIError and not error.in_stream


def last_retry(error: BaseException) -> BaseException | None:
    """Return the exception for which pydantic-ai would have asked the model again if the run had retries left.

    Relies on it being the `__cause__`: the same `ModelRetry` object that a tool raised, the `ValidationError` of a
    tool's arguments, or the `ToolRetryError` of an output. `UnexpectedModelBehavior` has no attribute for it. If this
    changes, errors of tools are reported as `model_behavior`, without details.
    """
    return error.__cause__


def retry_faults(cause: BaseException | None) -> Sequence[Mapping[str, object]]:
    """Return the validation errors, in pydantic's form, of an output that came as text; empty if there are none.

    Relies on `ToolRetryError` being the cause of the exception that ends a run without retries left, and on the
    `content` of its part being a list if a schema refused the output. For tools the cause is a `ValidationError`, which
    is public. If this changes, `invalid_output` has no `details.errors`.
    """
    content = getattr(getattr(cause, "tool_retry", None), "content", None)
    return content if isinstance(content, list) else []


def mcp_cause(error: Exception) -> BaseException | None:
    """Return the error of the MCP session from which `MCPToolset` made an exception.

    Relies on the session's error being the `__cause__` of the `ModelRetry` that `MCPToolset.call_tool` raises, even for
    a lost connection, which the model cannot correct. If this changes, a lost MCP server is not recognized, and the
    model is asked to repeat a call that may have been executed.
    """
    return error.__cause__ if isinstance(error, ai.ModelRetry) else error


# --- agents and runs -------------------------------------------------------------------------------


def has_output_validators(agent: Agent[object, object]) -> bool:
    """Whether an agent has output validators; then a run cannot have another output type than the agent's.

    Relies on the attribute `_output_validators`. The only public way to find out is to start a run, which then fails.
    If this changes, every run of such an agent that may defer tool calls fails with `invalid_request`.
    """
    return bool(vars(agent).get("_output_validators"))


WRAPPED_OUTPUT_KEY: Final = "response"
"""Key of the object in which pydantic-ai asks the model for an output that is not an object itself.

Relies on the name that `OutputObjectDefinition` gives to its only property; it is not public. If this changes, `output`
chunks contain the wrapper.
"""


def is_output_wrapped(agent: Agent[object, object], output_type: Any) -> bool:
    """Whether pydantic-ai asks the model for `{"response": output}` in a run with this output type.

    Relies on `output_json_schema` describing the output without the wrapper: if the schema has no property of that
    name, an answer with this only key must be wrapped. pydantic-ai has no public attribute for it. If this changes,
    `output` chunks contain the wrapper.
    """
    return f'"{WRAPPED_OUTPUT_KEY}"' not in json.dumps(agent.output_json_schema(output_type))


def own_messages(captured: Sequence[ModelMessage], history: Sequence[ModelMessage] | None) -> Sequence[ModelMessage]:
    """Return the messages of a failed run without the messages of its history.

    Relies on `capture_run_messages` beginning with the whole history. `new_messages` is a method of a result, which a
    failed run does not have. If this changes, the partial answer of an error repeats the history or lacks messages.
    """
    return captured[len(history or ()) :]


Metadata = dict[str, Any] | None
"""The metadata of a run."""


def metadata_that_shows_context(
    metadata: Metadata, begin: Callable[[RunContext[object]], None]
) -> Callable[[RunContext[object]], Metadata]:
    """Return a run's metadata in the form of a function, through which `begin` receives the context of the run.

    Relies on pydantic-ai calling the function before the first request, and again later, each time with a context whose
    `enqueue` works until the run ends. The documented way, a capability, costs 300 µs for each run (2.62). If this
    changes, `steer` messages are not delivered.
    """

    def resolve(context: RunContext[object]) -> Metadata:
        begin(context)
        return metadata

    return resolve


def pending_message_count(context: RunContext[object]) -> int:
    """Return how many enqueued messages a run has not yet delivered to the model.

    Relies on the attribute `pending_messages`, a field that the documentation of `enqueue` does not name. If this
    changes, a `steer` ends the worker with an internal error, or the number of waiting messages is not limited.
    """
    return len(context.pending_messages or ())


class ModelRequestTasks(AbstractCapability[object]):
    """A capability that records the task of each request to the model.

    Relies on `before_model_request` being called in the task that holds a streamed response open, so that cancelling
    the task closes the response. The task is not part of the public API. If this changes, requests that pydantic-ai
    forgets stay open, with the effect that `modes/open_requests.py` describes (a bug of 2.62).
    """

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[object]] = []

    async def before_model_request(
        self,
        ctx: RunContext[object],  # noqa: ARG002 -- the name is pydantic-ai's
        request_context: ModelRequestContext,
    ) -> ModelRequestContext:
        """Record the current task."""
        if (task := asyncio.current_task()) is not None:
            self.tasks.append(task)
        return request_context


async def call_tool_directly(
    toolset: AbstractToolset[object], context: RunContext[object], call: ToolCallPart
) -> object:
    """Validate and execute one tool call without a model, as if a run had approved it.

    Relies on `ToolManager`, whose methods are documented only in pydantic-ai's source. The public methods of a toolset
    neither validate arguments nor call a tool's own hooks. If this changes, `call_tool` fails as `tool_failed`.

    Raises:
        CallDeferred: The tool is external.
        Exception: Any exception of the validation or of the tool.
    """
    tools = await ToolManager[object](toolset).for_run_step(context)
    definition = tools.get_tool_def(call.tool_name)
    if definition is not None and definition.kind == "external":
        raise ai.CallDeferred
    # Approved, because the application that would approve the call makes it itself.
    valid = await tools.validate_tool_call(call, approved=True, wrap_validation_errors=False)
    return await tools.execute_tool_call(valid, wrap_validation_errors=False)


# --- models ----------------------------------------------------------------------------------------


def share_provider(model: Model, shared: Callable[[Provider[Any]], Provider[Any]]) -> None:
    """Replace a model's provider by the one that `shared` returns for it.

    Relies on the attribute `_provider`, from which the models read the client at each request. `Model.provider` is
    read-only. If this changes, each agent keeps its own provider and its own pool of connections.
    """
    provider = getattr(model, "_provider", None)
    if isinstance(provider, Provider):
        vars(model)["_provider"] = shared(provider)


def can_stream(model: Model) -> bool:
    """Whether a model's class implements streaming.

    Relies on classes that cannot stream not defining `request_stream`, as pydantic-ai itself does. pydantic-ai refuses
    such a model with an error that names it, but not if it is behind a `WrapperModel`. If this changes, that error is
    less clear.
    """
    return type(model).request_stream is not Model.request_stream


def resumes_suspended_response(messages: Sequence[ModelMessage]) -> bool:
    """Whether a request continues a suspended response, whose parts pydantic-ai then numbers again.

    Relies on the last message being that response. A model has no other way to distinguish the two cases. If this
    changes, chunks of a continued response have the numbers of earlier parts.
    """
    return isinstance(messages[-1], ModelResponse)


def resumes_response(event: PartStartEvent) -> bool:
    """Whether the first part of a model response belongs to the previous response, which was suspended.

    Relies on pydantic-ai numbering the parts of both as one response. pydantic-ai has no event for a resumed response.
    If this changes, the `step` of chunks is too high.
    """
    return event.index > 0


def has_event_hooks(context: RunContext[object]) -> bool:
    """Whether a capability of the run has hooks for events, and so must receive each delta.

    Relies on `has_wrap_run_event_stream` and `has_on_event`, by which pydantic-ai decides whether to call the hooks;
    they are not documented. If this changes, such a capability receives merged deltas, or `run_stream` runs fail.
    """
    capability = context.root_capability
    return capability is not None and (capability.has_wrap_run_event_stream or capability.has_on_event)


_EVENT_ITERATOR: Final = "_get_event_iterator"


def replace_events(
    response: StreamedResponse, events: Callable[[], AsyncIterator[ModelResponseStreamEvent]]
) -> Callable[[], AsyncIterator[ModelResponseStreamEvent]]:
    """Let a response read its events from `events` instead of from the provider; return the provider's function.

    Relies on `StreamedResponse` calling its method `_get_event_iterator` once, through the instance, when it is first
    read, and on passing the same event objects on. The public way, iterating over the response, yields
    each event only after pydantic-ai's bookkeeping, whose cost the caller avoids. If this changes, `run_stream` runs
    fail, or their deltas are not relayed.
    """
    original = getattr(response, _EVENT_ITERATOR)
    vars(response)[_EVENT_ITERATOR] = events
    return original


# --- messages --------------------------------------------------------------------------------------


FILES_ARE_REBUILT: Final[Mapping[str, Any]] = {"pydantic_ai": {"rebuild_unrecorded_tool_files": True}}
"""Validation context with which a map in a tool result becomes a file again if the result has no record of its files.

Relies on the names of the context's keys, which the documentation does not have. pydantic-ai 2.68 keeps such maps as
maps by default; without a record, it cannot distinguish them from data of a tool. But clients write tool results
themselves, histories of earlier versions have no record, and `serializer` omits some records. pydantic-ai 2.62 has no
records, ignores the context, and always makes files of such maps. If this changes, files in these results come back as
maps, and the model receives them as text.
"""
_RECORD_KEY: Final = "content_file_digests"
_RECORDING: Final = "_serialize_recording_files"


def serializer(adapter: TypeAdapter[Any]) -> SchemaSerializer:
    """Return a serializer that keeps bytes and times as they are, and applies pydantic-ai's serializers for JSON.

    It also omits the record of a tool result's files if the record is incomplete, see `_record_of_files`.

    Relies on the core schema: the serializers of instruction ids, and of callbacks in deltas, have `when_used: "json"`.
    `ModelMessagesTypeAdapter` cannot read the Python values of these fields again. Of the two public modes, `python`
    keeps these values, and `json` converts bytes and times to text too. If this changes, a client cannot send the
    messages of a `complete` back as `message_history`.
    """
    adapter.rebuild()
    return SchemaSerializer(_adapted(adapter.core_schema))


def _adapted(schema: Any) -> Any:
    if isinstance(schema, dict):
        adapted: dict[Any, Any] = {
            key: "always" if key == "when_used" and item == "json" else _adapted(item) for key, item in schema.items()
        }
        if getattr(adapted.get("function"), "__name__", None) == _RECORDING:
            adapted["function"] = _record_of_files(adapted["function"])
        return adapted
    if isinstance(schema, list | tuple):
        return type(schema)(map(_adapted, schema))
    return schema


def _record_of_files(serialize: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a serializer of tool results that omits pydantic-ai's record of their files if it is incomplete.

    pydantic-ai 2.68 writes a list of digests next to the content of a tool result, and reads a map in the content as a
    file only if its digest is in the list. A digest is made of the JSON form of a file. A file whose `vendor_metadata`
    contains bytes has none, and that of a value which changes on the wire, such as a time in a local time zone, is
    another one when it is read. Such a file would come back as a map. Without a record, it is rebuilt, because `load`
    uses `FILES_ARE_REBUILT`; then any other map with the form of a file becomes one too, as with pydantic-ai 2.62.

    Relies on the name of the serializer in the core schema, and on the key of the record. There is no option to leave
    the record out. If this changes, files with such `vendor_metadata` come back as maps.
    """

    def serialize_with_complete_record(part: Any, handler: Any) -> Any:
        made = serialize(part, handler)
        if isinstance(made, dict) and _RECORD_KEY in made and not all(map(_has_lasting_digest, _files(part))):
            del made[_RECORD_KEY]
        return made

    return serialize_with_complete_record


def _has_lasting_digest(file: FileUrl | UploadedFile) -> bool:
    details = file.vendor_metadata
    try:
        json.dumps(details, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return plain(details) is details


def _files(result: object) -> Iterator[FileUrl | UploadedFile]:
    """Yield the files in a tool result, for which pydantic-ai keeps digests."""
    # A loop instead of recursion, and `seen`: a tool's result may be nested deep, or contain itself.
    pending, seen = [result], set[int]()
    while pending:
        held = pending.pop()
        if isinstance(held, FileUrl | UploadedFile):
            yield held
        elif isinstance(held, str | bytes | int | float | None) or id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, Mapping):
            pending += held.values()
        elif isinstance(held, list | tuple | set | frozenset | deque):
            pending += held
        elif isinstance(held, BaseModel) or (is_dataclass(held) and not isinstance(held, type)):
            pending += vars(held).values() if hasattr(held, "__dict__") else ()
