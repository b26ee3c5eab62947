"""Agents that reveal secrets in every way in which code of operators does; for tests/system/test_secrets.py."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, field_validator
from pydantic_ai import Agent, FunctionToolset, ModelRetry, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings

from tests.support.spans import Recorder

SECRETS = [os.environ[name] for name in ("LEAKY_API_KEY", "LEAKY_TOKEN", "LEAKY_SECRET", "MY_PASSWORD_2")]
LEAK = " ".join(
    [
        *SECRETS,
        os.environ["DATABASE_URL"],
        *map(repr, SECRETS),
        *map(json.dumps, SECRETS),
        *map(quote, SECRETS),
        f"{SECRETS!r}",
        "https://unknown:hard-coded-pw@host.test/x?api_key=hard-coded-key",
    ]
)
SPANS = Path(os.environ["LEAKY_SPANS"])
"""The file to which spans are exported."""
log = logging.getLogger(__name__)

print("printed at import:", LEAK)
print("printed to stderr:", LEAK, file=sys.stderr)
warnings.warn(LEAK, stacklevel=1)
log.info("logged at import: %s", LEAK)


def _export(text: str) -> None:
    with SPANS.open("a") as file:
        file.write(f"{text}\n")


def _always(*parts: Any) -> FunctionModel:
    async def respond(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse(list(parts))

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> Any:
        for part in parts:
            if isinstance(part, TextPart):
                yield part.content
            else:
                from pydantic_ai.models.function import DeltaToolCall

                yield {0: DeltaToolCall(part.tool_name, json.dumps(part.args or {}))}

    return FunctionModel(respond, stream_function=stream)


class Deps(BaseModel):
    """Dependencies whose validator reveals secrets."""

    place: str

    @field_validator("place")
    @classmethod
    def _check(cls, place: str) -> str:
        raise ValueError(f"no place {place}: {LEAK}")


tool_raises = Agent(_always(ToolCallPart("leak", {})), description="Describes " + LEAK)
tool_raises.instrument = InstrumentationSettings(tracer_provider=Recorder(_export))


@tool_raises.tool_plain
def leak() -> str:
    """Raise an exception."""
    log.warning("logged: %s", LEAK, extra={"field": LEAK, "nested": [{"a": LEAK}]})
    log.debug("logged in detail: %s", LEAK)
    threading.Thread(target=_fail).start()
    raise RuntimeError(LEAK)


def _fail() -> None:
    raise RuntimeError(LEAK)


validator_raises = Agent(_always(TextPart("an answer")), retries=0)


@validator_raises.output_validator
async def _validate(_context: RunContext[Any], _output: str) -> str:
    asyncio.get_running_loop().call_soon(_fail)
    raise ModelRetry(LEAK)


model_raises = Agent(FunctionModel(lambda _messages, _info: _fail()))  # type: ignore[arg-type]
takes_deps: Agent[Any, Any] = Agent(_always(TextPart("x")), deps_type=Deps)
undescribed = Agent(_always(TextPart("x")))


@undescribed.toolset
def _no_toolset(_context: RunContext[Any]) -> Any:
    raise RuntimeError(LEAK)


def late() -> Agent[Any, Any]:
    """Set a variable and fail, as code does that reads a .env file and connects to a database."""
    os.environ["LATE_TOKEN"] = "late-" + "token-123456"
    raise RuntimeError(f"no connection with {os.environ['LATE_TOKEN']}: {LEAK}")


def no_toolset() -> FunctionToolset[Any]:
    """Fail."""
    raise RuntimeError(LEAK)
