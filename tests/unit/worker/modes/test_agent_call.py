"""How a worker makes the call of an agent from a request."""

from __future__ import annotations

import asyncio
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel

from axon_zmq.errors import RequestError
from axon_zmq.protocol.requests import run_request
from axon_zmq.worker.modes import agent_call
from tests.support.registries import registry


def settings_for_the_model(given: dict[str, Any]) -> Any:
    """The settings that a model receives for the `model_settings` of a request."""
    received: list[Any] = []

    def respond(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        received.append(info.model_settings)
        return ModelResponse([TextPart("so")])

    call = agent_call.build(
        run_request({"agent": {"model": "echo"}, "prompt": "hi", "model_settings": given}), registry()
    )
    model: Model = FunctionModel(respond)
    asyncio.run(call.agent.run(call.prompt, **{**call.options, "model": model}))
    return received[0]


def test_known_settings_and_the_timeout_are_checked_and_passed_on():
    """pydantic cannot describe `timeout` if the package httpx is installed, without which it is a number."""
    given = {"temperature": 1, "timeout": 2.5, "max_tokens": 5}
    assert settings_for_the_model(given) == given
    with pytest.raises(RequestError, match="/model_settings/timeout"):
        settings_for_the_model({"timeout": "soon"})


@pytest.mark.parametrize(
    ("body", "in_thread"),
    [(b"small", False), (b'{"$ref": "#/$defs/a"}', True), (b"x" * (agent_call.MAX_INLINE_BODY_BYTES + 1), True)],
)
def test_a_body_that_may_take_long_to_read_is_read_in_a_thread(monkeypatch: Any, body: bytes, in_thread: bool):
    threads: list[int] = []
    monkeypatch.setattr(agent_call, "call_for_run", lambda _run, _registry: threads.append(get_ident()))
    run: Any = SimpleNamespace(body=body)
    asyncio.run(agent_call.call_for_run_in_thread(run, registry()))
    assert (threads[0] != get_ident()) is in_thread
