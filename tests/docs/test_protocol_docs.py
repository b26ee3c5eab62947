"""The daemon and the Python client behave as the documentation and the golden messages say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import msgpack
import pytest

from axon_zmq.broker.core.broker import ALIVE_INTERVAL_S, FEATURES, RECOVERY_S, Broker
from axon_zmq.broker.core.effects import ToClient
from axon_zmq.broker.core.events import FromClient, FromWorker, Tick
from axon_zmq.client.core import ClientCore
from axon_zmq.client.messages import Failed, decode
from axon_zmq.client.options import BODY_KEYS, HEADER_KEYS
from axon_zmq.errors import AxonError
from axon_zmq.protocol import backend, limits, requests
from axon_zmq.protocol.backend import VERSION, EndReason
from axon_zmq.protocol.frames import HEADERS, parse, single_frame
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.adapter import messages
from axon_zmq.worker.core.worker import END_GRACE_S, LONGEST_END_GRACE_S, STUCK_GRACE_S
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.host import END_TURNS
from tests.support import fixtures, snippets

FIXTURES = fixtures.load()
MAPS = [fixture for fixture in FIXTURES.values() if fixture.part != "message"]
PAGES = [*sorted(snippets.DOCS.rglob("*.md")), snippets.ROOT / "README.md"]
BOOT = FIXTURES["alive"].value["boot"]


def named(fixture: fixtures.Fixture) -> str:
    return fixture.name


def lacks(golden: Any, made: Any, place: str = "") -> list[str]:
    """Where the shape of `made` differs from `golden`: missing keys and other types. Additional keys are allowed."""
    if golden is None or made is None:
        return []
    if type(golden) is not type(made):
        return [f"{place or '/'}: {type(golden).__name__} became {type(made).__name__}"]
    if isinstance(golden, dict):
        missing = [f"{place}/{key} is missing" for key in golden if key not in made]
        return missing + [f for key in golden if key in made for f in lacks(golden[key], made[key], f"{place}/{key}")]
    if isinstance(golden, list) and golden and made:
        return lacks(golden[0], made[0], f"{place}/0")
    return []


# --- the golden messages themselves -----------------------------------------------------------------


def test_each_golden_file_is_in_the_index_and_each_name_has_its_file():
    assert {file.stem for file in fixtures.FOLDER.glob("*.msgpack")} == set(FIXTURES)


def test_there_is_a_golden_message_for_each_kind():
    kinds = {kind for fixture in FIXTURES.values() for kind in fixture.kinds}
    answers = {"accepted", "chunk", "complete", "error", "refused", "resumed", "catalog", "pong", "alive"}
    answers |= {"tool_call", "tool_cancelled", "log"}
    assert kinds >= answers | {kind.decode() for kind in HEADERS}


@pytest.mark.parametrize("fixture", MAPS, ids=named)
def test_a_golden_map_unpacks_to_its_value_in_the_index_and_packs_to_the_same_bytes(fixture):
    value = unpack(fixture.packed, fixture.name)
    assert value == fixture.value
    assert pack(value) == fixture.packed
    assert packer()(value) == fixture.packed


def test_a_golden_single_frame_reply_contains_the_body_unchanged():
    golden = FIXTURES["single_message"]
    assert single_frame(b"chunk", b"1", FIXTURES["chunk_text"].packed) == golden.packed
    assert msgpack.unpackb(golden.packed, timestamp=3) == golden.value


@pytest.mark.parametrize(
    ("kind", "fixture"),
    [(kind, fixture) for fixture in MAPS if fixture.part == "header" for kind in fixture.kinds],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_broker_accepts_each_golden_header(kind, fixture):
    message = parse([kind.encode(), b"1", fixture.packed, b""], limits.BrokerLimits().max_body)
    assert message.header == fixture.value


@pytest.mark.parametrize("fixture", [f for f in MAPS if f.part == "body" and "run" in f.kinds], ids=named)
def test_the_worker_accepts_each_golden_run_request(fixture):
    request = requests.run_request(unpack(fixture.packed, "the body"))
    assert request.model_fields_set == fixture.value.keys()
    messages.prompt(request.prompt)
    messages.load(request.message_history)


EVENTS = ("accepted", "chunk", "complete", "tool_call", "tool_cancelled", "log", "refused")

# --- messages of the Python client ------------------------------------------------------------------


def test_the_client_sends_the_golden_run_requests():
    core = ClientCore()
    header, body = FIXTURES["run_header"].value, FIXTURES["run_body_all"].value
    options = {key: value for key, value in (body | header).items() if key not in ("agent", "prompt")}
    assert options.keys() == {*HEADER_KEYS, *BODY_KEYS}
    core.run("run_stream", body["agent"], body["prompt"], {**options, "id": "1"}, 0.0)
    core.run("run", "echo", "one two", {"id": "2"}, 0.0)
    core.run("run_sync", "echo", FIXTURES["run_body_parts"].value["prompt"], {"id": "3"}, 0.0)
    assert list(core.outgoing) == [
        [b"run_stream", b"1", FIXTURES["run_header"].packed, FIXTURES["run_body_all"].packed],
        [b"run", b"2", b"", FIXTURES["run_body"].packed],
        [b"run_sync", b"3", b"", FIXTURES["run_body_parts"].packed],
    ]


def test_the_client_sends_the_golden_describe_ping_cancel_and_resume():
    core = ClientCore()
    core.describe("weather", 0.0)
    core.ping(0.0, 5.0)
    core.cancel(b"3")
    core.run("run_stream", "echo", "one two", {"id": "4"}, 0.0)
    for seq in (1, 2, 4):
        core.receive([b"chunk", b"4", pack(FIXTURES["chunk_text"].value | {"seq": seq})], 1.0)
    sent = {kind: rest for kind, _id, *rest in core.outgoing}
    assert sent[b"describe"] == [b"", FIXTURES["describe_body"].packed]
    golden = FIXTURES["ping_header"]
    assert pack(unpack(sent[b"ping"][0], "header") | {"instance": golden.value["instance"]}) == golden.packed
    assert sent[b"cancel"] == []
    assert sent[b"resume"] == [FIXTURES["resume_header"].packed]


@pytest.mark.parametrize("fixture", [f for f in MAPS if f.kinds == ["tool_result"] and f.part == "body"], ids=named)
def test_each_golden_tool_result_is_accepted_by_the_worker_and_sent_by_the_client(fixture):
    assert requests.tool_result(fixture.value).model_fields_set == fixture.value.keys()
    core = ClientCore()
    core.run("run", "echo", "one two", {"id": "1"}, 0.0)
    core.receive([b"tool_call", b"1", pack(FIXTURES["tool_call"].value | {"seq": 1})], 0.0)
    core.answer(b"1", "call_1", fixture.value)
    header = FIXTURES["tool_result_header"].packed
    assert core.outgoing[-1] == [b"tool_result", b"1", header, fixture.packed]


@pytest.mark.parametrize("fixture", [f for f in MAPS if f.kinds == ["steer"]], ids=named)
def test_each_golden_steer_is_accepted_by_the_worker_and_sent_by_the_client(fixture):
    assert requests.checked(requests.Steer, fixture.value).model_fields_set == fixture.value.keys()
    core = ClientCore()
    core.run("run", "echo", "one two", {"id": "1"}, 0.0)
    core.steer(b"1", fixture.value["content"], fixture.value["priority"])
    assert core.outgoing[-1] == [b"steer", b"1", b"", fixture.packed]


@pytest.mark.parametrize("fixture", [f for f in MAPS if f.kinds == ["call_tool"]], ids=named)
def test_each_golden_call_tool_is_accepted_by_the_worker_and_sent_by_the_client(fixture):
    assert requests.checked(requests.CallRequest, fixture.value).model_fields_set == fixture.value.keys()
    core = ClientCore()
    options = {key: value for key, value in fixture.value.items() if key not in ("tool", "args")}
    core.call_tool(fixture.value["tool"], fixture.value["args"], {"id": "1", **options}, 0.0)
    assert list(core.outgoing) == [[b"call_tool", b"1", b"", fixture.packed]]


def test_the_client_decodes_the_golden_answers():
    for fixture in MAPS:
        if fixture.direction != "to client" or fixture.part != "body":
            continue
        seq, message = decode(fixture.kinds[0].encode(), fixture.packed)
        assert seq == fixture.value.get("seq")
        assert message is not None
        if fixture.kinds[0] in EVENTS:
            assert {key: getattr(message, key) for key in fixture.value} == fixture.value
        elif isinstance(message, Failed):
            body = message.error.to_body()
            assert body == {key: value for key, value in fixture.value.items() if key != "seq"}


# --- messages of the daemon -------------------------------------------------------------------------


class Asked:
    """A broker without sockets after recovery, with or without one worker of mode `run`."""

    def __init__(self, worker: bool = True, **bounds: int) -> None:
        self.broker = Broker(
            boot=BOOT, bounds=limits.BrokerLimits(**bounds), version="0.1.0", expected_workers=0, now=0.0
        )
        if worker:
            ready = {"v": VERSION, "mode": "run", "slots": 1, "name": "run-1", "holds": []}
            self.broker.receive(FromWorker(b"worker", b"ready", pack(ready)), 0.0)
        self.tick(RECOVERY_S)

    def tick(self, now: float) -> list[tuple[str, bytes]]:
        return self._to_client(self.broker.receive(Tick(), now))

    def send(self, kind: str, header: Mapping[str, Any] | None = None, body: bytes = b"") -> list[tuple[str, bytes]]:
        frames = [kind.encode(), b"1", pack(header or {}), body]
        return self._to_client(self.broker.receive(FromClient(b"client", frames, RECOVERY_S), RECOVERY_S))

    @staticmethod
    def _to_client(effects: list[Any]) -> list[tuple[str, bytes]]:
        return [(effect.kind.decode(), effect.body) for effect in effects if isinstance(effect, ToClient)]


RUN_BODY = FIXTURES["run_body"].packed


def like(golden: str, sent: list[tuple[str, bytes]]) -> None:
    """The only message that was sent has the kind, shape and error_type of the golden one; texts may differ."""
    [(kind, body)] = sent
    fixture = FIXTURES[golden]
    made = unpack(body, kind)
    assert [kind] == fixture.kinds
    assert lacks(fixture.value, made) == []
    assert made.keys() == fixture.value.keys()
    for key in ("status", "error_type", "retryable", "of"):
        assert made.get(key) == fixture.value.get(key)


def test_the_broker_sends_the_golden_accepted_resumed_and_alive():
    asked = Asked(worker=False)
    assert asked.send("run", {"ack": True}, RUN_BODY) == [("accepted", FIXTURES["accepted"].packed)]
    assert asked.send("run", {}, RUN_BODY)[0] == ("accepted", FIXTURES["accepted_duplicate"].packed)
    assert asked.send("resume", {"from": 3}) == [("resumed", FIXTURES["resumed"].packed)]
    assert asked.tick(RECOVERY_S + ALIVE_INTERVAL_S) == [("alive", FIXTURES["alive"].packed)]


def test_the_broker_sends_the_golden_refused_and_error():
    asked = Asked()
    assert asked.send("run", {}, RUN_BODY) == []
    like("refused", asked.send("run", {}, b"\x80"))
    like("error_unknown_request", Asked().send("resume", {"from": 3}))
    like("error_overloaded", Asked(worker=False, max_queued_per_client=0).send("run", {}, RUN_BODY))
    waiting = Asked(worker=False)
    waiting.send("run", {"timeout_ms": 1}, RUN_BODY)
    like("error_by_broker", [m for m in waiting.tick(RECOVERY_S + 1) if m[0] == "error"])


def test_a_pong_has_the_golden_shape_and_the_keys_of_the_page():
    [(kind, body)] = Asked().send("ping", FIXTURES["ping_header"].value)
    pong = unpack(body, kind)
    assert lacks(FIXTURES["pong"].value, pong) == []
    assert pong.keys() <= code_in_first_cells("protocol.md")
    assert set(FEATURES) <= set(re.findall(r"`(\w+)`", text_of("protocol.md")))


@pytest.mark.parametrize("fixture", [f for f in MAPS if "seq" in f.value], ids=named)
def test_a_worker_packs_the_golden_messages(fixture):
    buffer = ReplayBuffer(packer(), RunInfo("run", b"", 0.0, keep=False))
    for _ in range(fixture.value["seq"] - 1):
        buffer.put(b"chunk", {})
    body = {key: value for key, value in fixture.value.items() if key != "seq"}
    if fixture.kinds == ["error"]:
        body = AxonError.of(body["error_type"], body["message"], body["details"]).to_body()
    assert buffer.put(fixture.kinds[0].encode(), body) == fixture.packed


def test_an_invalid_request_is_answered_with_the_golden_faults():
    with pytest.raises(AxonError) as caught:
        requests.run_request({"agent": "echo", "promt": "Hello"})
    assert {"seq": 1, **caught.value.to_body()} == FIXTURES["error_faults"].value


STREAMED = {
    "text": ({"agent": "echo", "prompt": "one two"}, "chunk_text"),
    "thinking": ({"agent": "thinker", "prompt": "?"}, "chunk_thinking"),
    "output": ({"agent": "weather", "prompt": "Oslo"}, "chunk_output"),
    "tool_started": ({"agent": "weather", "prompt": "Oslo"}, "chunk_tool_started"),
    "tool_finished": ({"agent": "weather", "prompt": "Oslo"}, "chunk_tool_finished"),
    "event": ({"agent": "echo", "prompt": "one two", "events": "all"}, "chunk_event"),
}


@pytest.mark.parametrize("type", STREAMED)
def test_streamed_messages_have_the_golden_shape(dealer, type):
    request, golden = STREAMED[type]
    dealer.send(b"run_stream", b"1", None, request)
    *chunks, (kind, last) = dealer.until_end(b"1")
    made = [body for _, body in chunks if body["type"] == type]
    fitting = [body for body in made if body["data"] and not lacks(FIXTURES[golden].value, body)]
    assert fitting, [lacks(FIXTURES[golden].value, body) for body in made]
    assert kind == b"complete"
    whole = FIXTURES["complete_structured" if isinstance(last["result"], dict) else "complete"].value
    assert lacks(whole | {"result": None}, last) == []
    assert type in code_in_first_cells("protocol.md")


def test_messages_of_tools_and_logs_have_the_golden_shape(dealer):
    script = '[{"name": "weather", "args": {"place": "Oslo"}}, {"name": "book"}, {"name": "book"}]'
    book = {"name": "book", "mode": "deferred"}
    weather = {**FIXTURES["run_body_all"].value["tools"][0], "timeout_ms": None}
    request = {"agent": {"model": "tools"}, "prompt": script, "tools": [weather, book]}
    dealer.send(b"run", b"1", None, request)
    _, _, call = dealer.recv()
    assert lacks(FIXTURES["tool_call"].value, call) == []
    dealer.send(b"tool_result", b"1", {"call_id": call["call_id"]}, {"result": {"celsius": "cold"}})
    _, _, refused = dealer.recv()
    golden = FIXTURES["refused_tool_result"].value
    assert refused == golden | {"call_id": call["call_id"]}
    dealer.send(b"resume", b"1", FIXTURES["resume_header"].value | {"from": 1})
    _, _, resumed = dealer.recv()
    assert resumed == FIXTURES["resumed_open_calls"].value | {"open_calls": [call], "last": call["seq"]}
    dealer.recv()
    dealer.send(b"tool_result", b"1", {"call_id": call["call_id"]}, {"result": {"celsius": 1}})
    _, _, done = dealer.recv()
    assert lacks(FIXTURES["complete_deferred"].value, done) == []
    assert "result" not in done


def test_a_cancelled_call_a_log_and_a_call_tool_have_the_golden_shape(dealer):
    tool = {"name": "weather", "timeout_ms": 1}
    dealer.send(b"run", b"1", None, {"agent": {"model": "tools"}, "prompt": '[{"name": "weather"}]', "tools": [tool]})
    cancelled = next(body for kind, body in dealer.until_end(b"1") if kind == b"tool_cancelled")
    assert lacks(FIXTURES["tool_cancelled"].value, cancelled) == []
    dealer.send(b"run", b"2", None, {"agent": "logging", "prompt": "Oslo", "log": "info"})
    record = next(body for kind, body in dealer.until_end(b"2") if kind == b"log")
    assert lacks(FIXTURES["log"].value, record) == []
    _, done = dealer.ask(b"call_tool", b"3", None, FIXTURES["call_tool_body"].value)
    assert done == FIXTURES["complete_call_tool"].value


def test_catalog_and_partial_answers_have_the_golden_shape(dealer):
    kind, catalog = dealer.ask(b"describe", b"1", None, {"agent": "weather"})
    assert kind == b"catalog"
    assert lacks(FIXTURES["catalog"].value["agents"]["weather"], catalog["agents"]["weather"]) == []
    kind, broken = dealer.ask(b"describe", b"2", None, {"agent": "broken"})
    assert lacks(FIXTURES["catalog"].value["agents"]["broken"], broken["agents"]["broken"]) == []
    slow = {"agent": {"model": "synthetic:tokens=9,delay_ms=3000"}, "prompt": "?"}
    dealer.send(b"run_stream", b"3", None, slow)
    dealer.recv()
    kind, error = dealer.ask(b"cancel", b"3")
    assert lacks(FIXTURES["error_partial"].value, error) == []
    assert error["error_type"] == "cancelled"


# --- the pages ---------------------------------------------------------------------------------------


def text_of(page: str) -> str:
    """The text of a page, followed by the pages in the folder of the same name."""
    path = snippets.DOCS / page
    pages = [path, *sorted(path.with_suffix("").glob("*.md"))]
    return "\n".join(each.read_text(encoding="utf-8") for each in pages)


def rows(page: str) -> list[list[str]]:
    """The cells of each row of each table."""
    lines = [line for line in text_of(page).splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def code_in_first_cells(page: str) -> set[str]:
    return {word for row in rows(page) for word in re.findall(r"`(\w+)`", row[0])}


def test_the_table_of_errors_is_generated_from_the_code():
    page = text_of("errors.md")
    assert snippets.with_error_table(page) == page, "run python -m tests.support.snippets"


def test_the_protocol_page_names_every_kind_and_header_key():
    of_kinds = [row for row in rows("protocol.md") if row[1].startswith("`v`")]
    kinds = {word: set(re.findall(r"`(\w+)`", row[1])) for row in of_kinds for word in _words(row[0])}
    for kind, checks in HEADERS.items():
        assert kinds[kind.decode()] == checks.keys(), kind
    keys = {key for checks in HEADERS.values() for key in checks}
    assert keys <= code_in_first_cells("protocol.md")


def _words(cell: str) -> list[str]:
    found = re.findall(r"`(\w+)`", cell)
    return found if {kind.encode() for kind in found} & HEADERS.keys() else []


def test_the_protocol_page_names_every_key_of_a_run_request():
    assert requests.RunRequest.model_fields.keys() <= code_in_first_cells("protocol.md")
    page = text_of("protocol.md")
    for key in {*requests.AgentData.model_fields, *requests.UrlPart.model_fields}:
        assert f"`{key}`" in page
    keys = code_in_first_cells("protocol.md")
    assert {*requests.ClientTool.model_fields, *requests.ToolResult.model_fields} <= keys
    for key in {*requests.ToolFault.model_fields, *requests.Steer.model_fields, *requests.CallRequest.model_fields}:
        assert re.search(rf"[`{{ ]{key}\b", page), key


def test_the_protocol_page_names_every_limit_with_its_default():
    table = {row[0].strip("`"): row[1] for row in rows("protocol.md")}
    for name, value in limits.BrokerLimits().to_wire().items():
        assert table[name] == str(value), name


def test_the_tables_of_the_backend_page_are_generated_from_the_classes():
    page = text_of("backend.md")
    assert snippets.with_backend_tables(page) == page, "run python -m tests.support.snippets"


def test_a_class_without_docstrings_for_its_table_is_reported():
    class Silent(backend.Body):
        size: int

    class Vague(backend.Message):
        """A message."""

        kind: ClassVar = b"vague"

    with pytest.raises(AssertionError, match=r"Silent.size has no docstring"):
        snippets.key_table(Silent)
    with pytest.raises(AssertionError, match="Vague does not say when it is sent"):
        snippets.message_table([Vague])


def test_the_backend_page_says_how_long_ending_a_run_takes():
    page = " ".join(text_of("backend.md").split())
    end = f"gets {END_GRACE_S * 1000:.0f} ms, and after that {END_TURNS} turns of the worker's event loop, to return"
    assert f"{end} its partial answer." in page
    assert f"All of this takes {LONGEST_END_GRACE_S:.0f} s at most" in page
    assert f"still stuck {STUCK_GRACE_S:.0f} s later, the worker leaves" in page


def test_the_backend_page_names_held_runs_and_end_reasons():
    named_there = code_in_first_cells("backend.md")
    assert {reason.value for reason in EndReason} <= named_there
    assert {*RunInfo._fields, "client", "id", "seq", "ended"} <= named_there
    assert f"version {VERSION} of a protocol" in text_of("backend.md")


@pytest.mark.parametrize("script", [s for page in PAGES for s in snippets.scripts(page, "python")], ids=str)
def test_python_snippets_of_the_pages_print_what_they_say(daemon, tmp_path, script):
    snippets.run_script(script, daemon.endpoint, tmp_path)


def test_a_snippet_with_other_output_is_reported(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- runnable: a -->\n```python\nprint('one, two')\n```\n\n<!-- prints: a -->\n\n```text\none, …\n```\n"
        "- in a list\n\n  <!-- runnable: a -->\n  ```python\n  print(2)\n  ```\n\n```python\nnot run\n```\n"
        "<!-- prints: a -->\n```text\n3\n```\n"
    )
    [script] = snippets.scripts(page, "python")
    with pytest.raises(AssertionError, match=r"page.md:\d+ says\n3\n\nbut it prints\n2"):
        snippets.run_script(script, "tcp://127.0.0.1:5570", tmp_path)
