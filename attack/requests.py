"""Attacks with requests: large, explosive or many; secrets, provider settings, schemas, mutated messages."""

from __future__ import annotations

import json
import time
from random import Random
from typing import Any, Final

import msgpack

from attack import agents
from attack.scene import Attacker, Scene, Stage
from attack.target import Target
from axon_zmq.protocol.limits import MIB
from axon_zmq.protocol.msgpack import pack, unpack
from fuzz.brokers import BROKER, FROM_WORKER
from fuzz.schemas import doubling
from fuzz.steps import decode

ECHO: Final = {"agent": "echo", "prompt": "hi"}
MAX_BODY_GROWTH = 64.0 + 8 * 16
"""MiB by which the resident memory of a worker may grow for one accepted body of 16 MiB."""
KEPT_AFTER_MIB: Final = 150.0
"""MiB that the daemon may keep after large bodies."""
FLOOD_S: Final = 30.0
"""Seconds after which a flood ends, even if fewer requests than planned were sent."""
MAX_FUZZ_S: Final = 900.0
"""Seconds after which the scene `fuzz` ends; 200,000 messages take 35 s on two idle cores."""
_TOOL: Final = {"name": "tool", "parameters": {"type": "object"}}
_BAD: Final = (
    {"agent": "missing", "prompt": "hi"},
    {"prompt": "hi"},
    {"agent": "echo", "prompt": "hi", "unknown": 1},
    {"agent": {"model": "missing:model"}, "prompt": "hi"},
    b"\xc1",
)
_CALL: Final = json.dumps([[{"name": "tool", "args": {}}]])


def large_bodies(stage: Stage) -> None:
    """Send bodies of almost 16 MiB, some at a time."""
    count = stage.scaled(6, 100)
    with stage.daemon(("run",), is_fair=False) as target:
        attacker = Attacker(target.endpoint)
        before = sum(target.resident().values()) / MIB
        body = pack(
            {"agent": "echo", "prompt": ["hi", {"kind": "binary", "data": bytes(15 * MIB), "media_type": "x/y"}]}
        )
        done = 0
        for first in range(0, count, 6):
            for number in range(first, min(count, first + 6)):
                attacker.send(b"run", b"big-%d" % number, None, body)
            done += attacker.drain(min(count, first + 6) - first, 60.0)
        attacker.close()
        time.sleep(stage.scaled(1, 30))
        kept = sum(target.resident().values()) / MIB - before
    stage.row.inputs = f"{count} bodies of 15 MiB, {done} answered"
    stage.row.notes.append(f"{kept:,.0f} MiB kept {stage.scaled(1, 30)} s later")
    stage.row.expect(stage.quick or kept <= KEPT_AFTER_MIB, f"{kept:,.0f} MiB are kept")
    most = 6 * MAX_BODY_GROWTH
    stage.row.expect(stage.row.workers_mib <= most, f"a worker grew by {stage.row.workers_mib:,.0f} MiB")


def msgpack_bomb(stage: Stage) -> None:
    """Send bodies whose values take many times their bytes in memory."""
    items = stage.scaled(2, 8) * MIB
    bombs = (b"\x90", b"\x80", b"\x91\x90")
    with stage.daemon(("run",), is_fair=False) as target:
        attacker = Attacker(target.endpoint)
        for number, item in enumerate(bombs):
            size = items // len(item)
            deps = b"\xdd" + size.to_bytes(4, "big") + item * size
            body = b"\x83" + pack("agent") + pack("echo") + pack("prompt") + pack("hi") + pack("deps") + deps
            attacker.send(b"run", b"bomb-%d" % number, None, body)
        answered = attacker.drain(len(bombs), 40.0)
        attacker.close()
    stage.row.inputs = f"{len(bombs)} bodies of {items // MIB} MiB"
    stage.row.expect(answered == len(bombs) or bool(stage.row.crashes), f"{len(bombs) - answered} were not answered")
    most = 64 + 8 * len(bombs) * items / MIB
    stage.row.expect(stage.row.workers_mib <= most, f"the worker grew by {stage.row.workers_mib:,.0f} MiB")


def synthetic(stage: Stage) -> None:
    """Ask an offline model for an output of 64 GB with a request of 100 bytes."""
    # Without this setting, offline models are refused at once; the scene attacks the bound on their output.
    with stage.daemon(("run",), is_fair=False, **_offline(stage)) as target:
        attacker = Attacker(target.endpoint)
        model = "synthetic:tokens=1000000,delay_ms=0,size=65536"
        attacker.send(b"run", b"1", {"timeout_ms": 20_000}, {"agent": {"model": model}, "prompt": "x"})
        message = attacker.receive(30.0)
        attacker.close()
    answer = "none" if message is None else unpack(message[2], "answer").get("error_type", "complete")
    stage.row.inputs = f"1 request; answer: {answer}"
    stage.row.expect(stage.row.workers_mib <= 256, f"the worker grew by {stage.row.workers_mib:,.0f} MiB")


