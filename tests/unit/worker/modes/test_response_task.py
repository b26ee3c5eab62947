"""A response that is read in a separate task: model and agent behave as without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from pydantic_ai import Agent, ModelSettings, RunContext
from pydantic_ai.exceptions import ModelRequestTimeout
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel

from axon_zmq.worker.modes.relaying_model import RelayingModel

WORDS = [f"{number} " for number in range(200)]
Tasks = list["asyncio.Task[Any] | None"]


def read_in_task(model: Model) -> Model:
    return RelayingModel(model, lambda _delta: None)


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


def nothing_is_left() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


def test_one_task_uses_the_model_from_its_first_event_until_it_is_closed():
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
        result = await run(read_in_task(model_of(stream)))
        assert result.output == "".join(WORDS)
        assert len(tasks) == len(WORDS) + 2
        assert len(set(tasks)) == 1
        assert asyncio.current_task() not in tasks
        assert nothing_is_left()

    asyncio.run(both())


@pytest.mark.parametrize("after", [0, 1, 100])
@pytest.mark.parametrize("error", [ValueError, TimeoutError, asyncio.CancelledError])
@pytest.mark.parametrize("how", [read_in_task, together])
def test_exceptions_of_the_model_reach_the_agent(how, error, after):
    async def stream() -> AsyncIterator[str]:
        for word in WORDS[:after]:
            yield word
        raise error("by the model")

    async def failing() -> None:
        with pytest.raises(error, match="by the model"):
            async with asyncio.timeout(60):
                await run(how(model_of(stream)))
        assert nothing_is_left()

    asyncio.run(failing())


def test_a_time_limit_set_by_the_model_ends_the_model_and_not_the_agent():
    async def stream() -> AsyncIterator[str]:
        async with asyncio.timeout(0.05):
            yield "a "
            yield "b "
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(run(read_in_task(model_of(stream))))


@pytest.mark.parametrize("how", [read_in_task, together])
def test_a_cancelled_agent_ends_after_the_model_is_closed(how):
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
        assert nothing_is_left()

    asyncio.run(cancelled())


def test_a_model_is_closed_when_the_agent_stops_reading():
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
            await run(read_in_task(model_of(stream)), listen)
        assert closed == [True]
        assert nothing_is_left()

    asyncio.run(giving_up())


def test_an_event_is_handled_by_the_agent_before_the_model_continues():
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

    asyncio.run(run(read_in_task(model_of(stream)), listen))
    assert set(heard) == {0}


def replace_events(response: StreamedResponse, wrap: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]) -> None:
    """Wrap the events of a response, as a model of another library may have them."""

    class Wrapped(type(response)):  # type: ignore[misc]
        def _get_event_iterator(self) -> AsyncIterator[Any]:
            return wrap(super()._get_event_iterator())

    response.__class__ = Wrapped


class Slow(WrapperModel):
    """A model that opens and closes only when a test allows it, and records the task of each step."""

    def __init__(self, wrapped: Model) -> None:
        super().__init__(wrapped)
        self.may_open, self.may_close = asyncio.Event(), asyncio.Event()
        self.reached = asyncio.Event()
        self.steps: list[tuple[str, asyncio.Task[Any] | None]] = []

    def note(self, step: str) -> None:
        self.steps.append((step, asyncio.current_task()))

    async def wait(self, may: asyncio.Event, step: str) -> None:
        try:
            if not may.is_set():
                self.reached.set()
                await may.wait()
            self.note(step)
        except asyncio.CancelledError:
            self.note(f"{step} cancelled")
            raise

    async def noted(self, events: AsyncIterator[Any]) -> AsyncGenerator[Any]:
        try:
            async for event in events:
                yield event
        finally:
            self.note("events closed")

    @asynccontextmanager
    async def request_stream(self, *args: Any, **more: Any) -> AsyncGenerator[StreamedResponse]:
        await self.wait(self.may_open, "opened")
        async with self.wrapped.request_stream(*args, **more) as response:
            replace_events(response, self.noted)
            try:
                yield response
            finally:
                await self.wait(self.may_close, "closed")


async def words() -> AsyncIterator[str]:
    for word in WORDS:
        yield word


async def endless() -> AsyncIterator[str]:
    yield "a "
    await asyncio.Event().wait()


def names(model: Slow) -> list[str]:
    return [step for step, _ in model.steps]


@pytest.mark.parametrize("how", [read_in_task, together])
def test_a_cancellation_while_a_response_closes_waits_for_the_close(how):
    async def cancelled() -> None:
        model = Slow(model_of(words))
        model.may_open.set()
        task = asyncio.create_task(run(how(model)))
        await model.reached.wait()  # the response was read to its end
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names(model) == ["opened", "events closed", "closed cancelled"]
        assert nothing_is_left()

    asyncio.run(cancelled())


@pytest.mark.parametrize("how", [read_in_task, together])
def test_a_second_cancellation_while_a_response_closes_does_not_wait(how):
    async def cancelled() -> None:
        model = Slow(model_of(endless))
        model.may_open.set()
        heard = asyncio.Event()

        async def listen(_context: RunContext[Any], events: Any) -> None:
            async for _ in events:
                heard.set()

        task = asyncio.create_task(run(how(model), listen))
        await heard.wait()
        task.cancel()
        await model.reached.wait()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert set(names(model)) - {"events closed"} == {"opened", "closed cancelled"}
        assert nothing_is_left()

    asyncio.run(cancelled())


@pytest.mark.parametrize("how", [read_in_task, together])
def test_a_request_that_takes_too_long_to_open_is_abandoned(how):
    async def late() -> None:
        model = Slow(model_of(words))
        agent = Agent(how(model), model_settings=ModelSettings(request_timeout=0.05))
        with pytest.raises(ModelRequestTimeout):
            await agent.run("go", event_stream_handler=drained)
        assert names(model) == ["opened cancelled"]
        assert nothing_is_left()

    asyncio.run(late())


@pytest.mark.parametrize("how", [read_in_task, together])
def test_an_error_that_the_model_suppresses_on_close_ends_its_answer(how):
    class Forgiving(WrapperModel):
        @asynccontextmanager
        async def request_stream(self, *args: Any, **more: Any) -> AsyncGenerator[StreamedResponse]:
            with suppress(ConnectionError):
                async with self.wrapped.request_stream(*args, **more) as response:
                    yield response

    async def stream() -> AsyncIterator[str]:
        yield "one "
        yield "two "
        raise ConnectionError("by the network")

    async def forgiven() -> None:
        async with asyncio.timeout(60):
            result = await run(how(Forgiving(model_of(stream))))
        assert "one " in result.output
        assert nothing_is_left()

    asyncio.run(forgiven())


@pytest.mark.parametrize("how", [read_in_task, together])
def test_a_cancellation_raised_on_close_cancels_the_agent(how):
    class Ending(WrapperModel):
        @asynccontextmanager
        async def request_stream(self, *args: Any, **more: Any) -> AsyncGenerator[StreamedResponse]:
            async with self.wrapped.request_stream(*args, **more) as response:
                yield response
            raise asyncio.CancelledError("by the close")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run(how(Ending(model_of(words)))))


def test_events_without_aclose_can_be_read():
    class Plain(WrapperModel):
        @asynccontextmanager
        async def request_stream(self, *args: Any, **more: Any) -> AsyncGenerator[StreamedResponse]:
            async with self.wrapped.request_stream(*args, **more) as response:
                replace_events(response, Unclosable)
                yield response

    class Unclosable:
        def __init__(self, events: AsyncIterator[Any]) -> None:
            self.events = events

        def __aiter__(self) -> AsyncIterator[Any]:
            return self.events

    assert asyncio.run(run(read_in_task(Plain(model_of(words))))).output == "".join(WORDS)


@pytest.mark.parametrize("cancels", [1, 2])
def test_a_response_that_opens_after_the_agent_was_cancelled_is_closed(cancels):
    class Deaf(Slow):
        async def wait(self, may: asyncio.Event, step: str) -> None:
            try:
                await super().wait(may, step)
            except asyncio.CancelledError:
                if step == "closed":
                    raise

    async def cancelled() -> None:
        model = Deaf(model_of(words))
        model.may_close.set()
        task = asyncio.create_task(run(read_in_task(model)))
        await model.reached.wait()
        for _ in range(cancels):
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names(model)[0] == "opened cancelled"
        assert names(model)[-1] == "closed"
        assert nothing_is_left()

    asyncio.run(cancelled())


def test_a_response_is_closed_in_the_task_that_opened_it():
    async def listen(_context: RunContext[Any], events: Any) -> None:
        async for _ in events:
            raise KeyError("enough")

    async def giving_up() -> None:
        model = Slow(model_of(words))
        model.may_open.set()
        model.may_close.set()
        with pytest.raises(KeyError, match="enough"):
            await run(read_in_task(model), listen)
        assert names(model) == ["opened", "events closed", "closed"]
        assert len({task for _, task in model.steps}) == 1
        assert nothing_is_left()

    asyncio.run(giving_up())
