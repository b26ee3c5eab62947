"""Lines from standard input."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from axon_zmq.cli import stdin
from axon_zmq.cli.json_lines import JsonLinesUI
from axon_zmq.cli.stdin import InvalidUTF8Error, Lines


def test_a_line_over_the_limit_ends_the_input(monkeypatch):
    monkeypatch.setattr(stdin, "LONGEST_LINE_BYTES", 10_000)
    reading, writing = os.pipe()
    os.write(writing, b"first\r\n\nx" + bytes(30_000) + b"\nmore\n")

    async def read() -> None:
        source = Lines(reading)
        assert [await source.next(), await source.next()] == ["first", ""]
        with pytest.raises(ValueError, match="longer than 10000 bytes"):
            await source.next()
        assert await source.next() is None

    try:
        asyncio.run(read())
    finally:
        os.close(reading)
        os.close(writing)


def test_reading_lines_does_not_block_the_loop():
    reading, writing = os.pipe()

    async def read() -> None:
        source = Lines(reading)
        waiting = asyncio.create_task(source.next())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()  # a cancelled reader loses no line
        os.write(writing, b"one\ntwo\nthr")
        assert [await source.next(), await source.next()] == ["one", "two"]
        os.write(writing, "ee \u00e9".encode())
        os.close(writing)
        assert [await source.next(), await source.next()] == ["three \u00e9", None]

    asyncio.run(read())
    os.close(reading)


def test_a_line_that_is_not_utf8_is_reported_and_the_next_one_is_read():
    reading, writing = os.pipe()
    os.write(writing, b'{"call_id": "\xff"}\nnext\n')

    async def read() -> None:
        source = Lines(reading)
        with pytest.raises(InvalidUTF8Error, match="not valid UTF-8: invalid start byte in byte 13"):
            await source.next()
        assert await source.next() == "next"

    try:
        asyncio.run(read())
    finally:
        os.close(reading)
        os.close(writing)


def test_an_answer_that_is_not_utf8_is_refused_and_the_next_one_is_used(capsys):
    reading, writing = os.pipe()
    os.write(writing, b'{"call_id": "a", "result": "\xff"}\n{"call_id": "a", "result": 5}\n')
    try:
        ui = JsonLinesUI(Lines(reading))
        results = asyncio.run(ui.answer_deferred({"approvals": [], "calls": [{"call_id": "a"}]}))
    finally:
        os.close(reading)
        os.close(writing)
    assert results is not None
    assert list(results["calls"]) == ["a"]
    [refused] = map(json.loads, capsys.readouterr().out.splitlines())
    assert refused["kind"] == "refused"
    assert "not valid UTF-8" in refused["message"]
