"""Malformed input: one error that names the fault; nothing is lost and no other client is affected."""

from __future__ import annotations

import json
import math

import msgpack
import pytest

from axon_zmq import Client
from axon_zmq.broker.hashing import SLICE_BYTES
from axon_zmq.broker.server import LARGE_MESSAGE
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import pack
from tests.support.daemon import Daemon, Dealer, wait_until

NESTED = 10_000
ECHO = {"agent": "echo", "prompt": "hi"}


@pytest.fixture(scope="module")
def other(daemon: Daemon):
    with Client(daemon.endpoint) as client:
        yield client


@pytest.fixture(autouse=True)
def another_client_is_untouched(daemon: Daemon, other: Client):
    """During every test of this file, the stream of another client continues completely, and no process restarts."""
    pids = {name: process.pid for name, process in daemon.processes.items()}
    stream = other.stream({"model": "synthetic:tokens=4,delay_ms=5"}, "x")
    yield
    assert len(stream.complete().result) == 20
    assert other.run("echo", "still there").result == "still there"
    assert {name: process.pid for name, process in daemon.processes.items()} == pids
    assert all(process.poll() is None for process in daemon.processes.values())


FRAMES = [
    ([b"run", b"1", b"", pack(ECHO), b"", b""], "malformed_frames", "number of frames 6"),
    ([b"run", b"x" * 65, b"", pack(ECHO)], "malformed_frames", "65 bytes"),
    (["lauf ärger".encode(), b"1"], "unknown_kind", "ASCII"),
    ([b"no_such_kind", b"1"], "unknown_kind", "'no_such_kind'"),
    ([b"credit", b"1"], "invalid_request", "'upto' is missing"),
    ([b"credit", b"1", pack({"upto": -1})], "invalid_request", "'upto' must be an integer"),
    ([b"tool_result", b"1"], "invalid_request", "'call_id' is missing"),
    ([b"publish", b"1"], "unknown_kind", "'publish'"),
    ([b"tool_result", b"1", pack({"call_id": 7})], "invalid_request", "'call_id' must be a string"),
    ([b"steer", b"1", pack({"priority": "asap"})], "invalid_request", "unknown header key 'priority' for steer"),
    ([b"run", b"1", b"\xc1", pack(ECHO)], "invalid_msgpack", "the header"),
    ([b"run", b"1", pack({}) + b"\x00", pack(ECHO)], "invalid_msgpack", "1 bytes follow"),
    ([b"run", b"1", msgpack.packb([1]), pack(ECHO)], "invalid_msgpack", "must be a map, not list"),
    ([b"run", b"1", pack({"x": 1}), pack(ECHO)], "invalid_request", "unknown header key 'x'"),
    ([b"run", b"1", pack({"credit": -1}), pack(ECHO)], "invalid_request", "'credit' must be an integer"),
    (
        [b"run", b"1", pack({"timeout_ms": "5"}), pack(ECHO)],
        "invalid_request",
        "'timeout_ms' must be an integer",
    ),
    ([b"run", b"1", pack({"timeout_ms": True}), pack(ECHO)], "invalid_request", "'timeout_ms'"),
    ([b"run", b"1", pack({"timeout_ms": 0}), pack(ECHO)], "invalid_request", "'timeout_ms'"),
    ([b"run", b"1", pack({"timeout_ms": 2**40}), pack(ECHO)], "invalid_request", "the limit is 3600000"),
    ([b"run", b"1", pack({"ack": 1}), pack(ECHO)], "invalid_request", "'ack' must be true or false"),
    ([b"run", b"1", pack({"frames": "two"}), pack(ECHO)], "invalid_request", "'frames' must be 'single'"),
    ([b"run", b"1", pack({"v": 2, "new": 1}), pack(ECHO)], "unsupported_version", "unsupported version v=2"),
    ([b"run", b"1", b"x" * 20_000, pack(ECHO)], "too_large", "header too large: 20000 bytes"),
    ([b"resume", b"1", pack({"from": 0})], "invalid_request", "'from'"),
]


@pytest.mark.parametrize(("frames", "error_type", "names"), FRAMES, ids=[case[2] for case in FRAMES])
def test_malformed_frames_and_headers_are_answered_with_an_error(dealer: Dealer, frames, error_type, names):
    dealer.socket.send_multipart(frames)
    kind, id, body = dealer.recv()
    assert (kind, id) == (b"error", frames[1])
    assert body["error_type"] == error_type
    assert names in body["message"]
    assert body["status"] == "error"
    assert dealer.silent()


