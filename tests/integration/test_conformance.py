"""The conformance suite: the Python client passes, and clients that break a rule fail."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgpack
import pytest
import zmq

from axon_zmq.conformance import CASES, Server, Verdict
from axon_zmq.conformance.driver import drive
from axon_zmq.testing.ports import free_port
from tests.support import ROOT
from tests.support.daemon import WAIT_TIMEOUT_S, wait_until

AXON = Path(sys.executable).parent / "axon-zmq"


def verdicts_on(client: Callable[[str], None], *names: str, patience: float = 4.0) -> dict[str, Verdict]:
    server = Server(cases=[case for case in CASES if not names or case.name in names])
    driving = threading.Thread(target=client, args=(server.endpoint,), daemon=True)
    driving.start()
    verdicts = server.run(patience)
    driving.join(WAIT_TIMEOUT_S)
    return {verdict.case.name: verdict for verdict in verdicts}


@pytest.mark.timeout(300)
def test_the_python_client_passes_every_conformance_case():
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    command = [AXON, "conformance", "--server", "--endpoint", endpoint]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    driven = subprocess.run([AXON, "conformance", "--endpoint", endpoint], capture_output=True, text=True, timeout=240)
    assert driven.returncode == 0, driven.stderr
    said, _ = server.communicate(timeout=240)
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line for line in lines if line.get("broken")] == []
    assert lines[-1] == {"passed": len(CASES), "of": len(CASES)}
    assert server.returncode == 0


class Naive:
    """A client that accepts all messages in any order and requests nothing again."""

    def __init__(self, endpoint: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvtimeo = 10_000
        self.socket.identity = secrets.token_hex(8).encode()
        self.socket.connect(endpoint)
        self.ids = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, kind: bytes, body: dict) -> bytes:
        self.ids += 1
        id = b"%d" % self.ids
        self.socket.send_multipart([kind, id, b"", msgpack.packb(body)])
        return id

    def until_the_end(self, id: bytes, careless: bool = True) -> tuple[str, list[dict]]:
        """The received messages; this client takes any message for the answer."""
        heard: list[dict] = []
        while True:
            kind, came, packed = self.socket.recv_multipart()[:3]
            if kind == b"alive" or (came != id and not careless):
                continue
            body = msgpack.unpackb(packed)
            heard.append({"kind": kind, **body})
            if kind == b"tool_call":
                header = msgpack.packb({"call_id": body["call_id"]})
                self.socket.send_multipart(
                    [b"tool_result", id, header, msgpack.packb({"result": body["args"]["text"]})]
                )
            if kind in (b"complete", b"error"):
                return kind.decode(), heard

    def call(self, tool: str, **args: object) -> object:
        asked = self.ask(b"call_tool", {"tool": tool, "args": args})
        return self.until_the_end(asked, careless=False)[1][-1].get("result")


def naive(endpoint: str) -> None:
    with Naive(endpoint) as client:
        play_all(client)


def play_all(client: Naive) -> None:
    for name in client.call("cases"):  # type: ignore[attr-defined]
        try:
            end, heard = client.until_the_end(client.ask(b"run_stream", {"agent": "conformance", "prompt": name}))
        except (zmq.Again, ValueError, TypeError):  # silence, and messages that are not the answer
            end, heard = "error", []
        text = "".join(each["data"] for each in heard if each["kind"] == b"chunk" and each["type"] == "text")
        calls = [each["args"]["text"] for each in heard if each["kind"] == b"tool_call"]
        client.call("report", case=name, text=text, end=end, calls=calls)


BREAKS = {
    "plain": "",
    "repeated": "the application received the text '1 2 2 1 2 3 '",
    "gap": "no resume arrived",
    "stale": "received the text",
    "foreign": "the application received the text '1 not yours '",
    "silence": "no ping arrived",
    "new-boot": "no resume arrived",
    "tool": "",
    "tool-replayed": "no resume arrived",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BREAKS)
def test_a_client_that_accepts_everything_fails_and_the_rules_are_named(name):
    verdict = verdicts_on(naive, name, patience=12)[name]
    assert BREAKS[name] in verdict.broken
    assert verdict.passed == (BREAKS[name] == "")


def test_a_case_that_was_not_played_has_not_passed():
    [verdict] = verdicts_on(lambda _: None, "plain", patience=1.0).values()
    assert verdict.broken == "the case was not reported"


def test_an_unreadable_message_is_reported():
    def garbled(endpoint: str) -> None:
        with Naive(endpoint) as client:
            client.socket.send_multipart([b"call_tool", b"1", b"\xc1", b""])
            client.socket.poll(500)

    [verdict] = verdicts_on(garbled, "plain", patience=1.0).values()
    assert "the header is not valid msgpack" in verdict.broken


def test_a_client_that_resends_a_run_which_may_have_started_is_reported():
    body = {"agent": "conformance", "prompt": "may-have-run"}

    def careless(endpoint: str) -> None:
        boots: list[str] = []
        with Naive(endpoint) as client:
            client.ask(b"run_stream", body)
            while (frames := client.socket.recv_multipart())[0] != b"error":
                boot = msgpack.unpackb(frames[2])["boot"]
                if boots and boot not in boots:
                    client.socket.send_multipart([b"resume", b"1"])
                boots.append(boot)
            client.socket.send_multipart([b"run_stream", b"1", b"", msgpack.packb(body)])
            client.call("report", case="may-have-run", text="", end="error", calls=[])

    assert "a second time" in verdicts_on(careless, "may-have-run")["may-have-run"].broken


def test_unknown_instructions_are_reported():
    def lost(endpoint: str) -> None:
        with Naive(endpoint) as client:
            end, [error] = client.until_the_end(client.ask(b"run_stream", {"agent": "echo", "prompt": "x"}))
        assert (end, error["error_type"]) == ("error", "invalid_request")
        heard.append(error["message"])

    heard: list[str] = []
    verdicts_on(lost, "plain", patience=1.0)
    wait_until(lambda: heard, "the error")
    assert "this is a scripted broker" in heard[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "no-such-case"], "no-such-case"),
        (["--endpoint", "tcp://0.0.0.0:5571"], "open to other machines"),
        (["--endpoint", "ipc:///tmp/x"], "with a port from 1 to 65535"),
    ],
)
def test_invalid_arguments_are_reported(arguments, told):
    done = subprocess.run([AXON, "conformance", "--server", *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert told in done.stderr


def test_the_page_lists_every_case():
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == [case.name for case in CASES]


def test_drive_can_be_called_directly():
    assert verdicts_on(drive, "plain", "tool")["tool"].passed