def _offline(stage: Stage) -> dict[str, str]:
    has = Target(stage.checkout, stage.checkout).has_setting("offline_models")
    return {"AXON_OFFLINE_MODELS": "true"} if has else {}


def waiting_runs(stage: Stage) -> None:
    """Leave 8 runs behind that wait for a tool of a client that is gone."""
    with stage.daemon() as target:
        attacker = Attacker(target.endpoint)
        header = {"on_disconnect": "keep", "timeout_ms": 3_600_000}
        for number in range(8):
            body = {"agent": "caller", "prompt": _CALL, "tools": [_TOOL]}
            attacker.send(b"run_sync", b"wait-%d" % number, header, body)
        called = 0
        while called < 8 and (message := attacker.receive(5.0)) is not None:
            called += message[0] == b"tool_call"
        attacker.close()
        time.sleep(stage.scaled(2, 8))
    stage.row.inputs = f"8 runs, {called} wait for a tool"
    stage.row.expect(called == 8, f"only {called} of 8 runs have called their tool")


def small_flood(stage: Stage) -> None:
    """Send small requests as fast as one connection can."""
    _flood(stage, stage.scaled(2000, 20_000), b"run", lambda _: ECHO)


def describes(stage: Stage) -> None:
    """Ask for the catalog many times."""
    _flood(stage, stage.scaled(1000, 8000), b"describe", lambda _: None)


def bad_requests(stage: Stage) -> None:
    """Send requests that are refused, each for another reason, as fast as one connection can."""
    _flood(stage, stage.scaled(2000, 20_000), b"run", lambda number: _BAD[number % len(_BAD)])


def _flood(stage: Stage, count: int, kind: bytes, body: Any) -> None:
    with stage.daemon() as target:
        attacker = Attacker(target.endpoint)
        sent = answered = 0
        ends_at = time.monotonic() + FLOOD_S
        while answered < count and not target.crashed() and time.monotonic() < ends_at:
            while sent < count and sent - answered < 800:
                attacker.send(kind, b"f-%d" % sent, None, body(sent))
                sent += 1
            got = attacker.drain(min(400, sent - answered), 30.0)
            if not got:
                break
            answered += got
        stage.row.wrong += attacker.foreign
        attacker.close()
    stage.row.inputs = f"{sent:,} requests, {answered:,} answered"


def resumes(stage: Stage) -> None:
    """Resume an ended run of 2 MB many times."""
    count = stage.scaled(100, 3000)
    with stage.daemon() as target:
        attacker = Attacker(target.endpoint)
        attacker.send(b"run", b"1", None, {"agent": "echo", "prompt": "x" * 1_000_000})
        attacker.drain(1, 30.0)
        sent = got = 0
        ends_at = time.monotonic() + FLOOD_S
        while sent < count and not target.crashed() and time.monotonic() < ends_at:
            for _ in range(20):
                attacker.send(b"resume", b"1", {"from": 1})
            sent += 20
            got += attacker.drain(1, 20.0)  # several that wait at the same time may be answered by one
        stage.row.wrong += attacker.foreign
        attacker.close()
    stage.row.inputs = f"{sent:,} resumes, {got:,} answers"


def planted_secrets(stage: Stage) -> None:
    """Provoke errors whose texts contain secrets, and search all answers and logs."""
    with stage.daemon(("run",), is_fair=False, **agents.SECRETS) as target:
        attacker = Attacker(target.endpoint)
        attacker.send(b"describe", b"1")
        attacker.send(b"describe", b"2", None, {"agent": "broken"})
        attacker.send(b"run", b"3", None, {"agent": "broken", "prompt": "x"})
        attacker.send(b"call_tool", b"4", None, {"agent": "leaky", "tool": "connect", "args": {"place": "db"}})
        call = json.dumps([[{"name": "connect", "args": {"place": "db"}}]])
        attacker.send(b"run", b"5", None, {"agent": "leaky", "prompt": call})
        texts = {"logs": ""}
        for _ in range(5):
            if (message := attacker.receive(10.0)) is not None:
                texts[f"the answer to request {message[1].decode()}"] = message[2].decode("utf-8", "replace")
        attacker.close()
        texts["logs"] = target.logs()
    leaks = sorted(
        {
            f"{where} ({name})"
            for where, text in texts.items()
            for name, value in agents.SECRETS.items()
            if value in text
        }
    )
    stage.row.inputs = f"5 requests, {len(texts) - 1} answers"
    stage.row.expect(not leaks, f"{len(leaks)} leaks, in {', '.join(leaks[:3])}")


