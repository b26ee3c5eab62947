"""The worker process. supervisord starts it as `python -m axon_zmq.worker`; `axon-zmq worker` does the same."""

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
from weakref import WeakSet

from axon_zmq import settings
from axon_zmq.errors import AxonError, ConfigurationError
from axon_zmq.process import backoff, event_loop, lifeline, logs, memory, redaction
from axon_zmq.process.core_dumps import disable_core_dumps
from axon_zmq.process.gc import tune_gc
from axon_zmq.process.run_dir import backend_endpoint, clear_handover_files, private_directory
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.kinds import MODES

if TYPE_CHECKING:
    from axon_zmq.worker.host import Host
    from axon_zmq.worker.registry.agents import Registry
    from axon_zmq.worker.run import Mode

log = logging.getLogger("axon_zmq.worker")

REGISTRY_CLOSE_TIMEOUT_S: Final = 2.0
"""Seconds within which the processes of toolsets must end when the worker ends; then they are killed with it."""


def _arguments(argv: list[str]) -> argparse.Namespace:
    description = "Execute runs of one mode for a broker."
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.worker", description=description)
    parser.add_argument("--mode", required=True, choices=MODES, help="pydantic-ai's execution mode")
    parser.add_argument("--name", required=True, help="the program's name in supervisorctl status")
    parser.add_argument("--run-dir", required=True, type=Path, help="run directory of the broker")
    return parser.parse_args(argv)


async def serve(mode: str, name: str, run_dir: Path, configured: settings.Settings) -> None:
    """Execute runs until SIGTERM or SIGINT, then finish the open ones."""
    # Imported here because pydantic_ai takes most of the time of a worker's start (0.5 s of CPU): errors in the
    # settings are reported before that.
    from axon_zmq.protocol.plain import packer
    from axon_zmq.worker import run_logs
    from axon_zmq.worker.adapter import tracing
    from axon_zmq.worker.core.worker import WorkerCore
    from axon_zmq.worker.host import Host
    from axon_zmq.worker.link import Link
    from axon_zmq.worker.registry.agents import Registry
    from axon_zmq.worker.registry.models import Models

    registries = WeakSet[Registry]()  # weak, because a surplus thread of `run_sync` ends with its registry

    def make_registry(private: bool = False) -> Registry:
        made = Registry(
            targets=configured.agents,
            models=Models(
                configured.model,
                offline=configured.allows_offline_models(),
                ambient=configured.ambient_providers,
            ),
            named_toolsets=configured.toolsets,
            private=private,
            allowed_settings=configured.allowed_model_settings,
        )
        registries.add(made)
        return made

    slots = configured.slots(mode)
    registry = make_registry()
    modes = _modes(mode, slots, registry, make_registry)
    # Random for each process: otherwise late messages of a dead process would be taken for messages of the next one.
    routing_id = f"{name}.{secrets.token_hex(8)}".encode()
    run_logs.handler.install(configured.loggers())
    tracing.redact_traces()
    clear_handover_files(run_dir, limits.RESUME_WINDOW)
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
    connect = partial(Link, backend_endpoint(run_dir), routing_id)
    host = Host(
        core=core,
        modes=modes,
        registry=registry,
        run_dir=run_dir,
        connect=connect,
        memory_limit=configured.worker_memory,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.leave)
    _warn_of_unknown(configured)
    log.info("serves %s with %d slots on %s; %r", mode, slots, event_loop.kind_of(loop), registry)
    warm_up = asyncio.create_task(_warm_up(host, registry, configured.model))
    await host.serve()
    warm_up.cancel()
    closing = [asyncio.create_task(each.aclose()) for each in registries]
    await asyncio.wait(closing, timeout=REGISTRY_CLOSE_TIMEOUT_S)


def _warn_of_unknown(configured: settings.Settings) -> None:
    """Log entries of settings that allow nothing: only the worker knows the names of providers and their settings."""
    from axon_zmq.worker.adapter.model_settings import unknown_entries
    from axon_zmq.worker.registry.models import unknown_logins

    for text in unknown_logins(configured.ambient_providers):
        log.warning("AXON_AMBIENT_PROVIDERS: %s", text)
    for text in unknown_entries(configured.allowed_model_settings):
        log.warning("AXON_ALLOWED_MODEL_SETTINGS: %s", text)


def _modes(mode: str, slots: int, registry: Registry, make_registry: Callable[[bool], Registry]) -> dict[bytes, Mode]:
    """Return the executor of each kind that workers of this mode serve.

    Importing the modules of a mode takes a tenth of a second, so only the modules of this mode are imported.
    """
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
    """Execute one run with an offline model, so that the first real run does not wait for imports.

    This takes 0.1 s. It also makes the provider of AXON_MODEL, and then tunes the garbage collector.
    """
    from axon_zmq.protocol.requests import run_request
    from axon_zmq.worker.modes import agent_call
    from axon_zmq.worker.registry.agents import Registry
    from axon_zmq.worker.registry.models import Models

    await host.registered.wait()  # warming up must not delay the registration
    try:
        own = Registry(
            targets={}, models=Models(None)
        )  # in which offline models may be named, unlike perhaps in the other
        call = agent_call.build(run_request({"agent": {"model": "echo"}, "prompt": "warm"}), own)
        agent_call.completed(await call.agent.run(call.prompt, **call.options))
        if model is not None:
            registry.models.named(model)
    except AxonError as error:
        log.error("AXON_MODEL: %s", error)
    finally:
        # Last, because it exempts everything that exists now from collection. With it, a delta costs 180 µs instead
        # of 205 at 256 streams (docs/performance.md).
        tune_gc()


def main(argv: list[str] | None = None) -> int:
    """Execute runs until a signal arrives.

    Returns:
        The exit code: 2 if the settings are invalid. In every other case the process exits here, with 0 after an
        orderly stop and with 1 after an internal error.
    """
    memory.tune_allocator()
    gc.disable()  # until `tune_gc`: collections during the imports take a fifth of the start
    options = _arguments(sys.argv[1:] if argv is None else argv)
    disable_core_dumps()
    lifeline.die_with_parent()
    lifeline.stdin_from_devnull()
    redaction.redact_standard_streams()
    try:
        configured = settings.load()
        logs.configure(options.name, configured.log_level)
        run_dir = options.run_dir.absolute()
        backend_endpoint(run_dir)
        loop = event_loop.new_loop(configured.loop)
        private_directory(run_dir)
    except ConfigurationError as error:
        logs.configure(options.name, "info")
        log.error("%s", error)
        return 2
    backoff.pause(run_dir, options.name, backoff.WORKER)
    # Until the event loop handles SIGINT, the signal ends the process. With Python's handler, Ctrl-C during the import
    # of an operator's module would be taken for a KeyboardInterrupt of that module.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _run(loop, serve(options.mode, options.name, run_dir, configured))
    except Exception:
        # os._exit as below: a blocked thread must not delay the replacement of a process that no longer works.
        log.critical("the worker ends after an internal error", exc_info=True)
        logging.shutdown()
        os._exit(1)
    backoff.forget_starts(run_dir, options.name)
    logging.shutdown()
    # An ordinary exit joins all threads, and so does `asyncio.run` with its executor: a thread that a tool blocks would
    # keep the process alive for ever.
    os._exit(0)


def _run(loop: asyncio.AbstractEventLoop, serving: Coroutine[Any, Any, None]) -> None:
    """Run the event loop until `serving` has ended.

    asyncio lets SystemExit and KeyboardInterrupt of any task stop the whole loop. If a tool raises one of them, only
    the tool's run must end, so the loop is started again.
    """
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
