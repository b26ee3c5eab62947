"""A response that is read in a task of its own: for the model, and for the agent, it is as if it were not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel

from axon_zmq.worker.ahead import Ahead

WORDS = [f"{number} " for number in range(200)]
Tasks = list["asyncio.Task[Any] | None"]


def apart(model: Model) -> Model:
    return Ahead(model, lambda _delta: None)


def together(model: Model) -> Model:
    return model


async def drained(_context: RunContext[Any], events: Any) -> None:
    async for _ in events:
        pass


def model_of(stream: Callable[[], AsyncIterator[str]]) -> FunctionModel:
    async def streamed(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        async for word in stream():
            yield word

    return FunctionModel(stream_function=streamed)


async def run(model: Model, listen: Any = drained) -> Any:
    return await Agent().run("go", model=model, event_stream_handler=listen)


def test_the_model_has_one_task_from_its_first_word_until_it_is_closed():
    tasks: Tasks = []

    async def stream() -> AsyncIterator[str]:
        tasks.append(asyncio.current_task())
        try:
            for word in WORDS:
                await asyncio.sleep(0)
                tasks.append(asyncio.current_task())
                yield word
        finally:
            tasks.append(asyncio.current_task())

    async def both() -> None:
        result = await run(apart(model_of(stream)))
        assert result.output == "".join(WORDS)
        assert len(tasks) == len(WORDS) + 2
        assert len(set(tasks)) == 1
        assert asyncio.current_task() not in tasks
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(both())


@pytest.mark.parametrize("after", [0, 1, 100])
@pytest.mark.parametrize("error", [ValueError, TimeoutError, asyncio.CancelledError])
@pytest.mark.parametrize("how", [apart, together])
def test_what_the_model_raises_the_agent_raises(how, error, after):
    async def stream() -> AsyncIterator[str]:
        for word in WORDS[:after]:
            yield word
        raise error("by the model")

    async def failing() -> None:
        with pytest.raises(error, match="by the model"):
            async with asyncio.timeout(5):
                await run(how(model_of(stream)))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(failing())


def test_a_time_limit_that_the_model_sets_itself_ends_the_model_and_not_the_agent():
    async def stream() -> AsyncIterator[str]:
        async with asyncio.timeout(0.05):
            yield "a "
            yield "b "
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(run(apart(model_of(stream))))


@pytest.mark.parametrize("how", [apart, together])
def test_where_the_agent_is_cancelled_the_model_is_closed_before_it_has_ended(how):
    closed: list[BaseException | None] = []

    async def cancelled() -> None:
        waits = asyncio.Event()

        async def stream() -> AsyncIterator[str]:
            try:
                yield "a "
                yield "b "
                waits.set()
                await asyncio.Event().wait()
            except BaseException as error:
                await asyncio.sleep(0)
                closed.append(error)
                raise

        task = asyncio.create_task(run(how(model_of(stream))))
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [type(error) for error in closed] == [asyncio.CancelledError]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancelled())


def test_where_the_agent_gives_up_the_model_is_closed():
    closed: list[bool] = []

    async def stream() -> AsyncIterator[str]:
        try:
            for word in WORDS:
                yield word
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def listen(_context: RunContext[Any], events: Any) -> None:
        async for _ in events:
            raise KeyError("enough")

    async def giving_up() -> None:
        with pytest.raises(KeyError, match="enough"):
            await run(apart(model_of(stream)), listen)
        assert closed == [True]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(giving_up())


def test_the_agent_has_dealt_with_an_event_before_the_model_goes_on():
    given: list[str] = []
    heard: list[int] = []

    async def stream() -> AsyncIterator[str]:
        for word in WORDS:
            given.append(word)
            yield word

    async def listen(_context: RunContext[Any], events: Any) -> None:
        async for _ in events:
            before = len(given)
            await asyncio.sleep(0.001)
            heard.append(len(given) - before)

    asyncio.run(run(apart(model_of(stream)), listen))
    assert set(heard) == {0}
