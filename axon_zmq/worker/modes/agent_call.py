"""Builds the arguments of `Agent.run` from a request body, and the body of `complete` from a result.

The three modes differ only in how they call the agent. The steps before and after the call are the same, and are here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import (
    Agent,
    AgentRunResult,
    DeferredToolRequests,
    NativeOutput,
    PromptedOutput,
    UsageLimits,
    capture_run_messages,
)
from pydantic_ai.messages import UserContent
from pydantic_ai.usage import RunUsage

from axon_zmq.protocol import limits
from axon_zmq.protocol.requests import OutputMode, Retries, RunRequest, from_validation, invalid, run_request
from axon_zmq.worker import run_logs
from axon_zmq.worker.adapter import compat, deferred, errors, model_settings
from axon_zmq.worker.adapter import messages as wire_messages
from axon_zmq.worker.adapter.client_tools import RemoteTool, RemoteToolset, remote_tools
from axon_zmq.worker.adapter.output import output_type
from axon_zmq.worker.adapter.tool_wait import ToolWatch
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.run import Run

MAX_INLINE_BODY_BYTES: Final = 4 * limits.KIB
"""Bytes up to which a body is read on the event loop. Larger bodies contain schemas or long histories, which may take
long to read, and are read in a thread; so are bodies with a schema that has references."""
_USAGE_LIMITS: Final = TypeAdapter(UsageLimits)


@dataclass(slots=True, kw_only=True)
class AgentCall:
    """The arguments of one call of `Agent.run`, built from a request body."""

    agent: Agent[object, object]
    prompt: str | list[UserContent] | None
    options: dict[str, Any]
    """Keyword arguments that `Agent.run` and `Agent.run_sync` share."""
    events: Literal["text", "all"]
    """Which events the client requested."""
    text_is_output: bool
    """Whether the structured output comes as text (`native`, `prompted`) and not through a tool."""
    usage: RunUsage = field(default_factory=RunUsage)
    """pydantic-ai adds the run's usage here, so that it is known even if the run fails."""

    def output_is_wrapped(self) -> bool:
        """Whether pydantic-ai asks the model for `{"response": output}`, as it does if the output is not an object."""
        return compat.is_output_wrapped(self.agent, self.options["output_type"])

    @contextmanager
    def converted_errors(self) -> Generator[None]:
        """Convert an exception of the agent to the error of the protocol, with the partial answer.

        Raises:
            AxonError: For any `Exception` of the agent.
        """
        with capture_run_messages() as messages:
            try:
                yield
            except Exception as error:
                own = compat.own_messages(messages, self.options.get("message_history"))
                raise errors.explain(error, own, self.usage) from error


def call_for_run(run: Run, registry: Registry) -> AgentCall:
    """Build the call of an agent from a run's request, with the client's tools, steering and logs.

    Raises:
        AxonError: As `build`.
    """
    try:
        return _call_for_run(run, registry)
    finally:
        run.post(run.body_was_read)


def _call_for_run(run: Run, registry: Registry) -> AgentCall:
    request = run_request(run.read_body())
    run_logs.handler.listen(run, request.log)
    tools = remote_tools(request.tools or ())
    call = build(request, registry, tools)
    call.options["metadata"] = run.steering.attach_to(request.metadata)
    if tools:
        call.options["toolsets"] = [RemoteToolset(tools=tools, calls=run.remote, post=run.post, wait=run.wait)]
        if any(tool.data.mode == "live" for tool in tools):
            call.options["capabilities"] = [ToolWatch(run.wait)]
    return call


async def call_for_run_in_thread(run: Run, registry: Registry) -> AgentCall:
    """Build the call as `call_for_run` does; in a thread if reading takes long, because other runs share the loop."""
    # Replacing the references of a small schema may take 50 ms, because targets may be referred to again and again.
    if len(run.body) <= MAX_INLINE_BODY_BYTES and b"$ref" not in run.body:
        return call_for_run(run, registry)
    return await asyncio.to_thread(call_for_run, run, registry)


