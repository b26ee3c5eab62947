"""A fake OpenAI server as a separate process; `python -m axon_zmq.testing.provider` prints its base URL.

It serves Chat Completions (`openai-chat:…` in pydantic-ai) and Responses (`openai:…`), streamed or not, on a loopback
address only. The name of the model determines the behaviour; see `BEHAVIOURS`.

The answer repeats the last message word by word. If the request has tools and the last message is a JSON object, the
answer is a tool call: `{"NAME": {ARGUMENTS}}` calls the tool NAME, and any other object becomes the arguments of the
last tool, which is the output tool of an agent with structured output.

`GET /stats` returns statistics; see `Stats`.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Literal, Self

from axon_zmq.process import lifeline

_WORD: Final = re.compile(r"\s*\S+|\s+$")
_TIMEOUT_S: Final = 20.0
"""Seconds within which the process must end, or answer with its statistics."""
_STALL_S: Final = 3600.0
"""Seconds for which a stalled answer sends nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Behaviour of a model of the fake provider; with the defaults it answers correctly and without delay."""

    status: int = 200
    """HTTP status."""
    code: str | None = None
    """OpenAI's machine-readable error code, if `status` is an error."""
    message: str = ""
    """Text of the error; `{key}` is replaced by the API key that the client sent."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Additional HTTP headers of the response."""
    pause: float = 0.0
    """Delay before each delta, in seconds."""
    finish: Literal["stop", "length"] = "stop"
    """Finish reason; with `length` the answer is cut in half."""
    refuses: bool = False
    """Whether the model refuses to answer (OpenAI's `refusal`)."""
    breaks: Literal["close", "stall"] | None = None
    """Failure in the middle of the answer: the connection is closed, or no more data is sent."""
    nonsense: bytes | None = None
    """Invalid data that is sent instead of an answer."""


BEHAVIOURS: Final[Mapping[str, Behaviour]] = {
    "ok": Behaviour(),
    "slow": Behaviour(pause=0.05),
    # Some providers repeat the whole API key in this message; OpenAI repeats its first and last characters.
    "unauthorized": Behaviour(status=401, code="invalid_api_key", message="Incorrect API key provided: {key}."),
    "not-found": Behaviour(status=404, code="model_not_found", message="The model `not-found` does not exist."),
    "rate-limited": Behaviour(
        status=429, code="rate_limit_exceeded", message="Rate limit reached.", headers={"Retry-After": "7"}
    ),
    "quota": Behaviour(status=429, code="insufficient_quota", message="You exceeded your current quota."),
    "broken": Behaviour(status=500, code="server_error", message="The server had an error."),
    "unavailable": Behaviour(status=503, code=None, message="The engine is not available."),
    "context": Behaviour(
        status=400, code="context_length_exceeded", message="This model's maximum context length is 8 tokens."
    ),
    "rejected": Behaviour(status=400, code="invalid_value", message="Invalid value: 'temperature'."),
    "rejected-with-key": Behaviour(status=400, code="invalid_value", message="Invalid value for key {key}."),
    "broken-with-key": Behaviour(status=500, code="server_error", message="No upstream for key {key}."),
    "filtered": Behaviour(refuses=True),
    # JSON can represent lone surrogates and integers of more than 64 bits; msgpack cannot.
    "surrogate": Behaviour(
        status=400, code="half\ud83d", message="Half an emoji: \ud83d.", headers={"Retry-After": "9" * 30}
    ),
    "cut": Behaviour(breaks="close"),
    "stall": Behaviour(breaks="stall"),
    "garbage": Behaviour(nonsense=b"{It works!"),
    "misshapen": Behaviour(nonsense=b"null"),
    "webpage": Behaviour(nonsense=b"<html>It works!", headers={"Content-Type": "text/html"}),
    "length": Behaviour(finish="length"),
}
"""Behaviours by the name of the model; any other name behaves as `not-found`."""


