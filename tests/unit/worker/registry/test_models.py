"""Models by name, and the credentials that their providers may use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, providers

from axon_zmq.errors import AxonError, ModelError
from axon_zmq.protocol.requests import AgentData, run_request
from axon_zmq.worker.modes import agent_call
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.registry.models import KEYED, LOGINS, Models, unknown_logins

VARIABLES = sorted({variable for login in LOGINS.values() for variable in login.variables})


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: Any, tmp_path: Path) -> None:
    """An environment without credentials, with a Codex login that works."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CODEX_HOME", str(tmp_path))
    tokens = '{"access_token": "a-token", "refresh_token": "r-token", "account_id": "an-id"}'
    (tmp_path / "auth.json").write_text(f'{{"tokens": {tokens}}}')


def refusal(models: Models, name: str) -> str:
    with pytest.raises(ModelError) as caught:
        models.named_by_client(name)
    assert caught.value.error_type == "model_auth"
    return caught.value.message


@pytest.mark.parametrize("provider", sorted(LOGINS))
def test_clients_may_not_use_the_login_of_the_user_who_runs_the_daemon(provider: str):
    message = refusal(Models(None), f"{provider}:a-model")
    assert f"AXON_AMBIENT_PROVIDERS={provider}" in message
    assert LOGINS[provider].source in message
    refusal(Models(None, ambient=[each for each in LOGINS if each != provider]), f"{provider}:a-model")


def test_a_configured_login_is_used():
    for models in (Models(None, ambient=["openai-codex"]), Models("openai-codex:gpt-5.2")):
        assert models.named_by_client("openai-codex:gpt-5.3").model_name == "gpt-5.3"


def test_a_model_that_the_operator_named_stays_refused_to_clients():
    models = Models(None)
    assert models.named("openai-codex:gpt-5.2").model_name == "gpt-5.2"
    refusal(models, "openai-codex:gpt-5.2")


@pytest.mark.parametrize("provider", sorted(name for name, login in LOGINS.items() if login.variables))
def test_a_variable_of_the_daemon_that_names_the_credentials_allows_them(provider: str, monkeypatch: Any):
    for variable in LOGINS[provider].variables:
        with monkeypatch.context() as patch:
            patch.setenv(variable, "")
            refusal(Models(None), f"{provider}:a-model")
            patch.setenv(variable, "set")
            with pytest.raises(AxonError) as caught:  # its package is not installed, or it lacks other settings
                Models(None).named_by_client(f"{provider}:a-model")
            assert "AXON_AMBIENT_PROVIDERS" not in caught.value.message


def test_allowed_providers_that_allow_nothing_are_described():
    assert list(unknown_logins(LOGINS)) == []
    wrong, keyed = unknown_logins(["bedrok", "openai"])
    assert wrong == "provider 'bedrok' is unknown: remove it, or did you mean 'bedrock'?"
    assert keyed.startswith("provider 'openai' takes its credentials only from the environment: remove it, or ")


def test_every_provider_of_pydantic_ai_was_checked_for_other_credentials():
    source = Path(providers.__file__).read_text()
    lookup = source[source.index("def infer_provider_class") : source.index("def infer_provider(")]
    names = set(re.findall(r"provider == '([^']+)'", lookup))
    for several in re.findall(r"provider in \(([^)]+)\)", lookup):
        names.update(re.findall(r"'([^']+)'", several))
    assert len(names) > 40
    assert names - KEYED - LOGINS.keys() == set(), "read its source, then add it to KEYED or LOGINS"


def test_a_provider_that_nobody_has_checked_is_refused(monkeypatch: Any):
    known = "axon_zmq.worker.registry.models.infer_provider_class"
    for outcome in (lambda _: object, _import_error):
        monkeypatch.setattr(known, outcome)
        assert "AXON_AMBIENT_PROVIDERS=new-one" in refusal(Models(None), "new-one:x")


def _import_error(_: str) -> type:
    raise ImportError("not installed")


@pytest.mark.parametrize(
    "name", ["nonsense:x", "OpenAI-Codex:x", " openai-codex:x", ":x", "x", "sentence-transformers:x"]
)
def test_other_names_are_unknown(name: str):
    with pytest.raises(AxonError) as caught:
        Models(None).named_by_client(name)
    assert caught.value.error_type == "unknown_model"


def test_agents_as_data_and_overrides_are_checked_and_registered_agents_are_not():
    registry = Registry(targets={"codex": "tests.unit.worker.registry.test_models:codex"}, models=Models(None))
    data: list[tuple[dict[str, Any], str]] = [
        ({"agent": {"model": "openai-codex:x"}}, "model_auth"),
        ({"agent": {"model": "echo"}, "model": "openai-codex:x"}, "model_auth"),
        ({"agent": "codex", "model": "openai-codex:x"}, "model_auth"),
        ({"agent": "codex", "model_settings": {"extra_body": {"n": 5}}}, "invalid_request"),
        ({"agent": {"model": "echo", "model_settings": {"extra_headers": {"Host": "x"}}}}, "invalid_request"),
    ]
    for body, code in data:
        with pytest.raises(AxonError) as caught:
            agent_call.build(run_request({"prompt": "x", **body}), registry)
        assert caught.value.error_type == code
    assert "/agent/model_settings/extra_headers/Host" in str(caught.value)
    call = agent_call.build(run_request({"agent": "codex", "prompt": "x"}), registry)
    assert call.options["model"].model_name == "gpt-5.2"


def test_settings_of_requests_and_of_agents_as_data_are_merged_and_the_operator_may_allow_more():
    registry = Registry(targets={}, models=Models(None), allowed_settings=["extra_body.n"])
    data = {"model": "echo", "model_settings": {"temperature": 0.5, "extra_body": {"n": 2}}}
    call = agent_call.build(run_request({"agent": data, "prompt": "x", "model_settings": {"seed": 5}}), registry)
    assert call.options["model_settings"] == {"temperature": 0.5, "extra_body": {"n": 2}, "seed": 5}
    assert AgentData.model_validate(data).model_settings == data["model_settings"]


codex = Agent("openai-codex:gpt-5.2", defer_model_check=True)
