"""Executes one Python tool without a model: `call_tool`, by the workers of mode `run`."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError
from pydantic_ai import ModelRetry, RunContext, ToolReturn
from pydantic_ai.exceptions import CallDeferred, ToolFailed
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.usage import RunUsage

from axon_zmq.errors import AxonError
from axon_zmq.protocol.requests import CallRequest, checked, invalid
from axon_zmq.worker.adapter import compat, errors, messages
from axon_zmq.worker.registry import offline_models
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.run import Run


class CallTool:
    """The executor of `call_tool`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def execute(self, run: Run) -> dict[str, Any]:
        """Call the tool and return the body of `complete`.

        Raises:
            AxonError: `invalid_request` for invalid arguments, `unknown_agent`, `unknown_tool`, `tool_timeout`,
                `tool_failed`, `cancelled`.
        """
        request = checked(CallRequest, run.read_body())
        if run.is_ending:  # asked to end before `on_end` was set
            raise AxonError.of("cancelled", "cancelled before it was started")
        # A separate task, which `on_end` can cancel: `run.token` has no effect on a tool without an agent.
        call = asyncio.ensure_future(self._call(request))
        run.on_end = call.cancel
        try:
            return completed(await call)
        except asyncio.CancelledError:
            raise AxonError.of("cancelled", "cancelled") from None
        except AxonError:
            raise
        except Exception as error:
            raise _converted(request.tool, error) from error

    async def _call(self, request: CallRequest) -> Any:
        found = await self._registry.find_tool(request.tool, request.agent)
        deps = request.deps if found.registered is None else found.registered.deps(request.deps)
        model = None if found.registered is None else found.registered.agent.model
        # A context needs a model, which is never called here.
        context = RunContext[object](
            deps=deps, model=model if isinstance(model, Model) else offline_models.echo(), usage=RunUsage()
        )
        toolset = await found.toolset.for_run(context)
        async with toolset:
            return await compat.call_tool_directly(toolset, context, ToolCallPart(request.tool, request.args))


def completed(returned: object) -> dict[str, Any]:
    """Return the body of `complete`, without `seq`: as for a run, plus the content and metadata of a `ToolReturn`."""
    body: dict[str, Any] = {
        "result": returned,
        "usage": messages.usage(RunUsage(tool_calls=1)),
        "messages": [],
        "finish_reason": None,
        "model": None,
        "run_id": None,
    }
    if isinstance(returned, ToolReturn):
        body |= {"result": returned.return_value, "content": returned.content, "metadata": returned.metadata}
    return body


def _converted(tool: str, error: Exception) -> AxonError:
    match error:
        case ValidationError():
            return errors.invalid_value(error, "/args")
        case ModelRetry() if compat.is_tool_timeout(error):
            return AxonError.of("tool_timeout", f"tool {tool!r}: {error.message}", {"tool": tool})
        case ModelRetry() | ToolFailed():
            return errors.ReportedByToolError("tool_failed", f"tool {tool!r}: {error.message}", {"tool": tool})
        case CallDeferred():
            return invalid([("/tool", f"{tool!r} is not executed here: it is an external tool, without Python code")])
        case _:
            return errors.raised_by(tool, error)