_OVERRIDES: Final[dict[str, dict[str, Any]]] = {
    "extra_body model": {"model_settings": {"extra_body": {"model": "the-most-expensive"}}},
    "extra_body n": {"model_settings": {"extra_body": {"n": 100}}},
    "extra_headers Authorization": {"model_settings": {"extra_headers": {"Authorization": "Bearer x"}}},
    "extra_headers host": {"model_settings": {"extra_headers": {"host": "evil"}}},
    "openai_api_key": {"model_settings": {"openai_api_key": "x"}},
    "openai_base_url": {"model_settings": {"openai_base_url": "http://127.0.0.1:1/"}},
    "openai-codex": {"model": "openai-codex:gpt-5"},
}
"""Overrides by name: parts of the body of a `run`."""


def provider_settings(stage: Stage) -> None:
    """Override what only the operator may choose: the model, its number of answers, credentials and address."""
    provider = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "unused", "NO_PROXY": "127.0.0.1"}
    accepted: list[str] = []
    with stage.daemon(("run",), is_fair=False, **provider) as target:
        attacker = Attacker(target.endpoint)
        for name, override in _OVERRIDES.items():
            body = {"agent": {"model": "openai-chat:gpt-x"}, "prompt": "x", **override}
            attacker.send(b"run", name.encode(), {"timeout_ms": 15_000}, body)
            message = attacker.receive(20.0)
            answer = {} if message is None else unpack(message[2], "answer")
            # A refusal names the setting that allows the override; an error of the provider does not.
            if answer.get("error_type") != "invalid_request" and "AXON_" not in answer.get("message", ""):
                accepted.append(f"{name} ({answer.get('error_type', 'no error')})")
        attacker.close()
    stage.row.inputs = f"{len(_OVERRIDES)} overrides"
    stage.row.expect(not accepted, f"not refused: {', '.join(accepted)}")


def schema_bombs(stage: Stage) -> None:
    """Send schemas that are exponential, deep or recursive, or have large patterns."""
    loop = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}
    tree = {"type": "object", "additionalProperties": {"oneOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "null"}]}}
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"not": deep}
    pattern = {"type": "string", "pattern": "((a{1,99}){1,99}){1,99}$"}
    schemas = (doubling(26), doubling(12), loop, tree, deep, pattern, {"$ref": "http://127.0.0.1:1/"})
    count = stage.scaled(20, 200)
    with stage.daemon() as target:
        attacker = Attacker(target.endpoint)
        for number in range(count):
            schema = schemas[number % len(schemas)]
            attacker.send(b"run", b"s-%d" % number, None, {**ECHO, "output_schema": schema})
        answered = attacker.drain(count, 60.0)
        attacker.close()
    stage.row.inputs = f"{count} schemas"
    stage.row.expect(answered == count, f"{count - answered} were not answered")


def mutated(stage: Stage) -> None:
    """Send mutated messages of every kind over several connections, and read the answers."""
    count, connections = stage.scaled(2000, 200_000), 4
    rng = Random(int(time.time()))
    with stage.daemon() as target:
        attackers = [Attacker(target.endpoint) for _ in range(connections)]
        sent = 0
        ends_at = time.monotonic() + MAX_FUZZ_S
        while sent < count and not target.crashed() and time.monotonic() < ends_at:
            for op, frames in decode(BROKER.make(rng)):
                if op < FROM_WORKER and frames and sum(map(len, frames)) < MIB:
                    attackers[op % connections].socket.send_multipart(_harmless(frames))
                    sent += 1
            for attacker in attackers:
                attacker.discard(0.0)
        for attacker in attackers:
            attacker.discard(0.5)
            stage.row.wrong += attacker.foreign
            attacker.close()
    stage.row.inputs = f"{sent:,} messages over {connections} connections"


def _harmless(frames: list[bytes]) -> list[bytes]:
    """Return a message without time limits of up to an hour and models that pause, which would only occupy slots."""
    if len(frames) < 4 or frames[0] not in (b"run", b"run_stream", b"run_sync"):
        return frames
    try:
        header = msgpack.unpackb(frames[2]) if frames[2] else {}
    except Exception:
        return frames
    if not isinstance(header, dict):
        return frames
    header.setdefault("timeout_ms", 2000)
    try:
        return [*frames[:2], pack(header), *frames[3:]]
    except Exception:
        return frames


SCENES: Final = (
    Scene("large-bodies", "bodies of almost 16 MiB", large_bodies),
    Scene("msgpack-bomb", "values that take many times their bytes", msgpack_bomb, is_quick=True),
    Scene("synthetic", "an output of 64 GB from an offline model", synthetic),
    Scene("waiting-runs", "runs that wait for a client that is gone", waiting_runs),
    Scene("small-flood", "small requests at full speed", small_flood),
    Scene("bad-requests", "invalid requests at full speed", bad_requests),
    Scene("describes", "many requests for the catalog", describes),
    Scene("resumes", "an answer of 1 MB resumed again and again", resumes),
    Scene("secrets", "errors that contain secrets", planted_secrets),
    Scene("provider", "overrides of the operator's provider settings", provider_settings),
    Scene("schemas", "exponential, deep and recursive schemas", schema_bombs),
    Scene("fuzz", "mutated messages through sockets", mutated, is_quick=True),
)
