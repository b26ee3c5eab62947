"""Tools, approvals and logs in the command: for a person at a pseudo-terminal, and for a program in a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.client_tools import calls
from tests.support.command import AXON, axon, lines
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon, wait_until

TOOLS = '{"model": "tools", "retries": 2}'
ANY = {"type": "object"}
COMMANDS = ["stream", "run"]
_ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def tools(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a file of tools and returns its path."""

    def write(*definitions: Any) -> str:
        path = tmp_path / "tools.json"
        path.write_text(json.dumps(definitions))
        return str(path)

    return write


ASK = {"name": "ask", "parameters": ANY}


# --- a person at a terminal ------------------------------------------------------------------------


class Terminal:
    """The command at its own pseudo-terminal, and the actions of a person."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_A_TERMINAL, str(AXON), *arguments],
            env={**os.environ, "AXON_FRONTEND": daemon.endpoint, "TERM": "xterm", "NO_COLOR": "1"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.received = b""
        self.seen = ""
        self.read_to = 0

    def see(self, text: str) -> None:
        """Wait until a text is shown after the texts that were seen before."""
        give_up = time.monotonic() + WAIT_TIMEOUT_S
        while (found := self.seen.find(text, self.read_to)) < 0:
            assert self._more(give_up), f"not seen: {text!r}; seen was:\n{self.seen}"
        self.read_to = found + len(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Wait for its end; the exit code."""
        give_up = time.monotonic() + WAIT_TIMEOUT_S
        while self._more(give_up):
            pass
        return self.process.wait(WAIT_TIMEOUT_S)

    def _more(self, give_up: float) -> bool:
        assert select.select([self._master], [], [], max(0, give_up - time.monotonic()))[0], f"silent:\n{self.seen}"
        try:
            piece = os.read(self._master, 65_536)
        except OSError:  # Linux reports EIO if the other end is closed
            return False
        self.received += piece
        self.seen = re.sub(r"\x1b\[[0-9;]*m", "", self.received.decode(errors="ignore")).replace("\r\n", "\n")
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_TIMEOUT_S)
        os.close(self._master)


RESULT = "result as JSON or text (!message to fail): "


@pytest.mark.parametrize("command", COMMANDS)
def test_a_person_answers_tool_calls(daemon, tools, command):
    prompt = json.dumps([[{"name": "ask", "args": {"n": n}}] for n in range(5)])
    with Terminal(daemon, command, TOOLS, prompt, "--tools", tools(ASK)) as shown:
        for number, typed in enumerate(['{"a": [1]}', "some text", "5", "!out of order", ""]):
            shown.see(f'ask {{"n":{number}}}\n{RESULT}')
            shown.type(f"{typed}\n")
        assert shown.end() == 0
        *_, last = shown.seen.strip().splitlines()
        assert json.loads(last) == [{"a": [1]}, "some text", 5, "out of order", "no result was given"]
        assert "tool_started" not in shown.seen
        assert "[ask" not in shown.seen
        assert "[success" not in shown.seen


def test_simultaneous_calls_are_asked_one_after_the_other(daemon, tools):
    prompt = json.dumps([{"name": "ask", "args": {"n": n}} for n in range(3)])
    with Terminal(daemon, "stream", TOOLS, prompt, "--tools", tools(ASK)) as shown:
        for number in range(3):
            shown.see(f'ask {{"n":{number}}}\n{RESULT}')
            assert f'"n":{number + 1}}}\n{RESULT}' not in shown.seen
            shown.type(f"{number}\n")
        assert shown.end() == 0
        assert shown.seen.endswith("[0,1,2]\n")


def test_an_invalid_answer_is_asked_for_again(daemon, tools):
    tool = {**ASK, "returns": {"type": "integer"}}
    with Terminal(daemon, "run", TOOLS, calls("ask"), "--tools", tools(tool)) as shown:
        shown.see(RESULT)
        shown.type("five\n")
        shown.see("refused tool_result: /result: 'five' is not of type 'integer'\nask {}\n")
        shown.see(RESULT)
        shown.type("5\n")
        assert shown.end() == 0
        assert shown.seen.endswith("\n[5]\n")


def test_a_question_is_withdrawn_when_its_answer_is_no_longer_needed(daemon, tools):
    tool = {**ASK, "timeout_ms": 300}
    prompt = json.dumps([[{"name": "ask", "args": {"n": 1}}], [{"name": "other", "args": {}}]])
    with Terminal(daemon, "stream", TOOLS, prompt, "--tools", tools(tool, {**ASK, "name": "other"})) as shown:
        shown.see(RESULT)
        shown.see("\nask: cancelled, no answer needed\n")
        if "other {}" not in shown.seen[shown.read_to :]:
            shown.see("other {}")
        shown.see(RESULT)
        shown.type('"of the other"\n')
        assert shown.end() == 0
        assert "of the other" in shown.seen.splitlines()[-1]


