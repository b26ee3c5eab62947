"""The peers: how each is started, and why one is left out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.dealers import Dealers
from bench.measure import Service
from bench.processes import Process, Site, site

FASTAPI, GRPC, NATS, PROXY = "FastAPI + WebSocket", "gRPC", "NATS", "C proxy"
_HEADER = Path("/usr/include/zmq.h")
POST = "FastAPI, POST"
"""Name of the second way to send a unary request to FastAPI."""
PACKAGES = {FASTAPI: ("fastapi", "httptools", "uvicorn", "uvloop", "websockets"), GRPC: ("grpcio",), NATS: ("nats-py",)}
"""Packages of the extra `bench` that each peer needs."""


def _port(place: Site) -> int:
    return int(place.endpoint.rpartition(":")[2])


def _fastapi(place: Site, workers: int) -> Service:
    from bench.peers.sockets import Posts, WebSockets

    processes = _workers(place, "fastapi_app", workers, str(_port(place)))
    post = Service(POST, processes, lambda size, _connections: Posts(_port(place), size))
    return Service(FASTAPI, processes, lambda size, _connections: WebSockets(_port(place), size), post)


def _grpc(place: Site, workers: int) -> Service:
    from bench.peers.stubs import Stubs

    processes = _workers(place, "grpc_aio", workers, str(_port(place)))
    return Service(GRPC, processes, lambda size, connections: Stubs(_port(place), size, connections))


def _nats(place: Site, workers: int) -> Service:
    from bench.peers.sockets import Nats

    port, config = str(_port(place)), place.folder / "nats.conf"
    config.write_text('ping_interval: "1h"\n')  # A driver that waits for its turn does not answer pings.
    hub = place.launch("nats-server", _found("nats-server"), "-c", str(config), "-a", "127.0.0.1", "-p", port)
    processes = {"hub": hub, **_workers(place, "nats_workers", workers, port)}
    return Service(NATS, processes, lambda size, connections: Nats(_port(place), size, connections))


def _proxy(place: Site, workers: int) -> Service:
    processes = {"hub": proxy(place), **_workers(place, "zmq_workers", workers, place.backend)}
    return Service(PROXY, processes, lambda size, connections: Dealers(place.endpoint, size, connections, kinds={}))


def dealers(name: str, place: Site, **processes: Process) -> Service:
    """A service with our frames at the endpoint of a site."""
    return Service(name, processes, lambda size, connections: Dealers(place.endpoint, size, connections))


def proxy(place: Site) -> Process:
    """Compile and start the C proxy."""
    program, source = place.folder / "proxy", Path(__file__).with_name("proxy.c")
    subprocess.run([_found("gcc"), "-O2", "-o", program, source, "-lzmq"], check=True)
    process = place.launch("proxy", str(program), place.endpoint, place.backend)
    process.ready()
    return process


def _workers(place: Site, module: str, count: int, address: str) -> dict[str, Process]:
    names = [f"{module}-{number}" for number in range(count)]
    return {name: place.start(name, f"bench.peers.{module}", address) for name in names}


def _found(program: str) -> str:
    path = shutil.which(program)
    assert path is not None, program
    return path


PEERS: dict[str, Callable[[Site, int], Service]] = {FASTAPI: _fastapi, GRPC: _grpc, NATS: _nats, PROXY: _proxy}


def installed(package: str) -> bool:
    """Whether a package is installed."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


@cache
def absent() -> dict[str, str]:
    """The peers that cannot be measured on this machine, with the reason."""
    lacking = {
        name: f"no {package}; pip install 'axon-zmq[bench]'"
        for name, packages in PACKAGES.items()
        for package in packages
        if not installed(package)
    }
    if shutil.which("nats-server") is None:
        lacking[NATS] = "no nats-server; on Debian: apt-get install nats-server"
    if shutil.which("gcc") is None or not _HEADER.exists():
        lacking[PROXY] = "no gcc with zmq.h; on Debian: apt-get install gcc libzmq3-dev"
    return lacking


def unary(services: Iterable[Service]) -> list[Service]:
    """All services, including second ways to send a unary request."""
    return [each for service in services for each in (service, service.alternative) if each]


@contextmanager
def started(workers: int = 1, names: Sequence[str] = tuple(PEERS)) -> Generator[list[Service]]:
    """Start the available peers with that many workers each, and wait until they serve."""
    with ExitStack() as stack:
        places = {name: stack.enter_context(site()) for name in names if name not in absent()}
        services = [PEERS[name](place, workers) for name, place in places.items()]
        for service in services:
            for role, process in service.processes.items():
                if role != "hub":
                    process.ready()
        yield services
