"""Requests may tune the model's answers, and neither choose another model nor use other credentials."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.models.openai import OpenAIChatModelSettings, OpenAIResponsesModelSettings
from pydantic_ai.settings import ModelSettings

from axon_zmq.errors import RequestError
from axon_zmq.worker.adapter import compat
from axon_zmq.worker.adapter.model_settings import REFUSED_IN_BODY, REFUSED_SETTINGS, checked, unknown_entries


def refusal(settings: Any, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        checked(settings, **options)
    assert caught.value.error_type == "invalid_request"
    return caught.value


def pointers(error: RequestError) -> list[str]:
    return [each["pointer"] for each in error.details["errors"]]


def test_ordinary_settings_pass_unchanged():
    settings = {
        "temperature": 0.5,
        "max_tokens": 5,
        "openai_reasoning_effort": "low",
        "anthropic_thinking": {"type": "disabled"},
        "openrouter_reasoning": {"effort": "low"},
        "extra_body": {"top_k": 5, "min_p": 0.1, "response_format": {"n": 1, "model": 2}, "max_tokens": 7},
        "extra_headers": {"X-Title": "app", "User-Agent": "me/1", "anthropic-beta": "x", "session_id": "5"},
    }
    assert checked(settings) == settings
    assert checked(None) == checked({}) == {}


@pytest.mark.parametrize("key", sorted(REFUSED_IN_BODY))
def test_each_refused_key_of_the_body_can_be_allowed(key: str):
    settings = {"extra_body": {"top_k": 5, key: "x"}}
    error = refusal(settings)
    assert pointers(error) == [f"/model_settings/extra_body/{key}"]
    assert f"AXON_ALLOWED_MODEL_SETTINGS=extra_body.{key}" in error.message
    assert checked(settings, allowed=[f"extra_body.{key}"]) == settings
    refusal(settings, allowed=["extra_body.top_k", f"extra_headers.{key}"])


@pytest.mark.parametrize("key", ["Model", "MODEL", "bestOf", "candidateCount", "candidate-count", "apiKey", "Stream"])
def test_other_spellings_of_a_key_are_refused_too(key: str):
    assert pointers(refusal({"extra_body": {key: 1}})) == [f"/model_settings/extra_body/{key}"]


def test_nested_bodies_are_checked():
    body = {"extra_body": {"google": {"x": 1}, "model": "y"}, "generationConfig": {"candidateCount": 5}}
    error = refusal({"extra_body": body})
    place = "/model_settings/extra_body"
    assert pointers(error) == [f"{place}/extra_body/model", f"{place}/generationConfig/candidateCount"]
    assert checked({"extra_body": body}, allowed=["extra_body.model", "extra_body.candidate_count"])
    raw = {"bedrock_additional_model_requests_fields": {"model": "x"}}
    assert "=bedrock_additional_model_requests_fields.model" in refusal(raw).message


@pytest.mark.parametrize("body", ["x", 5, [1], b"x", True])
def test_a_body_that_is_not_a_map_is_refused(body: Any):
    assert refusal({"extra_body": body}).message == "/model_settings/extra_body: must be a map"


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "host", "Authorization", "AUTHORIZATION", "Proxy-Authorization", "Cookie", "api-key", "x-api-key"),
        *("X-Goog-Api-Key", "x-amz-security-token", "X-Amz-Date", "ocp-apim-subscription-key", "Helicone-Auth"),
        *("OpenAI-Organization", "OpenAI-Project", "x-goog-user-project", "chatgpt-account-id", "Idempotency-Key"),
        *("Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Connection", "Upgrade", "TE"),
        *("X-Forwarded-For", "Forwarded", "X-Original-URL", "X-HTTP-Method-Override", "Helicone-Target-URL"),
        *("x-portkey-config", "x-portkey-virtual-key", "X-AuthToken", "x_api_key", "X.Api.Key", "Expect", "X-Real-IP"),
    ],
)
def test_headers_with_credentials_or_addresses_are_refused_unless_they_are_allowed(name: str):
    settings = {"extra_headers": {"X-Title": "app", name: "x"}}
    error = refusal(settings)
    assert pointers(error) == [f"/model_settings/extra_headers/{name}"]
    assert f"AXON_ALLOWED_MODEL_SETTINGS=extra_headers.{name.lower()}" in error.message
    assert checked(settings, allowed=[f"extra_headers.{name}"]) == settings
    assert checked(settings, allowed=[f"extra_headers.{name.lower()}"]) == settings


@pytest.mark.parametrize(
    "headers",
    [
        {"X Title": "x"},
        {"": "x"},
        {"X:": "x"},
        {"X\r\nHost": "x"},
        {"é": "x"},
        {"X": "a\r\nHost: b"},
        {"X": "é"},
        {"X": "\0"},
    ],
)
def test_malformed_headers_are_refused_even_if_they_are_allowed(headers: dict[str, str]):
    refusal({"extra_headers": headers}, allowed=[f"extra_headers.{name}" for name in headers])


@pytest.mark.parametrize("headers", ["x", 5, [["Host", "x"]], {"X": 5}, {"X": ["a"]}])
def test_headers_of_other_types_are_refused(headers: Any):
    assert "/model_settings/extra_headers" in refusal({"extra_headers": headers}).message


@pytest.mark.parametrize("key", sorted(REFUSED_SETTINGS))
def test_settings_that_select_another_model_are_refused_unless_they_are_allowed(key: str):
    error = refusal({key: "x"})
    assert f"AXON_ALLOWED_MODEL_SETTINGS={key}" in error.message
    assert checked({key: "x"}, allowed=[key]) == {key: "x"}


@pytest.mark.parametrize(
    "key",
    [
        "openai_api_key",
        "openai_base_url",
        "anthropic_api_key",
        "api_key",
        "base_url",
        "openai_client",
        "azure_endpoint",
    ],
)
def test_credentials_and_addresses_are_no_settings(key: str):
    for allowed in ([], [key]):
        error = refusal({"temperature": 1, key: "x"}, allowed=allowed)
        assert pointers(error) == [f"/model_settings/{key}"]
        assert "belong to the operator" in error.message


@pytest.mark.parametrize(
    "key", ["temprature", "openai_reasoning_effrt", "openai_", "foo_bar", "__class__", "decision_x"]
)
def test_unknown_settings_are_refused(key: str):
    assert refusal({key: "x"}).message == f"/model_settings/{key}: is unknown: remove it or correct its spelling"


def test_the_pointer_shows_where_the_settings_are():
    error = refusal({"extra_body": {"a/b": 1, "n": 2}}, pointer="/agent/model_settings")
    assert pointers(error) == ["/agent/model_settings/extra_body/n"]
    assert refusal({"temperature": "hot"}, pointer="/agent/model_settings").message.startswith(
        "/agent/model_settings/t"
    )


def test_all_settings_of_an_installed_provider_are_known():
    own = {*OpenAIChatModelSettings.__annotations__, *OpenAIResponsesModelSettings.__annotations__}
    assert own - ModelSettings.__annotations__.keys() <= compat.provider_settings()
    assert REFUSED_SETTINGS.keys() <= compat.provider_settings()
    assert not [name for name in compat.provider_settings() if "key" in name and "cache" not in name]


def test_allowed_settings_that_allow_nothing_are_described():
    assert list(unknown_entries([*REFUSED_SETTINGS, "extra_body.n", "extra_headers.x-key"])) == []
    assert list(unknown_entries(["openruter_models"])) == [
        "setting 'openruter_models' is not refused by default: remove it, or did you mean 'openrouter_models'?"
    ]