@pytest.mark.parametrize("before", [[], [b""]], ids=["bare", "delimiter"])
@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("size", [LARGE_MESSAGE, 2 * SLICE_BYTES])
def test_a_large_frame_is_rejected_in_any_position(dealer: Dealer, before, place, size):
    frames = [b"run", b"1", b"", pack(ECHO), b"", b"", b""][: max(4, place + 1)]
    frames[place] = b"x" * size
    dealer.socket.send_multipart([*before, *frames])
    dealer.socket.send_multipart([*before, b"run", b"2", b"", pack(ECHO)])
    answers = {id: (kind, body) for kind, id, body in (dealer.recv() for _ in range(1 if place == 1 else 2))}
    assert answers[b"2"][1]["result"] == "hi"  # without a readable id no answer is possible
    assert place == 1 or answers[b"1"][0] == b"error"


@pytest.mark.parametrize("frames", [[b"run"], [b""], [b"run", b""], [b"run", b"x" * 300], [b"x"] * 65])
def test_a_message_without_a_readable_id_is_counted_and_dropped(daemon: Daemon, dealer: Dealer, frames):
    before = dealer.ask(b"ping", b"p")[1]["dropped"]
    dealer.socket.send_multipart(frames)
    assert dealer.ask(b"ping", b"p")[1]["dropped"] == before + 1
    wait_until(lambda: "dropped a message" in daemon.log("broker"), "a line in the log")


