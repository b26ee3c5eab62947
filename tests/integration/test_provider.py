"""pydantic-ai's OpenAI model over HTTP, against a fake provider that misbehaves on demand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from axon_zmq import AxonError, Client
from axon_zmq.events import Complete
from axon_zmq.protocol.kinds import MODES
from axon_zmq.testing import FakeProvider
from axon_zmq.testing.ports import free_port
from axon_zmq.testing.provider import BEHAVIOURS
from tests.support import client_tools as tools_tests
from tests.support.daemon import AGENTS, Daemon, Dealer, run_in_mode, running, wait_until

APIS = ("openai-chat", "openai")
KEY = "test-key-not-secret-123456"
PROMPT = "one two three four five six"
LONG = " ".join(map(str, range(1000)))
"""A prompt whose echo takes the model `slow` 50 s; each test that uses it ends the run earlier."""
ONCE = {"max_retries": 0}
"""`model_settings` that disable the retries of the openai package, which waits between them."""
SLOTS = 2
EACH_MODE = pytest.mark.parametrize("mode", MODES)
EACH_API = pytest.mark.parametrize("api", APIS)

FAILURES = {
    "unauthorized": ("model_auth", False),
    "not-found": ("unknown_model", False),
    "rate-limited": ("model_rate_limited", True),
    "quota": ("model_rejected", False),
    "broken": ("model_unavailable", True),
    "unavailable": ("model_unavailable", True),
    "context": ("model_context_exceeded", False),
    "rejected": ("model_rejected", False),
    "surrogate": ("model_rejected", False),
    "rejected-with-key": ("model_rejected", False),
    "broken-with-key": ("model_unavailable", True),
    "filtered": ("content_filtered", False),
    "cut": ("model_connection", True),
    "garbage": ("model_behavior", True),
    "misshapen": ("model_behavior", True),
    "webpage": ("model_behavior", True),
}
"""`error_type` and `retryable` by the model of the fake provider."""


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as started:
        yield started


@pytest.fixture(scope="module")
def daemon(provider: FakeProvider) -> Iterator[Daemon]:
    """A daemon that uses the fake provider as OpenAI; it replaces the shared daemon in this file."""
    environment = {
        "OPENAI_BASE_URL": provider.base_url,
        "OPENAI_API_KEY": KEY,
        "OLLAMA_BASE_URL": f"http://127.0.0.1:{free_port()}/v1",  # nothing listens there
        "DEEPSEEK_API_KEY": "",
        "NO_PROXY": "127.0.0.1",
        "AXON_MODEL": "openai-chat:ok",
        "AXON_AGENTS": AGENTS,
        "AXON_LOG_LEVEL": "debug",
        "AXON_RUN_SYNC_SLOTS": str(SLOTS),
    }
    with running(*MODES, **environment) as started:
        with Client(started.endpoint) as client:
            for mode in MODES:  # Imports at the first use must not make a test miss its deadline.
                for api in APIS:
                    _run(client, mode, f"{api}:ok")
        yield started


def test_each_behaviour_of_the_fake_provider_is_tested():
    assert BEHAVIOURS.keys() - FAILURES.keys() == {"ok", "slow", "stall", "length"}


# --- answers ---------------------------------------------------------------------------------------


@EACH_MODE
@EACH_API
def test_an_answer_reports_its_usage_and_model(client: Client, api, mode):
    done = _run(client, mode, f"{api}:ok")
    assert (done.result, done.model, done.finish_reason) == (PROMPT, "ok", "stop")
    assert (done.usage["input_tokens"], done.usage["output_tokens"], done.usage["requests"]) == (1, 6, 1)


@EACH_API
def test_each_delta_of_the_provider_is_one_chunk(client: Client, api):
    def is_one_each() -> bool:
        *chunks, complete = client.stream({"model": f"{api}:ok"}, PROMPT)
        assert complete.result == "".join(chunk.data for chunk in chunks) == PROMPT
        return [chunk.data for chunk in chunks] == ["one", " two", " three", " four", " five", " six"]

    wait_until(is_one_each, "a stream of a worker that is not behind: one merges what waits")


@EACH_MODE
@EACH_API
def test_an_answer_cut_off_by_max_tokens_is_not_an_error(client: Client, api, mode):
    done = _run(client, mode, f"{api}:length")
    assert (done.result, done.finish_reason) == ("one two three", "length")


@EACH_MODE
@EACH_API
@pytest.mark.parametrize("output_mode", ["tool", "native", "prompted"])
def test_structured_output_is_parsed(client: Client, api, mode, output_mode):
    schema = {"type": "object", "properties": {"celsius": {"type": "integer"}}, "required": ["celsius"]}
    agent = {"model": f"{api}:ok", "output_schema": schema, "output_mode": output_mode}
    assert run_in_mode(client, mode, agent, '{"celsius": 5}').result == {"celsius": 5}


@EACH_MODE
@EACH_API
def test_the_model_calls_a_tool_and_answers_with_its_result(client: Client, api, mode):
    deps = {"name": "Ada", "age": 36}
    done = run_in_mode(client, mode, "typed", '{"who": {}}', model=f"{api}:ok", deps=deps)
    assert done.result == "Ada is 36"
    assert [message["kind"] for message in done.messages] == ["request", "response"] * 2


def test_a_streamed_tool_call_is_reported_before_the_answer(client: Client):
    options = {"model": "openai-chat:ok", "deps": {"name": "Ada", "age": 36}}
    *chunks, _ = client.stream("typed", '{"who": {}}', **options)
    assert [chunk.type for chunk in chunks] == ["tool_started", "tool_finished", "text", "text", "text"]
    assert (chunks[0].data["name"], chunks[1].data["result"]) == ("who", "Ada is 36")


@EACH_MODE
@EACH_API
def test_the_model_calls_a_client_tool_and_answers_with_its_result(dealer: Dealer, api, mode):
    parameters = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    tool = {"name": "weather", "description": "Of a place.", "parameters": parameters, "returns": {"type": "string"}}
    body = {"agent": {"model": f"{api}:ok"}, "prompt": '{"weather": {"place": "Oslo"}}', "tools": [tool]}
    dealer.send(mode.encode(), b"1", None, body)
    call = tools_tests.until(dealer, b"tool_call")
    assert (call["name"], call["args"]) == ("weather", {"place": "Oslo"})
    tools_tests.answer(dealer, b"1", call, result="three below", content=["and ", "windy"])
    done = tools_tests.until(dealer, b"complete")
    assert "windy" in done["result"]
    assert done["usage"]["tool_calls"] == 1


@EACH_MODE
def test_a_tool_call_can_be_approved(dealer: Dealer, mode):
    tool = {"name": "pay", "parameters": {"type": "object", "properties": {"euros": {"type": "number"}}}}
    body = {
        "agent": {"model": "openai-chat:ok"},
        "prompt": '{"pay": {"euros": 5}}',
        "tools": [{**tool, "approval": True}],
    }
    dealer.send(mode.encode(), b"1", None, body)
    done = tools_tests.until(dealer, b"complete")
    [call] = done["deferred"]["approvals"]
    more = {**body, "prompt": None, "message_history": done["messages"]}
    decision = {call["call_id"]: {"kind": "tool-denied", "message": "no money"}}
    dealer.send(mode.encode(), b"2", None, {**more, "deferred_tool_results": {"approvals": decision}})
    assert tools_tests.until(dealer, b"complete")["result"] == "no money"


@EACH_MODE
@pytest.mark.parametrize("agent", ["assistant", {"instructions": "Echo."}], ids=["registered", "as data"])
def test_axon_model_is_the_default(client: Client, agent, mode):
    done = run_in_mode(client, mode, agent, PROMPT)
    assert (done.result, done.model) == (PROMPT, "ok")


# --- failures --------------------------------------------------------------------------------------


@EACH_MODE
@EACH_API
@pytest.mark.parametrize("behaviour", FAILURES)
def test_each_failure_has_its_error_type(client: Client, api, mode, behaviour):
    error = _failure(client, mode, f"{api}:{behaviour}")
    assert (error.error_type, error.retryable) == FAILURES[behaviour]
    assert len(error.message) < 300
    assert error.details["partial"]["messages"][0]["kind"] == "request"
    assert KEY not in f"{error.message} {error.details}"  # `unauthorized` sends it back


@EACH_MODE
def test_retry_after_status_and_message_of_the_provider_are_passed_on(client: Client, mode):
    error = _failure(client, mode, "openai-chat:rate-limited")
    assert error.details["retry_after_ms"] == 7000
    assert (error.details["status_code"], error.details["provider_code"]) == (429, "rate_limit_exceeded")
    assert error.message == "the provider answered 429: Rate limit reached."
    assert "retry_after_ms" not in _failure(client, mode, "openai-chat:broken").details


@EACH_API
def test_a_broken_stream_keeps_its_partial_answer_and_can_be_continued(client: Client, api):
    error = _failure(client, "run_stream", f"{api}:cut")
    assert error.details["partial"]["text"].startswith("one two three")
    history = error.details["partial"]["messages"]
    done = run_in_mode(client, "run_stream", {"model": f"{api}:ok"}, "go on", message_history=history)
    assert done.result == "go on"


@EACH_MODE
def test_a_stalled_provider_ends_at_the_deadline(client: Client, provider: FakeProvider, mode):
    before = provider.stats()
    error = _failure(client, mode, "openai-chat:stall", timeout_ms=1000)
    assert (error.error_type, error.retryable) == ("deadline_exceeded", True)
    if mode == "run_stream":
        assert error.details["partial"]["text"].startswith("one two three")
    _wait_until_abandoned(provider, before.abandoned + 1)


def test_an_address_on_which_nothing_listens_is_reported(client: Client):
    error = _failure(client, "run", "ollama:any")
    assert (error.error_type, error.retryable) == ("model_connection", True)
    assert "connect" in error.message


def test_a_missing_key_is_named(client: Client):
    error = _failure(client, "run", "deepseek:any")
    assert error.error_type == "model_auth"
    assert "DEEPSEEK_API_KEY" in error.message


def test_a_prompt_of_an_unsupported_type_is_rejected(client: Client):
    prompt = [{"kind": "binary", "data": b"mp4", "media_type": "video/mp4"}]
    error = _failure(client, "run", "openai-chat:ok", prompt)
    assert (error.error_type, error.retryable) == ("model_rejected", False)


def test_a_url_in_the_daemons_own_network_is_not_fetched(client: Client, provider: FakeProvider):
    prompt = [{"kind": "document-url", "url": f"{provider.base_url}/secret.pdf"}]
    error = _failure(client, "run", "openai-chat:ok", prompt)
    assert (error.error_type, error.retryable) == ("invalid_request", False)
    assert "could not be fetched" in error.message


@pytest.mark.parametrize(("settings", "tries"), [(ONCE, 1), ({"max_retries": 1}, 2), ({}, 3)])
def test_the_openai_package_retries_by_itself(client: Client, provider: FakeProvider, settings, tries):
    before = provider.stats().models.get("broken", 0)
    error = _failure(client, "run", "openai-chat:broken", model_settings=settings)
    assert error.error_type == "model_unavailable"
    assert provider.stats().models["broken"] == before + tries


# --- cancelling ------------------------------------------------------------------------------------


@EACH_API
def test_text_arrives_as_it_is_generated_and_a_cancel_closes_the_upstream_stream(
    client: Client, provider: FakeProvider, api
):
    before = provider.stats()
    stream = client.stream({"model": f"{api}:slow"}, LONG)
    seen = "".join(next(stream).data for _ in range(3))
    assert seen == "0 1 2"
    assert provider.stats().open  # the provider is still sending
    stream.cancel()
    with pytest.raises(AxonError) as caught:
        stream.complete()
    assert caught.value.error_type == "cancelled"
    assert caught.value.details["partial"]["text"].startswith(seen)
    _wait_until_abandoned(provider, before.abandoned + 1)


@EACH_MODE
def test_a_cancel_in_any_mode_closes_the_upstream_connection(dealer: Dealer, provider: FakeProvider, mode):
    before = provider.stats()
    dealer.send(mode.encode(), b"1", None, {"agent": {"model": "openai-chat:slow"}, "prompt": LONG})
    wait_until(lambda: provider.stats().requests > before.requests, "the request to reach the provider")
    dealer.send(b"cancel", b"1")
    kind, body = dealer.until_end(b"1")[-1]
    assert (kind, body["error_type"]) == (b"error", "cancelled")
    _wait_until_abandoned(provider, before.abandoned + 1)


# --- connections and secrets -----------------------------------------------------------------------


@EACH_MODE
def test_many_agents_share_one_connection(client: Client, provider: FakeProvider, mode):
    before = provider.stats()
    for number in range(4):
        for api in APIS:
            agent = {"name": f"agent-{number}", "model": f"{api}:ok", "instructions": f"You are {number}."}
            run_in_mode(client, mode, agent, PROMPT)
        run_in_mode(client, mode, "assistant", PROMPT, model_settings=ONCE)
    now = provider.stats()
    assert now.requests == before.requests + 12
    assert now.connections - before.connections <= SLOTS


@EACH_MODE
def test_concurrent_runs_leave_their_connections_to_later_runs(client: Client, provider: FakeProvider, mode):
    before = provider.stats().connections
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            list(threads.map(lambda _: _run(client, mode, "openai-chat:ok"), range(8)))
    assert provider.stats().connections - before <= (SLOTS if mode == "run_sync" else 8)


def test_the_api_key_is_in_no_log(client: Client, daemon: Daemon):
    for mode in MODES:
        _failure(client, mode, "openai-chat:unauthorized")
        _failure(client, mode, "openai-chat:misshapen")
    logs = {name: daemon.log(name) for name in daemon.processes}
    assert all(logs.values())
    assert [name for name, log in logs.items() if KEY in log] == []


# --- the provider itself ---------------------------------------------------------------------------


def test_the_fake_provider_ends_with_its_with_block():
    with FakeProvider() as provider:
        assert provider.stats().requests == 0
    assert _refuses(provider.base_url)


def test_the_fake_provider_ends_with_its_parent():
    program = """
from axon_zmq.testing import FakeProvider
with FakeProvider() as provider:
    print(provider.base_url, flush=True)
    input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        base_url = parent.stdout.readline().strip()
        assert not _refuses(base_url)
        parent.kill()
    wait_until(lambda: _refuses(base_url), "the provider's end")


# --- helpers ---------------------------------------------------------------------------------------


def _run(client: Client, mode: str, model: str, prompt=PROMPT, **options) -> Complete:
    return run_in_mode(client, mode, {"model": model}, prompt, **options)


def _failure(client: Client, mode: str, model: str, prompt=PROMPT, **options) -> AxonError:
    with pytest.raises(AxonError) as caught:
        _run(client, mode, model, prompt, **{"model_settings": ONCE, **options})
    return caught.value


def _wait_until_abandoned(provider: FakeProvider, count: int) -> None:
    wait_until(lambda: provider.stats().abandoned == count and not provider.stats().open, "the upstream stream's end")


def _refuses(base_url: str) -> bool:
    connection = HTTPConnection(base_url.removeprefix("http://").removesuffix("/v1"), timeout=60)
    try:
        connection.request("GET", "/stats")
        connection.getresponse().read()
    except OSError:
        return True
    finally:
        connection.close()
    return False
