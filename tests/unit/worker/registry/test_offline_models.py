"""Models that need no network, and the bounds of their answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, StructuredDict
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model
from pydantic_ai.models.test import TestModel

from axon_zmq.errors import ModelError, RequestError
from axon_zmq.worker.registry import generated_size, offline_models
from axon_zmq.worker.registry.models import Models

MOST = offline_models.MAX_OUTPUT_CHARS

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_synthetic_model_names_are_parsed():
    assert offline_models.pace_of("") == offline_models.Pace(50, 20, 5)
    assert offline_models.pace_of("tokens=3,delay_ms=0,size=1") == offline_models.Pace(3, 0, 1)
    for wrong in ("tokens=x", "tokens=-1", "tokens=1000001", "tokens", "size=0", "temperature=1"):
        with pytest.raises(RequestError, match="unknown_model"):
            offline_models.pace_of(wrong)


def test_a_synthetic_model_with_too_much_output_is_refused_with_value_limit_and_fix():
    offline_models.pace_of(f"tokens={MOST // 64},delay_ms=0,size=64")
    with pytest.raises(RequestError) as caught:
        offline_models.pace_of("tokens=1000000,delay_ms=0,size=65536")
    assert caught.value.error_type == "unknown_model"
    for part in ("65536000000 characters", f"{MOST}", "use fewer or smaller tokens"):
        assert part in caught.value.message


async def test_the_answers_of_one_run_are_bounded_together():
    agent = Agent(offline_models.synthetic(f"tokens={MOST // 128},delay_ms=0,size=64"))

    @agent.output_validator
    def again(_output: str) -> str:
        raise ModelRetry("again")

    with pytest.raises(
        ModelError, match=f"would have {MOST // 2 * 3} characters, the limit of offline models is {MOST}"
    ):
        await agent.run("x", retries=50)


async def test_an_answer_within_the_limit_is_complete_and_earlier_runs_do_not_count():
    agent = Agent(offline_models.synthetic(f"tokens={MOST // 64},delay_ms=0,size=64"))
    first = await agent.run("x")
    assert len(first.output) == MOST
    assert first.usage.output_tokens == MOST // 4
    assert len((await agent.run("x", message_history=first.all_messages())).output) == MOST


@pytest.mark.parametrize("text", ["a " * 500_000, "x" * 1_000_000, "a," * 500_000, "\n" * 300_000, "one two"])
async def test_echo_streams_any_prompt_in_a_bounded_number_of_deltas(text: str):
    agent = Agent(offline_models.echo())
    async with agent.run_stream(text) as run:
        deltas = [delta async for delta in run.stream_text(delta=True, debounce_by=None)]
    assert "".join(deltas) == text
    assert len(deltas) <= offline_models.MAX_PIECES + 1
    assert max(map(len, deltas)) <= offline_models.MAX_PIECE_CHARS


async def test_echo_repeats_a_prompt_of_any_length_once():
    agent = Agent(offline_models.echo())
    long = "x" * (MOST + 1)
    assert (await agent.run(long)).output == long

    @agent.output_validator
    def again(_output: str) -> str:
        raise ModelRetry("again")

    with pytest.raises(ModelError, match=r"model 'echo': .* shorten the prompt"):
        await agent.run(long)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (json.dumps([{"name": "a"}] * 2001), r"2001 calls, the limit is 2000"),
        (" " * MOST + "[]", rf"{MOST + 2} characters, the limit is {MOST // 2}"),
    ],
)
async def test_a_script_of_the_model_tools_is_bounded(prompt: str, says: str):
    with pytest.raises(ModelError, match=f"model 'tools': its script has {says}: send a shorter prompt"):
        await Agent(offline_models.tools()).run(prompt)


ENDLESS = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    "field",
    [
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 10**9, "items": {"type": "null"}},
        {"type": "array", "minItems": 10**9},
        {"type": "array", "minItems": 999, "items": {"type": "array", "minItems": 999, "items": {"type": "null"}}},
        {"type": "array", "minItems": 1000, "items": {"const": "x" * 1000}},
        {"type": "array", "minItems": 1000, "items": {"enum": ["x" * 1000]}},
        {"type": "array", "prefixItems": [{"type": "string", "minLength": 10**9}]},
        {"type": "object", "additionalProperties": {"type": "string", "minLength": 10**9}},
        {"anyOf": [{"type": "string", "minLength": 10**9}]},
        {"oneOf": [{"type": "string", "minLength": 10**9}]},
        {"$ref": "#/$defs/level0"},
        ENDLESS,
    ],
)
async def test_the_model_test_refuses_schemas_that_demand_a_large_value(field: dict[str, Any]):
    def pair(name: str) -> dict[str, Any]:
        both = {side: {"$ref": f"#/$defs/{name}"} for side in ("left", "right")}
        return {"type": "object", "properties": both, "required": ["left", "right"]}

    definitions = {f"level{n}": pair(f"level{n + 1}") for n in range(30)} | {"level30": {"type": "null"}}
    definitions["a"] = {"type": "array", "items": ENDLESS, "minItems": 1}
    schema = {"type": "object", "properties": {"f": field}, "required": ["f"], "$defs": definitions}
    model = Models(None).named("test")
    assert isinstance(model, TestModel)
    tool = type("Definition", (), {"name": "big", "parameters_json_schema": schema})
    with pytest.raises(ModelError, match=r"model 'test': the schema of 'big' demands .* lower its minLength"):
        model.gen_tool_args(tool)  # pyright: ignore[reportArgumentType]


async def test_the_model_test_answers_as_pydantic_ai_does_and_refuses_long_texts():
    schema = {
        "type": "object",
        "properties": {"f": {"type": "array", "minItems": 3, "items": {"type": "string", "minLength": 5}}},
        "required": ["f"],
        "title": "X",
    }
    agent = Agent(Models(None).named("test"), output_type=StructuredDict(schema))
    assert (await agent.run("x")).output == {"f": ["aaaaa"] * 3}
    async with agent.run_stream("x") as run:
        assert await run.get_output() == {"f": ["aaaaa"] * 3}
    with pytest.raises(ModelError, match="a text of 2097153 characters, the limit is 2097152"):
        await agent.run("x" * 2097153)


def test_the_size_of_a_recursive_but_optional_value_is_small():
    tree = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/tree"}},
        "required": ["name"],
    }
    assert generated_size.of({"$ref": "#/$defs/tree", "$defs": {"tree": tree}}, 1000) < 100
    assert generated_size.of({"$ref": "#/$defs/missing"}, 1000) < 100
    assert generated_size.of(True, 1000) < 100


@pytest.mark.parametrize("name", ["echo", "tools", "test", "synthetic:", "synthetic:tokens=1"])
def test_clients_name_offline_models_only_if_the_operator_allows_it(name: str):
    assert isinstance(Models(None, offline=True).named_by_client(name), Model)
    models = Models(None, offline=False)
    with pytest.raises(RequestError) as caught:
        models.named_by_client(name)
    assert caught.value.error_type == "unknown_model"
    assert "AXON_OFFLINE_MODELS=true" in caught.value.message
    assert isinstance(models.named(name), Model)  # for registered agents and AXON_MODEL


async def test_usage_is_estimated_by_pydantic_ai_for_short_texts_only():
    agent = Agent(offline_models.echo())
    assert (await agent.run("one two three")).usage.output_tokens == 3
    long = "a " * 50_000
    history = [ModelRequest(parts=[UserPromptPart(long)]), ModelResponse(parts=[TextPart("ok")])]
    assert (await agent.run("one", message_history=history)).usage.input_tokens == 50 + (len(long) + 5) // 4