def build(request: RunRequest, registry: Registry, tools: Sequence[RemoteTool] = ()) -> AgentCall:
    """Build the call of an agent from a request.

    Raises:
        AxonError: `invalid_request`, `unknown_agent`, `unknown_model`, `model_auth`, `too_large`.
    """
    options: dict[str, Any] = {
        "message_history": wire_messages.load(request.message_history),
        "usage_limits": _usage_limits(request.usage_limits),
        "metadata": request.metadata,
        "infer_name": False,  # pydantic-ai would name the agent after a local variable of this package
    }
    data = request.agent
    settings = model_settings.checked(request.model_settings, allowed=registry.allowed_settings)
    retries = request.retries
    if isinstance(data, str):
        registered = registry.named(data)
        agent = registered.agent
        may_defer = deferred.may_defer(agent)
        options["deps"] = registered.deps(request.deps)
        # A model that the agent has by name is made here, with the shared provider: pydantic-ai would rebuild the
        # provider's client in every run, which takes 35 ms.
        if request.model is not None:
            options["model"] = registry.models.named_by_client(request.model)
        elif isinstance(agent.model, str):
            options["model"] = registry.models.named(agent.model)
        output = _output(request.output_schema, request.output_mode or "tool", "/output_schema")
    else:
        agent = registry.from_data(data, request.model)
        may_defer = True
        options["deps"] = request.deps
        own = model_settings.checked(data.model_settings, "/agent/model_settings", registry.allowed_settings)
        settings = {**own, **settings}
        retries = data.retries if retries is None else retries
        output = _output(data.output_schema, request.output_mode or data.output_mode, "/agent/output_schema")
        if request.output_schema is not None:
            output = _output(request.output_schema, request.output_mode or data.output_mode, "/output_schema")
    options["model_settings"] = settings or None
    options["retries"] = retries.model_dump(exclude_none=True) if isinstance(retries, Retries) else retries
    if request.deferred_tool_results is not None:
        earlier = options["message_history"] or ()
        options["deferred_tool_results"] = deferred.results(request.deferred_tool_results, tools, agent, earlier)
    if output is not None or may_defer or any(tool.kind != "function" for tool in tools):
        output = deferred.allowed(agent, output)
    options["output_type"] = output
    call = AgentCall(
        agent=agent,
        prompt=wire_messages.prompt(request.prompt),
        options=options,
        events=request.events,
        text_is_output=_comes_as_text(output or agent.output_type),
    )
    options["usage"] = call.usage
    return call


def _comes_as_text(output: object) -> bool:
    types: Sequence[Any] = output if isinstance(output, list | tuple) else [output]
    return any(isinstance(each, NativeOutput | PromptedOutput) for each in types)


def _output(output_schema: dict[str, Any] | None, mode: OutputMode, pointer: str) -> Any:
    return None if output_schema is None else output_type(output_schema, mode, pointer)


def _usage_limits(usage_limits: Mapping[str, object] | None) -> UsageLimits | None:
    if usage_limits is None:
        return None
    known = {field.name for field in dataclasses.fields(UsageLimits)}
    if unknown := [key for key in usage_limits if key not in known]:
        raise invalid([(f"/usage_limits/{unknown[0]}", f"is unknown: expected one of {', '.join(sorted(known))}")])
    try:
        return _USAGE_LIMITS.validate_python(usage_limits)
    except ValidationError as error:
        raise from_validation(error, "/usage_limits") from None


def completed(result: AgentRunResult[object]) -> dict[str, Any]:
    """Return the body of `complete`, without `seq`."""
    response = result.response
    output = result.output
    is_deferred = isinstance(output, DeferredToolRequests)
    return {
        **({"deferred": deferred.requested(output)} if is_deferred else {"result": output}),
        "usage": wire_messages.usage(result.usage),
        "messages": wire_messages.dump(result.new_messages()),
        "finish_reason": response.finish_reason,
        "model": response.model_name,
        "run_id": result.run_id,
    }
