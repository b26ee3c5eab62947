# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""How applications use the clients, for the type checker only: `tests/docs/test_exports.py` runs pyright on this file.

A line with `pyright: ignore` must be an error: pyright reports the comment if the line is correct.
"""

from __future__ import annotations

from typing import assert_type

from axon_zmq import AsyncClient, Chunk, Client, Complete, Event, RunOptions, RunStream, Tool, deferred_results


def add(a: int, b: int) -> int:
    return a + b


def blocking(client: Client) -> None:
    options: RunOptions = {"timeout_ms": 1000, "tools": [add, Tool(add), {"name": "ask"}], "credit": None}
    done = client.run("echo", "Hello", **options)
    assert_type(done, Complete)
    client.run({"model": "echo"}, ["text", {"kind": "cache-point"}], message_history=done.messages, log="info")
    client.run_sync("echo", output_schema={"type": "object"}, retries={"tools": 2}, deps={"user": [1, b"x", None]})
    client.call_tool("add", {"a": 1, "b": 2}, agent="math", timeout_ms=5)
    client.run("echo", deferred_tool_results=deferred_results(done, approve=lambda call: call["name"] == "add"))
    with client.stream("echo", "Hello", mode="run", id="1", on_disconnect="keep") as events:
        for event in events:
            assert_type(event, Event)
            if isinstance(event, Chunk):
                events.steer("more")
    settings = {"temperature": 0.5, "stop": ["a"]}
    client.run("echo", model_settings=settings)

    client.run("echo", promt="Hello")  # pyright: ignore[reportCallIssue]
    client.run("echo", timeout_ms="1000")  # pyright: ignore[reportArgumentType]
    client.run(5)  # pyright: ignore[reportArgumentType]
    client.run("echo", log="warn")  # pyright: ignore[reportArgumentType]
    client.run("echo", tools=[5])  # pyright: ignore[reportArgumentType]
    client.run("echo", deps={"user": object()})  # pyright: ignore[reportArgumentType]
    client.call_tool("add", {}, model="echo")  # pyright: ignore[reportCallIssue]
    client.stream("echo", mode="stream")  # pyright: ignore[reportArgumentType]


async def asynchronous(client: AsyncClient) -> None:
    assert_type(client.stream("echo", "Hello", credit=5), RunStream)
    assert_type(await client.run("echo", "Hello", usage_limits={"request_limit": 3}), Complete)
    await client.call_tool("add", {"a": 1}, deps=None)
    await client.run_sync("echo", retries="many")  # pyright: ignore[reportArgumentType]
