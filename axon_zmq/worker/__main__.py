"""A worker process: `python -m axon_zmq.worker`, as supervisord starts it; `axon-zmq worker` is the same."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from axon_zmq import settings
from axon_zmq.errors import AxonError, ConfigurationError
from axon_zmq.process import backoff, event_loop, lifeline, logs
from axon_zmq.process.gc import tune_gc
from axon_zmq.process.run_dir import backend_endpoint, private_directory
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.kinds import MODES

if TYPE_CHECKING:
    from axon_zmq.worker.host import Host
    from axon_zmq.worker.registry.agents import Registry
    from axon_zmq.worker.run import Mode

log = logging.getLogger("axon_zmq.worker")

REGISTRY_CLOSE_TIMEOUT_S: Final = 2.0
"""Seconds that the processes of toolsets have to end by themselves, when the worker does."""


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.worker", description="Run agents; see axon-zmq.")
    parser.add_argument("--mode", required=True, choices=MODES)
    parser.add_argument("--name", required=True, help="the program's name in supervisorctl status")
    parser.add_argument("--run-dir", required=True, type=Path, help="the broker's")
    return parser.parse_args(argv)


async def serve(mode: str, name: str, run_dir: Path, configured: settings.Settings) -> None:
    """Work until SIGTERM or SIGINT, and then until what is open has ended."""
    # pydantic_ai takes most of a worker's start: what is wrong with the settings is said before.
    from axon_zmq.protocol.plain import packer
    from axon_zmq.worker import run_logs
    from axon_zmq.worker.core.worker import WorkerCore
    from axon_zmq.worker.delivery import handover
    from axon_zmq.worker.host import Host
    from axon_zmq.worker.link import Link
    from axon_zmq.worker.registry.agents import Registry
    from axon_zmq.worker.registry.models import Models

    registries: list[Registry] = []

    def make_registry(private: bool = False) -> Registry:
        made = Registry(
            targets=configured.agents,
            models=Models(configured.model),
            named_toolsets=configured.toolsets,
            private=private,
        )
        registries.append(made)
        return made

    slots = configured.slots(mode)
    registry = make_registry()
    modes = _modes(mode, slots, registry, make_registry)
    identity = f"{name}.{secrets.token_hex(8)}".encode()
    run_logs.handler.install(configured.loggers())
    handover.clear(run_dir, time.time() - 2 * limits.RESUME_WINDOW)
    core = WorkerCore(
        name=name,
        mode=mode,
        served=frozenset(modes),
        slots=slots,
        pid=os.getpid(),
        broken=tuple(registry.broken),
        drain_s=configured.drain_seconds,
        pack_body=packer(),
        now=time.monotonic(),
    )
    connect = partial(Link, backend_endpoint(run_dir), identity)
    host = Host(core=core, modes=modes, registry=registry, run_dir=run_dir, connect=connect)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.leave)
    log.info("serves %s with %d slots on %s; %r", mode, slots, event_loop.kind_of(loop), registry)
    warming = asyncio.create_task(_warm_up(host, registry, configured.model))
    await host.serve()
    warming.cancel()
    closing = [asyncio.create_task(each.aclose()) for each in registries]
    await asyncio.wait(closing, timeout=REGISTRY_CLOSE_TIMEOUT_S)


def _modes(mode: str, slots: int, registry: Registry, make_registry: Callable[[bool], Registry]) -> dict[bytes, Mode]:
    """What executes each kind that a mode's workers take: its own modules, each a tenth of a second to import."""
    if mode == "run_sync":
        from axon_zmq.worker.modes.run_sync import RunSyncMode

        return {kinds.RUN_SYNC: RunSyncMode(slots, make_registry)}
    if mode == "run":
        from axon_zmq.worker.modes.call_tool import CallTool
        from axon_zmq.worker.modes.run import RunMode

        return {kinds.RUN: RunMode(registry), kinds.CALL_TOOL: CallTool(registry)}
    from axon_zmq.worker.modes.run_stream import RunStreamMode

    return {kinds.RUN_STREAM: RunStreamMode(registry)}


async def _warm_up(host: Host, registry: Registry, model: str | None) -> None:
    """Do once what the first run would wait for: imports and schemas, 0.1 s, and the provider of AXON_MODEL."""
    from axon_zmq.protocol.requests import run_request
    from axon_zmq.worker.modes import agent_call

    await host.registered.wait()
    try:
        call = agent_call.build(run_request({"agent": {"model": "echo"}, "prompt": "warm"}), registry)
        agent_call.completed(await call.agent.run(call.prompt, **call.options))
        if model is not None:
            registry.models.named(model)
    except AxonError as error:
        log.error("AXON_MODEL: %s", error)
    finally:
        tune_gc()


def main(argv: list[str] | None = None) -> int:
    """Work until a signal; 0 when stopped, 2 when it cannot be started as configured."""
    gc.disable()  # until everything is imported: collecting meanwhile takes a fifth of the start
    options = _arguments(sys.argv[1:] if argv is None else argv)
    lifeline.hold()
    lifeline.read_nothing()
    try:
        configured = settings.load()
        logs.configure(options.name, configured.log_level)
        run_dir = private_directory(options.run_dir.absolute())
        backend_endpoint(run_dir)
        loop = event_loop.new_loop(configured.loop)
    except ConfigurationError as error:
        logs.configure(options.name, "info")
        log.error("%s", error)
        return 2
    backoff.pause(run_dir, options.name)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop has it: a KeyboardInterrupt is an agent's own
    try:
        _run(loop, serve(options.mode, options.name, run_dir, configured))
    except Exception:
        # Ended at once, as below: a blocked thread must not keep a process that no longer works from being replaced.
        log.critical("the worker ends after an internal error", exc_info=True)
        logging.shutdown()
        os._exit(1)
    backoff.ended_in_order(run_dir, options.name)
    logging.shutdown()
    # A thread that a tool blocks would hold up an ordinary exit, and `asyncio.run`, for ever.
    os._exit(0)


def _run(loop: asyncio.AbstractEventLoop, serving: Coroutine[Any, Any, None]) -> None:
    """Run a loop to the end of `serving`; a tool that raises what ends a program ends its own run, not the loop."""
    asyncio.set_event_loop(loop)
    main_task = loop.create_task(serving)
    while not main_task.done():
        try:
            loop.run_until_complete(main_task)
        except (SystemExit, KeyboardInterrupt):
            if main_task.done():
                raise


if __name__ == "__main__":
    sys.exit(main())