def test_the_end_of_input_fails_the_open_calls(daemon, tools):
    with Terminal(daemon, "run", TOOLS, calls("ask", "ask"), "--tools", tools(ASK)) as shown:
        shown.see(RESULT)
        shown.type("\x04")
        assert shown.end() == 0
        assert shown.seen.endswith('["no result was given","no result was given"]\n')


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("typed", "result"),
    [
        ("y", "refunded 12"),
        ("", "The tool call was denied."),
        ("too much", "too much"),
        ('{"euros": 5}', "refunded 5"),
    ],
)
def test_a_person_approves_and_the_run_continues(daemon, command, typed, result):
    with Terminal(daemon, command, "careful", "?") as shown:
        shown.see('approve refund {"euros":12}? [y/N, a reason to refuse, or other arguments as JSON] ')
        shown.type(f"{typed}\n")
        assert shown.end() == 0
        assert shown.seen.splitlines()[-1] == result


def test_decisions_and_results_are_asked_before_the_approved_live_call(daemon, tools):
    definitions = [{**ASK, "mode": "deferred"}, {**ASK, "name": "live", "approval": True}]
    prompt = json.dumps([{"name": "ask", "args": {}}, {"name": "live", "args": {}}])
    with Terminal(daemon, "run", TOOLS, prompt, "--tools", tools(*definitions)) as shown:
        shown.see("approve live {}?")
        shown.type("yes\n")
        shown.see(f"ask {{}}\n{RESULT}")
        shown.type("2\n")
        shown.see(f"live {{}}\n{RESULT}")
        shown.type("1\n")
        assert shown.end() == 0
        assert sorted(json.loads(shown.seen.splitlines()[-1])) == [1, 2]


def test_without_an_approver_the_exit_code_is_1(daemon):
    with Terminal(daemon, "run", "careful", "?") as shown:
        shown.see("approve refund")
        shown.type("\x04")
        assert shown.end() == 1
        assert "error: standard input ended before the call was answered" in shown.seen


@pytest.mark.parametrize("arguments", [("run", TOOLS, calls("ask")), ("stream", TOOLS, calls("ask"))])
def test_ctrl_c_at_a_question_exits_at_once_and_cancels_the_run(daemon, tools, arguments):
    worker = {"run": "run-2", "stream": "run_stream-3"}[arguments[0]]
    before = daemon.log(worker).count("cancelled after")
    with Terminal(daemon, *arguments, "--tools", tools(ASK)) as shown:
        shown.see(RESULT)
        interrupted = time.monotonic()
        shown.type("\x03")
        assert shown.end() == 130
        assert time.monotonic() - interrupted < 20
        assert "Traceback" not in shown.seen
    wait_until(lambda: daemon.log(worker).count("cancelled after") > before, "the end of the run")


def test_ctrl_c_at_an_approval_exits_at_once(daemon):
    with Terminal(daemon, "run", "careful", "?") as shown:
        shown.see("approve refund")
        shown.type("\x03")
        assert shown.end() == 130
        assert "Traceback" not in shown.seen


def test_logs_on_a_terminal_appear_where_they_were_logged(daemon):
    with Terminal(daemon, "stream", "logging", "Oslo", "--log", "info") as shown:
        shown.see("info sample_agents.tools: asked for Oslo {")
        shown.see("warning sample_agents.tools: from a thread")
        shown.see("error sample_agents.tools: cannot divide")
        assert shown.end() == 0
        assert "in detail" not in shown.seen


EVIL = "\x1b[2J\x1b]0;title\x07\b\r\x9b1Aapprove\x7f"
HARMLESS = "[2J]0;title1Aapprove"


@pytest.mark.parametrize("command", COMMANDS)
def test_model_text_cannot_send_control_characters_to_a_terminal(daemon, command):
    with Terminal(daemon, command, "echo", f"one\n\ttwo {EVIL}") as shown:
        assert shown.end() == 0
    plain = shown.received.decode().replace("\r\n", "\n")
    assert f"one\n        two {HARMLESS}\n" in plain  # rich replaces tabs with spaces
    assert not re.search(r"[^\n\t\x20-\x7e]", plain)


# --- a program in a pipe ---------------------------------------------------------------------------