# --- answers, independent of the API ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Content of an answer, independent of the API that the client uses."""

    model: str
    kind: Literal["text", "refusal", "call"]
    pieces: Sequence[str]
    """Deltas of the text, of the refusal, or of the tool's arguments."""
    tool: str
    """Name of the tool to call; empty if `kind` is not `call`."""
    finish: Literal["stop", "length"]

    @property
    def whole(self) -> str:
        """All deltas in one string."""
        return "".join(self.pieces)


def _answer(request: Mapping[str, Any], behaviour: Behaviour) -> Answer:
    """Return the answer to a request of either API; both have similar requests."""
    items: Any = request.get("messages") or request.get("input")
    last: Mapping[str, Any] = {"role": "user", "content": items} if isinstance(items, str) else items[-1]
    text = _text(last.get("content") or last.get("output"))
    if behaviour.refuses:
        return Answer(
            model=request["model"],
            kind="refusal",
            pieces=("I cannot", " help with that."),
            tool="",
            finish="stop",
        )
    tools = [str(tool.get("function", tool)["name"]) for tool in request.get("tools") or ()]
    if tools and last.get("role") == "user" and (arguments := _json_object(text)) is not None:
        tool = next((name for name in tools if arguments.keys() == {name}), None)
        text = json.dumps(arguments[tool] if tool else arguments)
        return Answer(model=request["model"], kind="call", pieces=_words(text), tool=tool or tools[-1], finish="stop")
    words = _words(text)
    if behaviour.finish == "length":
        words = words[: (len(words) + 1) // 2]
    return Answer(model=request["model"], kind="text", pieces=words, tool="", finish=behaviour.finish)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", f"[{part.get('type')}]") for part in content or ())


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text) or [text]


# --- Chat Completions ------------------------------------------------------------------------------


def chat_completion(answer: Answer) -> dict[str, Any]:
    """Return the answer in the format of `POST /v1/chat/completions`."""
    message = {"role": "assistant", "content": None, **_chat_part(answer, answer.whole, first=True)}
    return _chat("chat.completion", answer, {"message": message, "finish_reason": _chat_finish(answer)})


def chat_events(answer: Answer) -> Iterator[str]:
    """Yield the answer as server-sent events of `POST /v1/chat/completions`."""
    for index, piece in enumerate(answer.pieces):
        delta = _chat_part(answer, piece, first=index == 0)
        yield _event(_chat("chat.completion.chunk", answer, {"delta": delta, "finish_reason": None}))
    end = {"delta": {}, "finish_reason": _chat_finish(answer)}
    yield _event(_chat("chat.completion.chunk", answer, end))
    yield "data: [DONE]\n\n"


def _chat(object: str, answer: Answer, choice: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"id": "chatcmpl-1", "object": object, "created": int(time.time()), "model": answer.model}
    made["choices"] = [{"index": 0, **choice}]
    if choice["finish_reason"]:
        spent = len(answer.pieces)
        made["usage"] = {"prompt_tokens": 1, "completion_tokens": spent, "total_tokens": 1 + spent}
    return made


def _chat_part(answer: Answer, piece: str, first: bool) -> dict[str, Any]:
    if answer.kind != "call":
        return {"content" if answer.kind == "text" else "refusal": piece}
    call: dict[str, Any] = {"index": 0, "function": {"arguments": piece}}
    if first:
        call |= {"id": "call_1", "type": "function", "function": {"name": answer.tool, "arguments": piece}}
    return {"tool_calls": [call]}


def _chat_finish(answer: Answer) -> str:
    return "tool_calls" if answer.kind == "call" else answer.finish


# --- Responses -------------------------------------------------------------------------------------


