"""Model settings of a request: known ones are checked, and those of providers arrive unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel

from axon_zmq.errors import RequestError
from axon_zmq.protocol.requests import run_request
from axon_zmq.worker.modes import agent_call
from tests.support.registries import registry

PROVIDERS = ("anthropic", "bedrock", "google", "litellm", "ollama", "openai", "openrouter", "vllm")


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


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_setting_of_a_provider_that_nobody_has_seen_is_passed_on_unchanged(provider):
    given = {f"{provider}_invented": {"deep": [1, b"\xff", None]}}
    assert settings_for_the_model(given) == given


@pytest.mark.parametrize("name", ["temprature", "invented_setting", "_x", ""])
def test_a_setting_that_belongs_to_no_provider_is_rejected(name):
    with pytest.raises(RequestError, match="is unknown: remove it or correct its spelling"):
        settings_for_the_model({name: 1})