class Piped:
    """The command between two pipes."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [AXON, *arguments],
            env={**os.environ, "AXON_FRONTEND": daemon.endpoint},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, Any]] = []
        self._killer = threading.Timer(WAIT_TIMEOUT_S, self.process.kill)
        self._killer.start()

    def until(self, kind: str) -> dict[str, Any]:
        """The next event of a kind."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.events.append(json.loads(line))
            if self.events[-1]["kind"] == kind:
                return self.events[-1]
        raise AssertionError(f"no {kind} in {self.events}; {self._errors()}")

    def write(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> int:
        assert self.process.stdout is not None
        self.events += [json.loads(line) for line in self.process.stdout]
        return self.process.wait(WAIT_TIMEOUT_S)

    def _errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._killer.cancel()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("command", [["stream"], ["run"], ["run", "--sync"]])
def test_a_program_answers_tool_calls(daemon, tools, command):
    prompt = json.dumps([{"name": "ask", "args": {"n": n}} for n in range(3)])
    with Piped(daemon, *command, TOOLS, prompt, "--tools", tools(ASK)) as piped:
        open_calls = [piped.until("tool_call") for _ in range(3)]
        assert [call["args"]["n"] for call in open_calls] == [0, 1, 2]
        a, b, c = (call["call_id"] for call in open_calls)
        piped.write({"call_id": c, "result": {"c": 3}, "metadata": {"m": 1}})
        piped.write({"call_id": a, "error": {"message": "no"}})
        piped.write({"call_id": b, "result": None})
        done = piped.until("complete")
        assert json.loads(done["result"]) == ["no", None, {"c": 3}]
        assert piped.end() == 0


def test_an_invalid_line_is_reported_as_refused_and_the_run_continues(daemon, tools):
    wrong = [
        "no json",
        "[]",
        {"call_id": 5, "result": 1},
        {"call_id": "x", "result": 1, "more": 1},
        {"call_id": "x", "error": {"message": "no", "retry": "yes"}},
        {"approve": {"x": 5}},
        {"approve": {"x": True}},
    ]
    with Piped(
        daemon, "stream", TOOLS, calls("ask"), "--tools", tools({**ASK, "returns": {"type": "integer"}})
    ) as piped:
        call_id = piped.until("tool_call")["call_id"]
        piped.write("")
        for line in wrong:
            piped.write(line)
            refused = piped.until("refused")
            assert (refused["of"], refused["error_type"]) == ("answer", "invalid_request")
        piped.write({"call_id": "never-made", "result": 1})
        assert piped.until("refused") == {
            "kind": "refused",
            "of": "tool_result",
            "error_type": "unknown_request",
            "message": "call 'never-made' was never made",
            "call_id": "never-made",
        }
        piped.write({"call_id": call_id, "result": "five"})
        assert piped.until("refused")["call_id"] == call_id
        piped.write({"call_id": call_id, "result": 5})
        assert json.loads(piped.until("complete")["result"]) == [5]
        assert piped.end() == 0


def test_a_program_approves_and_gives_results_and_the_run_continues(daemon, tools):
    definitions = [{**ASK, "mode": "deferred"}, {**ASK, "name": "live", "approval": True}]
    prompt = json.dumps([{"name": name, "args": {}} for name in ("ask", "ask", "live", "live")])
    with Piped(daemon, "run", TOOLS, prompt, "--tools", tools(*definitions)) as piped:
        deferred = piped.until("complete")["deferred"]
        [a, b], [x, y] = ([call["call_id"] for call in deferred[kind]] for kind in ("calls", "approvals"))
        piped.write({"approve": {a: True}})
        assert piped.until("refused")["call_id"] == a
        piped.write({"steer": "too late"})
        piped.until("refused")
        piped.write({"approve": {x: "not this one", y: {"n": 1}}})
        piped.write({"call_id": a, "result": "A"})
        piped.write({"call_id": b, "error": {"message": "lost", "retry": False}})
        live = piped.until("tool_call")
        assert (live["call_id"], live["args"]) == (y, {"n": 1})
        piped.write({"call_id": y, "result": "Y"})
        done = piped.until("complete")
        assert sorted(json.loads(done["result"])) == ["A", "Y", "lost", "not this one"]
        assert piped.end() == 0


def test_approvals_in_a_pipe_are_read_when_they_are_asked_for(daemon):
    with Piped(daemon, "stream", "careful", "?", "-i") as piped:
        [call] = piped.until("complete")["deferred"]["approvals"]
        piped.write({"approve": {call["call_id"]: True}})
        assert piped.until("complete")["result"] == "refunded 12"
        assert piped.end() == 0
    done = axon(daemon, "run", "careful", "?", stdin="not read")
    assert done.returncode == 0
    assert [line["name"] for line in lines(done)[-1]["deferred"]["approvals"]] == ["refund"]
    done = axon(daemon, "run", "careful", "?", "--interactive")
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard input ended before the call was answered: ")


def test_the_end_of_standard_input_fails_open_and_later_calls(daemon, tools):
    prompt = json.dumps([[{"name": "ask", "args": {}}], [{"name": "ask", "args": {}}]])
    with Piped(daemon, "stream", TOOLS, prompt, "--tools", tools(ASK)) as piped:
        piped.until("tool_call")
        piped.close()
        results = json.loads(piped.until("complete")["result"])
        assert results == ["standard input ended before the call was answered"] * 2
        assert piped.end() == 0


def test_answers_may_come_from_a_file(daemon, tools, tmp_path):
    """The file is read to its end before the first call is made."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"call_id": "x", "result": 1}\nno end of line')
    with answers.open() as stdin:
        done = subprocess.run(
            [AXON, "run", TOOLS, calls("ask"), "--tools", tools(ASK)],
            env={**os.environ, "AXON_FRONTEND": daemon.endpoint},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=240,
        )
    kinds = [line["kind"] for line in lines(done)]
    assert kinds.count("refused") == 2
    assert kinds[-1] == "complete"


def test_without_standard_input_the_calls_fail(daemon, tools):
    command = f"exec {AXON} run '{TOOLS}' '{calls('ask')}' --tools {tools(ASK)} <&-"
    done = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "AXON_FRONTEND": daemon.endpoint},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(lines(done)[-1]["result"]) == ["standard input ended before the call was answered"]


def test_a_program_steers_a_run_from_a_pipe(daemon, tools):
    with Piped(daemon, "stream", TOOLS, calls("ask"), "--tools", tools(ASK)) as piped:
        call_id = piped.until("tool_call")["call_id"]
        piped.write({"steer": "hurry"})
        piped.write({"steer": "and thanks", "priority": "when_idle"})
        piped.write({"call_id": call_id, "result": 1})
        assert json.loads(piped.until("complete")["result"]) == [1, {"heard": "hurry"}, {"heard": "and thanks"}]


def test_logs_in_a_pipe_are_json_lines(daemon):
    logs = [line for line in lines(axon(daemon, "run", "logging", "Oslo", "--log", "warning")) if line["kind"] == "log"]
    assert [(line["level"], line["message"]) for line in logs] == [
        ("warning", "from a thread"),
        ("error", "cannot divide"),
    ]


def test_sigint_in_a_pipe_exits_at_once(daemon, tools):
    with Piped(daemon, "stream", TOOLS, calls("ask"), "--tools", tools(ASK)) as piped:
        piped.until("tool_call")
        piped.process.send_signal(signal.SIGINT)
        assert piped.end() == 130


# --- wrong use, and `call` -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "{}", '["name"]', "5"])
def test_a_file_without_a_list_of_tools_has_exit_code_2(tmp_path, text):
    path = tmp_path / "tools.json"
    path.write_text(text)
    done = axon(None, "run", "echo", "x", "--tools", str(path))
    assert done.returncode == 2
    assert "tools.json is not valid JSON" in done.stderr or "tools.json: expected a list" in done.stderr


def test_an_invalid_tool_has_exit_code_2(daemon, tools):
    done = axon(daemon, "run", "echo", "x", "--tools", tools({"name": "x", "parametres": {}}))
    assert done.returncode == 2
    assert "tool 'x': /parametres: is unknown" in done.stderr


@pytest.mark.parametrize("more", [["--tools", "x"], ["-i"]])
def test_prompt_and_answers_cannot_both_come_from_standard_input(tools, more):
    arguments = [tools(ASK) if part == "x" else part for part in more]
    done = axon(None, "run", "echo", "-", *arguments, stdin="hi")
    assert done.returncode == 2
    assert "give the prompt as an argument" in done.stderr


def test_call_prints_the_result_of_a_tool(daemon):
    done = axon(daemon, "call", "temperature", '{"place": "Oslo"}', "--agent", "weather")
    [line] = lines(done)
    assert (done.returncode, line["kind"], line["result"]) == (0, "complete", {"place": "Oslo", "celsius": -3.0})
    with Terminal(daemon, "call", "temperature", '{"place": "Oslo"}', "--agent", "weather") as shown:
        assert shown.end() == 0
        assert json.loads(shown.seen) == {"place": "Oslo", "celsius": -3.0}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["temperature", "{"], 2, "invalid arguments '{': not valid JSON"),
        (["temperature", "[]"], 2, "invalid arguments '[]': expected a JSON object"),
        (["no_such_tool"], 2, "unknown_tool"),
        (["temperature", '{"place": "Atlantis"}', "--agent", "weather"], 1, "tool_failed"),
        (["temperature", '{"palce": "Oslo"}', "--agent", "weather"], 2, "invalid_request"),
    ],
)
def test_a_failed_call_prints_its_error(daemon, arguments, code, message):
    done = axon(daemon, "call", *arguments)
    assert done.returncode == code
    assert message in done.stderr