def response(answer: Answer) -> dict[str, Any]:
    """Return the answer in the format of `POST /v1/responses`."""
    cut = answer.finish == "length"
    spent = len(answer.pieces)
    return {
        **_pending_response(answer),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_item(answer, answer.whole)],
        "usage": {
            "input_tokens": 1,
            "output_tokens": spent,
            "total_tokens": 1 + spent,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


_DELTAS: Final[Mapping[str, str]] = {
    "text": "response.output_text.delta",
    "refusal": "response.refusal.delta",
    "call": "response.function_call_arguments.delta",
}


def response_events(answer: Answer) -> Iterator[str]:
    """Yield the answer as server-sent events of `POST /v1/responses`."""
    whole = response(answer)
    place = {"output_index": 0, "item_id": "item_1", "content_index": 0}
    yield _event({"type": "response.created", "sequence_number": 0, "response": _pending_response(answer)})
    yield _event({"type": "response.output_item.added", "sequence_number": 1, **place, "item": _item(answer, "")})
    for number, piece in enumerate(answer.pieces, 2):
        yield _event({"type": _DELTAS[answer.kind], "sequence_number": number, **place, "delta": piece})
    number = len(answer.pieces) + 2
    done = {"type": "response.output_item.done", "sequence_number": number, "item": whole["output"][0]}
    yield _event({**place, **done})
    yield _event({"type": f"response.{whole['status']}", "sequence_number": number + 1, "response": whole})


def _pending_response(answer: Answer) -> dict[str, Any]:
    made = {"id": "resp_1", "object": "response", "created_at": int(time.time()), "model": answer.model}
    defaults = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
    return {**made, **defaults, "status": "in_progress", "output": []}


def _item(answer: Answer, content: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": "item_1", "status": "completed"}
    if answer.kind == "call":
        return {**item, "type": "function_call", "call_id": "call_1", "name": answer.tool, "arguments": content}
    part: dict[str, Any] = {"type": "refusal", "refusal": content}
    if answer.kind == "text":
        part = {"type": "output_text", "text": content, "annotations": []}
    return {**item, "type": "message", "role": "assistant", "content": [part]}


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


_APIS: Final = {
    "/v1/chat/completions": (chat_completion, chat_events),
    "/v1/responses": (response, response_events),
}


# --- the server ------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Stats:
    """Statistics of the provider since its start."""

    requests: int = 0
    """Number of requests, without `GET /stats`."""
    connections: int = 0
    """Number of TCP connections with at least one such request."""
    open: int = 0
    """Number of answers that are being sent."""
    abandoned: int = 0
    """Number of answers during which the client closed the connection."""
    models: dict[str, int] = field(default_factory=dict[str, int])
    """Number of requests by model."""


class _Tally:
    """Thread-safe counters for the statistics."""

    def __init__(self) -> None:
        self._stats = Stats()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self._stats, name, getattr(self._stats, name) + count)

    def model(self, name: str) -> None:
        with self._lock:
            self._stats.models[name] = self._stats.models.get(name, 0) + 1

    def packed(self) -> bytes:
        with self._lock:
            return json.dumps(asdict(self._stats)).encode()


class _Handler(BaseHTTPRequestHandler):
    """Serves the requests of one TCP connection in its own thread."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, tally: _Tally, *connection: Any) -> None:
        self._tally = tally
        self._is_new = True
        super().__init__(*connection)  # serves the connection until it is closed

    def log_message(self, format: str, *args: object) -> None:
        """Discard the log line, because stderr belongs to the test."""

    def do_GET(self) -> None:
        """Return the statistics."""
        if self.path == "/stats":
            self._send(200, self._tally.packed())
        else:
            known = "POST /v1/chat/completions, POST /v1/responses, GET /stats"
            self._fail(Behaviour(status=404, message=f"unknown path {self.path}: expected {known}"))

    def do_POST(self) -> None:
        """Answer a request with the behaviour of its model."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path not in _APIS:
            self._fail(Behaviour(status=404, message=f"unknown path {self.path}: expected one of {', '.join(_APIS)}"))
            return
        request = json.loads(body)
        self._tally.add(requests=1, connections=int(self._is_new), open=1)
        self._tally.model(request["model"])
        self._is_new = False
        try:
            self._answer(request, BEHAVIOURS.get(request["model"], BEHAVIOURS["not-found"]))
        except ConnectionError:
            self._tally.add(abandoned=1)
            self.close_connection = True
        finally:
            self._tally.add(open=-1)

    def _answer(self, request: Mapping[str, Any], behaviour: Behaviour) -> None:
        if behaviour.status != 200:
            self._fail(behaviour)
            return
        streamed = bool(request.get("stream"))
        kind = "text/event-stream" if streamed else "application/json"
        self._head(200, {"Content-Type": kind, "Transfer-Encoding": "chunked", **behaviour.headers})
        pieces = self._pieces(request, behaviour, streamed)
        if behaviour.breaks is None:
            self._deliver(pieces, behaviour.pause)
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._deliver(pieces[: len(pieces) // 2], behaviour.pause)
            if behaviour.breaks == "stall":
                self._pause(_STALL_S)
            self.close_connection = True

    def _pieces(self, request: Mapping[str, Any], behaviour: Behaviour, streamed: bool) -> list[bytes]:
        if behaviour.nonsense is not None:
            return [b"data: %s\n\n" % behaviour.nonsense if streamed else behaviour.nonsense]
        answer = _answer(request, behaviour)
        whole, events = _APIS[self.path]
        if streamed:
            return [event.encode() for event in events(answer)]
        text = json.dumps(whole(answer)).encode()
        # The answer is split into about as many pieces as a stream has, so that `pause` delays both by the same time.
        size = len(text) // (len(answer.pieces) + 1) + 1
        return [text[start : start + size] for start in range(0, len(text), size)]

    def _deliver(self, pieces: Sequence[bytes], pause: float) -> None:
        for piece in pieces:
            self._pause(pause)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def _pause(self, seconds: float) -> None:
        """Wait for some seconds.

        Raises:
            ConnectionResetError: The client closed the connection while this function waited.
        """
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if poll.poll(seconds * 1000) and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError("the client closed the connection")

    def _fail(self, behaviour: Behaviour) -> None:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        message = behaviour.message.replace("{key}", key)
        kind = "server_error" if behaviour.status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": behaviour.code}
        self._send(behaviour.status, json.dumps({"error": error}).encode(), behaviour.headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a stalled answer does not keep the process alive
    request_queue_size = 1024  # backlog of connections that wait to be accepted; the default is 5


def main(argv: Sequence[str] | None = None) -> None:
    """Print the base URL, and serve until the process is killed or its parent process ends."""
    parser = argparse.ArgumentParser(
        prog="python -m axon_zmq.testing.provider", description="Run a fake OpenAI server on 127.0.0.1."
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 selects a free port (default: 0)")
    options = parser.parse_args(argv)
    lifeline.die_with_parent(always=True)
    with _Server(("127.0.0.1", options.port), partial(_Handler, _Tally())) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}/v1\n")  # read by the process that started this one
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            server.serve_forever()


class FakeProvider:
    """The fake provider as a child process; use it as `with FakeProvider() as provider`.

    Start the daemon with the environment variables `OPENAI_BASE_URL` (`provider.base_url`) and `OPENAI_API_KEY` (any
    value). The child process also ends when the thread that started it ends.
    """

    def __init__(self) -> None:
        self.base_url = ""
        """Base URL, which ends in `/v1`; empty until the context is entered."""
        self._process: subprocess.Popen[str] | None = None

    def __repr__(self) -> str:
        return f"<FakeProvider {self.base_url or 'not started'}>"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "axon_zmq.testing.provider"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        if not self.base_url:
            exit_code = self._process.wait(_TIMEOUT_S)
            raise RuntimeError(f"the fake provider did not start: its process ended with exit code {exit_code}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=_TIMEOUT_S)

    def stats(self) -> Stats:
        """Return the statistics of the provider."""
        address = self.base_url.removeprefix("http://").removesuffix("/v1")
        connection = HTTPConnection(address, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/stats")
            return Stats(**json.loads(connection.getresponse().read()))
        finally:
            connection.close()


if __name__ == "__main__":
    main()