def _deep(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\xc0"


BODIES = [
    (b"\xc1", "invalid_msgpack", "the body"),
    (pack(ECHO) + b"\x00", "invalid_msgpack", "1 bytes follow"),
    (msgpack.packb("text"), "invalid_msgpack", "must be a map, not str"),
    (msgpack.packb({1: 2}), "invalid_msgpack", "key"),
    (b"\x82\xa1a\x01\xa1a\x02", "invalid_msgpack", "duplicate key"),
    (pack({**ECHO, "deps": math.nan}), "invalid_msgpack", "NaN or an infinity at /deps"),
    (pack({**ECHO, "deps": {"x": [1, -math.inf]}}), "invalid_msgpack", "/deps/x/1"),
    (msgpack.packb({**ECHO, "deps": msgpack.ExtType(5, b"x")}), "invalid_msgpack", "extension type 5"),
    (b"\x81\xa4deps\xc7\x0c\xff" + b"\xff" * 12, "invalid_msgpack", "the body"),
    (_deep(NESTED), "invalid_msgpack", "nested"),
    (b"\xdf\xff\xff\xff\xff", "invalid_msgpack", "the body"),
    (b"\x81\xa5agent\xa4\xff\xfe\xfd\xfc", "invalid_msgpack", "not UTF-8 (send bytes as bin)"),
    (b"", "invalid_request", "/agent: is missing"),
    (pack({"agent": "echo"}), "invalid_request", "/prompt: is missing"),
    (pack({**ECHO, "promt": "x"}), "invalid_request", "/promt: is unknown"),
    (pack({"agent": 5, "prompt": "x"}), "invalid_request", "/agent:"),
    (pack({"agent": "", "prompt": "x"}), "invalid_request", "/agent:"),
    (pack({"agent": "echo", "prompt": 5}), "invalid_request", "/prompt:"),
    (pack({"agent": "echo", "prompt": [{"kind": "image-url"}]}), "invalid_request", "/prompt/0/url: is missing"),
    (pack({"agent": "echo", "prompt": ["x", {"kind": "hologram"}]}), "invalid_request", "/prompt/1/kind"),
    (pack({**ECHO, "message_history": "x"}), "invalid_request", "/message_history"),
    (pack({**ECHO, "message_history": [{"kind": "request"}]}), "invalid_request", "/message_history/0"),
    (pack({**ECHO, "message_history": [{"kind": "x"}]}), "invalid_request", "/message_history/0"),
    (pack({**ECHO, "output_schema": {"type": "objekt"}}), "invalid_request", "/output_schema/type"),
    (
        pack({**ECHO, "output_schema": {"$ref": "http://x/y"}}),
        "invalid_request",
        "only references into",
    ),
    (pack({**ECHO, "output_schema": {"$ref": "#/$defs/x"}}), "invalid_request", "'#/$defs/x', which is not in it"),
    (pack({**ECHO, "output_schema": {"anyOf": [{"$ref": "#"}]}}), "invalid_request", "without end"),
    (pack({**ECHO, "output_schema": {"enum": ["x" * 300_000]}}), "too_large", "at most 262144"),
    (pack({**ECHO, "model_settings": {"temprature": 1}}), "invalid_request", "/model_settings/temprature"),
    (pack({**ECHO, "model_settings": {"temperature": "hot"}}), "invalid_request", "/model_settings/temperature"),
    (pack({**ECHO, "model_settings": {"extra_body": {"n": 2}}}), "invalid_request", "/model_settings/extra_body/n"),
    (pack({**ECHO, "model_settings": {"openai_api_key": "x"}}), "invalid_request", "belong to the operator"),
    (
        pack({"agent": {"model": "echo", "model_settings": {"extra_headers": {"Host": "x"}}}, "prompt": "x"}),
        "invalid_request",
        "/agent/model_settings/extra_headers/Host",
    ),
    (pack({"agent": {"model": "openai-codex:x"}, "prompt": "x"}), "model_auth", "AXON_AMBIENT_PROVIDERS=openai-codex"),
    (pack({**ECHO, "usage_limits": {"requests": 1}}), "invalid_request", "/usage_limits/requests"),
    (pack({**ECHO, "retries": -1}), "invalid_request", "/retries"),
    (pack({**ECHO, "events": "some"}), "invalid_request", "/events"),
    (pack({**ECHO, "tools": {}}), "invalid_request", "/tools: input should be a valid list"),
    (pack({**ECHO, "tools": ["weather"]}), "invalid_request", "/tools/0"),
    (pack({**ECHO, "log": "loud"}), "invalid_request", "/log"),
    (pack({**ECHO, "deferred_tool_results": {"calls": {}}}), "invalid_request", "/message_history: is missing"),
    (pack({"agent": "ecko", "prompt": "x"}), "unknown_agent", "did you mean 'echo'"),
    (pack({"agent": "broken", "prompt": "x"}), "unknown_agent", "could not be loaded"),
    (pack({**ECHO, "model": "no-such-provider:x"}), "unknown_model", "no-such-provider"),
    (pack({**ECHO, "model": "synthetic:tokens=0"}), "unknown_model", "'tokens=0'"),
    (pack({**ECHO, "model": "synthetic:speed=9"}), "unknown_model", "'speed=9'"),
    (pack({**ECHO, "model": "openai-chat:gpt-5"}), "model_auth", "OPENAI_API_KEY"),
    (pack({"agent": {"instructions": "x"}, "prompt": "x"}), "invalid_request", "/agent/model: is missing"),
    (pack({"agent": {"model": "echo", "import": "os"}, "prompt": "x"}), "invalid_request", "/agent/import"),
    (pack({"agent": {"model": "echo", "toolsets": ["x"]}, "prompt": "x"}), "invalid_request", "/agent/toolsets"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("body", "error_type", "names"), BODIES, ids=[f"{n}-{case[2][:30]}" for n, case in enumerate(BODIES)]
)
def test_malformed_bodies_are_answered_with_an_error(dealer: Dealer, mode, body, error_type, names):
    kind, reply = dealer.ask(mode.encode(), b"1", None, body)
    assert kind == b"error"
    assert reply["error_type"] == error_type, reply
    assert names in reply["message"]


def test_a_history_may_not_request_downloads_from_the_daemons_own_network(dealer: Dealer):
    part = {"kind": "image-url", "url": "http://127.0.0.1:1/x.png", "force_download": "allow-local"}
    history = [{"kind": "request", "parts": [{"part_kind": "user-prompt", "content": [part]}]}]
    _, reply = dealer.ask(b"run", b"1", None, {**ECHO, "message_history": history})
    assert reply["error_type"] == "invalid_request"
    assert "/message_history/0/parts/0/content/0/force_download" in reply["message"]


def test_a_body_over_max_body_is_too_large_and_four_times_that_cuts_only_its_sender(daemon: Daemon, dealer: Dealer):
    most = dealer.ask(b"ping", b"p")[1]["limits"]["max_body"]
    _, reply = dealer.ask(b"run", b"1", None, b"x" * (most + 1))
    assert reply["error_type"] == "too_large"
    assert str(most) in reply["message"]
    offender = Dealer(daemon.endpoint)
    try:
        offender.send(b"run", b"1", None, b"x" * (4 * most + 1))
        offender.send(b"ping", b"p")  # it reconnects by itself, and is served again
        assert offender.recv()[:2] == (b"pong", b"p")
    finally:
        offender.close()


def test_a_repeated_id_with_another_body_is_refused_and_the_first_run_continues(dealer: Dealer):
    dealer.send(b"run_stream", b"1", None, {"agent": {"model": "synthetic:tokens=20,delay_ms=10"}, "prompt": "x"})
    assert dealer.recv()[0] == b"chunk"
    dealer.send(b"run_stream", b"1", None, {"agent": "echo", "prompt": "other"})
    messages = dealer.until_end(b"1")
    [refused] = [body for kind, body in messages if kind == b"refused"]
    assert (refused["of"], refused["error_type"]) == ("run_stream", "invalid_request")
    assert messages[-1][0] == b"complete"


def test_output_that_does_not_match_its_schema_is_retried_and_then_fails(client: Client):
    from axon_zmq import AxonError

    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    assert client.run("echo", '{"n": 5}', output_schema=schema).result == {"n": 5}
    for wrong, pointer in (('{"n": 1}', "/n"), ('{"m": 5}', "/"), ('{"n": "5"}', "/n")):
        with pytest.raises(AxonError) as caught:
            client.run("echo", wrong, output_schema=schema)
        assert caught.value.error_type == "invalid_output"
        assert pointer in caught.value.message
        requests = [m for m in caught.value.details["partial"]["messages"] if m["kind"] == "request"]
        assert len(requests) >= 2  # the model was called again, with the reason


@pytest.mark.parametrize("mode", ["tool", "native", "prompted"])
def test_output_modes_support_schemas_that_are_not_objects(client: Client, mode):
    prompt = '{"response": [1, 2]}'
    schema = {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}
    assert client.run("echo", prompt, output_schema=schema, output_mode=mode).result == [1, 2]
    *chunks, complete = client.stream("echo", prompt, output_schema=schema, output_mode=mode)
    assert complete.result == [1, 2]
    assert chunks[-1].data in ([1, 2], {"response": [1, 2]})


@pytest.mark.parametrize("mode", ["tool", "native", "prompted"])
def test_output_schemas_may_be_recursive(client: Client, mode):
    """A thread of comments with the schema that pydantic generates, alone and in a list."""
    from axon_zmq import AxonError

    replies = {"type": "array", "items": {"$ref": "#/$defs/Comment"}}
    comment = {"type": "object", "properties": {"text": {"type": "string"}, "replies": replies}, "required": ["text"]}
    definitions = {"$defs": {"Comment": comment}}
    thread = {"text": "a", "replies": [{"text": "b", "replies": [{"text": "c"}]}, {"text": "d"}]}
    for schema, prompt, result in (
        ({"$ref": "#/$defs/Comment", **definitions}, thread, thread),
        ({**replies, **definitions}, {"response": [thread]}, [thread]),
    ):
        assert client.run("echo", json.dumps(prompt), output_schema=schema, output_mode=mode).result == result
        *_, complete = client.stream("echo", json.dumps(prompt), output_schema=schema, output_mode=mode)
        assert complete.result == result
    wrong = json.dumps({"text": "a", "replies": [{"text": "b", "replies": [{"text": 5}]}]})
    with pytest.raises(AxonError) as caught:
        client.run("echo", wrong, output_schema={"$ref": "#/$defs/Comment", **definitions}, output_mode=mode)
    assert caught.value.error_type == "invalid_output"
    assert "/replies/0/replies/0/text: 5 is not of type 'string'" in str(caught.value.details["partial"]["messages"])


def test_usage_limits_end_a_run(client: Client):
    from axon_zmq import AxonError

    with pytest.raises(AxonError) as caught:
        client.run("weather", "Oslo?", usage_limits={"request_limit": 1})
    assert caught.value.error_type == "usage_limit_exceeded"
    assert len(caught.value.details["partial"]["messages"]) >= 2


def test_a_resume_with_nil_as_credit_keeps_the_credit_and_the_worker(dealer: Dealer):
    # nil counts as absent. The worker passed it to the run's credit, and ended with all its runs.
    dealer.send(
        b"run_stream", b"1", {"credit": 1}, {"agent": {"model": "synthetic:tokens=4,delay_ms=5"}, "prompt": "x"}
    )
    assert dealer.recv()[0] == b"chunk"
    dealer.send(b"resume", b"1", {"from": None, "upto": None})
    while (answer := dealer.recv())[0] != b"resumed":
        pass
    assert answer[2]["from"] == 1
    dealer.send(b"credit", b"1", {"upto": 100})
    assert dealer.until_end(b"1")[-1][0] == b"complete"
