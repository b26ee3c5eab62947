"""The suite for authors of clients: the Python client passes it, and clients that break a rule do not."""

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
from tests.conftest import ROOT, free_port, wait_until

AXON = Path(sys.executable).parent / "axon-zmq"


def verdicts_on(client: Callable[[str], None], *names: str, patience: float = 4.0) -> dict[str, Verdict]:
    server = Server(cases=[case for case in CASES if not names or case.name in names])
    driving = threading.Thread(target=client, args=(server.endpoint,), daemon=True)
    driving.start()
    verdicts = server.run(patience)
    driving.join(10)
    return {verdict.case.name: verdict for verdict in verdicts}


@pytest.mark.timeout(150)
def test_the_python_client_passes_every_case_of_the_command():
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    command = [AXON, "conformance", "--server", "--endpoint", endpoint]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    driven = subprocess.run([AXON, "conformance", "--endpoint", endpoint], capture_output=True, text=True, timeout=120)
    assert driven.returncode == 0, driven.stderr
    said, _ = server.communicate(timeout=30)
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line for line in lines if line.get("broken")] == []
    assert lines[-1] == {"passed": len(CASES), "of": len(CASES)}
    assert server.returncode == 0


class Naive:
    """A client that takes whatever comes, in the order in which it comes, and asks for nothing."""

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
        """What came; the careless one takes whatever comes for the answer."""
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
        except (zmq.Again, ValueError, TypeError):  # silence, and what is no answer
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


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", BREAKS)
def test_a_client_that_takes_whatever_comes_breaks_rules_and_is_told_which(name):
    verdict = verdicts_on(naive, name, patience=12)[name]
    assert BREAKS[name] in verdict.broken
    assert verdict.passed == (BREAKS[name] == "")


def test_what_was_not_played_has_not_passed():
    [verdict] = verdicts_on(lambda _: None, "plain", patience=1.0).values()
    assert verdict.broken == "the case was not reported"


def test_what_cannot_be_read_is_told():
    def garbled(endpoint: str) -> None:
        with Naive(endpoint) as client:
            client.socket.send_multipart([b"call_tool", b"1", b"\xc1", b""])
            client.socket.poll(500)

    [verdict] = verdicts_on(garbled, "plain", patience=1.0).values()
    assert "the header is not valid msgpack" in verdict.broken


def test_a_client_that_sends_a_run_again_which_may_have_run_is_told_so():
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


def test_what_is_asked_of_it_that_it_does_not_know_is_told():
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
        (["--endpoint", "ipc:///tmp/x"], "no endpoint with a port"),
    ],
)
def test_what_cannot_be_played_is_said(arguments, told):
    done = subprocess.run([AXON, "conformance", "--server", *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert told in done.stderr


def test_the_page_has_every_case():
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == [case.name for case in CASES]


def test_drive_is_usable_on_its_own():
    assert verdicts_on(drive, "plain", "tool")["tool"].passed
