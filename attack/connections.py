"""Attacks on connections: chosen routing ids, unfinished messages, handshakes, descriptors, takeovers, aborts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from attack import agents
from attack.scene import Attacker, Scene, Stage
from attack.target import Target
from attack.wire import COMMAND, GREETING, LONG, MORE, Raw, header, ready
from axon_zmq.client import Client
from axon_zmq.protocol.limits import MIB
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.testing.ports import free_port

FIRST_ANONYMOUS: Final = 0x6B8B4567
"""First value of the counter with which an unseeded libzmq names anonymous peers."""
MAX_HELD_MIB: Final = 128.0
"""Growth of the broker that unfinished messages may cause: connections below the limit may hold some bytes each."""


def squat(stage: Stage) -> None:
    """Choose routing ids that libzmq will assign to anonymous peers, and then connect anonymous peers."""
    squatters, anonymous = stage.scaled(40, 200), stage.scaled(60, 300)
    with stage.daemon(("run",)) as target, ExitStack() as stack:
        for number in range(squatters):
            raw = stack.enter_context(Raw(target.endpoint))
            if raw.greet(b"\x00" + (FIRST_ANONYMOUS + number + 2).to_bytes(4, "big")):
                raw.message(b"ping", b"1")
        for _ in range(anonymous):
            try:
                raw = stack.enter_context(Raw(target.endpoint))
            except OSError:
                break
            if raw.greet():
                raw.message(b"ping", b"1")
        time.sleep(stage.scaled(1, 3))
        stage.row.inputs = f"{squatters} chosen ids, {anonymous} anonymous connections"


def _unfinished(stage: Stage, what: str, connections: int, parts: Callable[[Raw], Iterable[bytes]]) -> None:
    """Send parts of messages that never end over several connections, and keep the connections open."""
    with stage.daemon(("run",), is_fair=False) as target, ExitStack() as stack:
        sent = cut = 0
        for _ in range(connections):
            if target.crashed():
                break
            try:
                raw = stack.enter_context(Raw(target.endpoint))
            except OSError:
                continue
            for part in parts(raw):
                if not raw.send(part):
                    break
            sent += raw.sent
            cut += not raw.is_open
        time.sleep(stage.scaled(1, 3))
        grown = (psutil.Process(target.processes["broker"].pid).memory_info().rss if not target.crashed() else 0) / MIB
    stage.row.inputs = f"{what}: {sent / MIB:,.0f} MiB over {connections} connections, {cut} were closed"
    stage.row.notes.append(f"broker at {grown:,.0f} MiB while they are open")
    stage.row.expect(stage.row.broker_mib <= MAX_HELD_MIB, f"the broker holds {stage.row.broker_mib:,.0f} MiB")


def more_flood(stage: Stage) -> None:
    """Send frames with the MORE flag without end."""

    def parts(raw: Raw) -> Iterable[bytes]:
        raw.greet()
        for _ in range(stage.scaled(192, 768)):
            yield header(MIB, MORE) + bytes(MIB)

    _unfinished(stage, "frames of 1 MiB", 1, parts)


def empty_frames(stage: Stage) -> None:
    """Send empty frames with the MORE flag without end: two bytes each."""

    def parts(raw: Raw) -> Iterable[bytes]:
        raw.greet()
        for _ in range(stage.scaled(40, 100)):
            yield header(0, MORE) * 50_000

    _unfinished(stage, "empty frames", 1, parts)


def partial_frames(stage: Stage) -> None:
    """Announce large frames, and send all but their last byte."""
    size = stage.scaled(40, 60) * MIB

    def parts(raw: Raw) -> Iterable[bytes]:
        raw.greet()
        yield header(size, 0)
        for _ in range(size // MIB - 1):
            yield bytes(MIB)

    _unfinished(stage, f"frames of {size // MIB} MiB", stage.scaled(6, 16), parts)


def ready_metadata(stage: Stage) -> None:
    """Send metadata of many MiB in the READY command."""
    size = stage.scaled(40, 60) * MIB

    def parts(raw: Raw) -> Iterable[bytes]:
        raw.send(GREETING)
        raw.receive(64)
        yield (
            bytes((LONG | COMMAND,)) + (size + 16).to_bytes(8, "big") + b"\x05READY\x05X-Big" + size.to_bytes(4, "big")
        )
        for _ in range(size // MIB - 1):
            yield bytes(MIB)

    _unfinished(stage, f"READY of {size // MIB} MiB", stage.scaled(4, 10), parts)


def handshakes(stage: Stage) -> None:
    """Send garbage instead of a handshake, and broken handshakes."""
    rng = random.Random(1)
    count = stage.scaled(100, 2000)
    samples = (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        GREETING[:10],
        GREETING,
        GREETING[:12] + b"PLAIN".ljust(20, b"\x00") + bytes(32),
        b"\xff" + bytes(8) + b"\x7f\x01\x05",
        GREETING + header(4, COMMAND) + b"\x05REA",
        GREETING + ready(b"x" * 255),
        GREETING + ready() + header(5, COMMAND) + b"\x04PING",
        GREETING + ready() + b"\x07" + b"\xff" * 9,
        GREETING + ready() + bytes((LONG,)) + b"\xff" * 8,
        b"",
    )
    with stage.daemon() as target:
        for number in range(count):
            try:
                with Raw(target.endpoint) as raw:
                    raw.send(rng.choice(samples) if number % 2 else rng.randbytes(rng.choice((1, 20, 64, 300))))
            except OSError:
                continue
    stage.row.inputs = f"{count} connections"


def descriptors(stage: Stage) -> None:
    """Open more connections than the broker may have descriptors."""
    limit, count = 256, 400
    with stage.daemon(("run",), limit=limit) as target, ExitStack() as stack:
        broker = psutil.Process(target.processes["broker"].pid)
        opened = 0
        for _ in range(count):
            try:
                stack.enter_context(Raw(target.endpoint)).send(GREETING)
            except OSError:
                break
            opened += 1
        before, began = broker.cpu_times(), time.monotonic()
        time.sleep(stage.scaled(1, 3))
        after = broker.cpu_times()
        busy = (after.user + after.system - before.user - before.system) / (time.monotonic() - began)
    stage.row.inputs = f"{opened} connections, limit of {limit} descriptors"
    stage.row.notes.append(f"broker used {busy:.0%} of a core")
    stage.row.expect(busy < 0.1, f"the broker spins: {busy:.0%} of a core")


def takeover(stage: Stage) -> None:
    """Use the routing id of a live client: read its stream, and cancel it."""
    with stage.daemon(("run_stream",), is_fair=False) as target:
        id = b"a-client-with-a-known-name"
        victim = Attacker(target.endpoint, id)
        prompt = " ".join(f"word-{number}" for number in range(2000))
        victim.send(b"run_stream", b"victim-1", {"credit": 1}, {"agent": "echo", "prompt": prompt})
        victim.receive(10.0)
        thief = Attacker(target.endpoint, id)
        thief.send(b"resume", b"victim-1", {"from": 1, "upto": 50})
        thief.send(b"ping", b"thief-1")  # now: once the victim has reconnected, the thief gets nothing more
        stolen, is_thief_told = 0, False
        while (message := thief.receive(1.0)) is not None:
            stolen += message[0] == b"chunk"
            is_thief_told |= message[0] == b"pong" and bool(unpack(message[2], "pong")["shared"])
        # What the victim sends before its connection is closed is lost, so it asks several times.
        is_victim_told = any(_is_shared(victim, b"victim-%d" % number) for number in range(2, 7))
        in_log = "another connection" in target.logs()
        victim.close()
        thief.close()
    stage.row.inputs = "1 connection with the routing id of a live client"
    stage.row.notes.append(f"{stolen} chunks read by the second connection (prevented only by keys)")
    # The takeover itself is the documented limit of routing ids until keys exist; it must be reported.
    stage.row.expect(is_thief_told, "the takeover is not reported to the second connection")
    stage.row.expect(is_victim_told, "the takeover is not reported to the first connection")
    stage.row.expect(in_log, "the takeover is not in the log")


def _is_shared(client: Attacker, id: bytes) -> bool:
    client.send(b"ping", id)
    for _ in range(50):
        message = client.receive(2.0)
        if message is None:
            return False
        if message[0] == b"pong":
            return bool(unpack(message[2], "pong")["shared"])
    return False


def sigabrt(stage: Stage) -> None:
    """Abort the broker of a supervised daemon, as the collision of routing ids does; measure the outage."""
    times = stage.scaled(2, 5)
    with TemporaryDirectory(prefix="axon-attack-") as folder:
        target = Target(Path(folder), stage.checkout)
        run_dir = Path(folder) / "run"
        env = {**target.env, "AXON_RUN_DIR": str(run_dir), "AXON_FRONTEND": target.endpoint}
        env |= {f"AXON_{mode}_WORKERS": "1" for mode in ("RUN", "RUN_SYNC", "RUN_STREAM")}
        del env["SUPERVISOR_ENABLED"]
        output = Path(folder) / "serve.out"
        with output.open("wb") as out:
            serve = subprocess.Popen(
                [sys.executable, "-m", "axon_zmq.cli", "serve"], env=env, cwd=folder, stdout=out, stderr=out
            )
        try:
            target.wait(("run",))
            with Client(target.endpoint) as client:
                client.run("echo", "hi")
                outages = [_abort(run_dir, client) for _ in range(times)]
        finally:
            serve.send_signal(signal.SIGTERM)
            try:
                serve.wait(20)
            except subprocess.TimeoutExpired:
                serve.kill()
            for process in _family(run_dir):
                process.kill()
    stage.row.inputs = f"{times} aborts"
    stage.row.notes.append(f"longest time without an answer {max(outages):.1f} s")
    # 1 s for the restart, and up to 2 s in which the new broker waits for its workers.
    stage.row.expect(max(outages) <= 5.0, f"no answer for {max(outages):.1f} s")


def _family(run_dir: Path) -> list[psutil.Process]:
    processes = psutil.process_iter(["cmdline"])
    return [each for each in processes if any(str(run_dir) in part for part in each.info["cmdline"] or ())]


def _abort(run_dir: Path, client: Client) -> float:
    """Abort the broker, and return the seconds until a client that follows the protocol has an answer."""
    [broker] = [each for each in _family(run_dir) if any("axon_zmq.broker" in part for part in each.cmdline())]
    began = time.monotonic()
    os.kill(broker.pid, signal.SIGABRT)
    client.run("echo", "hi", timeout_ms=45_000)
    return time.monotonic() - began


def files(stage: Stage) -> None:
    """Plant symbolic links and directories of another user, and use endpoints that must be refused."""
    with TemporaryDirectory(prefix="axon-attack-") as folder:
        place = Path(folder)
        victim = place / "victim.txt"
        victim.write_text("precious")
        (place / "front.sock.lock").symlink_to(victim)
        other = place / "other"
        (other / "run").mkdir(parents=True)
        if is_root := os.geteuid() == 0:
            os.chown(other, 65534, 65534)
            os.chmod(other, 0o777)
        results = {
            "the lock followed a symbolic link": _serves(stage, place / "run1", f"ipc://{place}/front.sock"),
            "ipc://* was accepted": _serves(stage, place / "run2", "ipc://*"),
        }
        stage.row.expect(victim.read_text() == "precious", "the lock truncated the target of a symbolic link")
        if is_root:
            results["a run directory in another user's directory was accepted"] = _serves(
                stage, other / "run", f"tcp://127.0.0.1:{free_port()}"
            )
        for what, accepted in results.items():
            stage.row.expect(not accepted, what)
        stage.row.inputs = f"{len(results)} starts"


def _serves(stage: Stage, run_dir: Path, frontend: str) -> bool:
    """Return whether `serve` accepts a run directory and an endpoint: whether it gets as far as its broker."""
    run_dir.mkdir(mode=0o700, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(stage.checkout), str(Path(agents.__file__).parents[1])))}
    env |= {"AXON_RUN_DIR": str(run_dir), "AXON_FRONTEND": frontend, "AXON_AGENTS": agents.NAMES}
    child = subprocess.Popen(
        [sys.executable, "-m", "axon_zmq.broker", f"--frontend={frontend}", f"--run-dir={run_dir}"]
        if frontend.startswith("ipc://")
        else [sys.executable, "-m", "axon_zmq.cli", "serve"],
        env=env,
        cwd=run_dir.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ends_at = time.monotonic() + 30.0
    while child.poll() is None and time.monotonic() < ends_at and not (run_dir / "broker.lock").exists():
        time.sleep(0.05)
    try:
        child.wait(3.0)  # a broker that has locked its run directory checks its endpoint afterwards
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return True
    return child.returncode == 0


SCENES: Final = (
    Scene("squat", "chosen routing ids of the form that libzmq assigns", squat, is_quick=True),
    Scene("more-flood", "frames with MORE without end", more_flood),
    Scene("empty-frames", "empty frames with MORE without end", empty_frames),
    Scene("partial-frames", "frames without their last byte", partial_frames),
    Scene("ready-metadata", "large metadata in READY", ready_metadata),
    Scene("handshakes", "garbage and broken handshakes", handshakes),
    Scene("descriptors", "more connections than descriptors", descriptors),
    Scene("takeover", "the routing id of a live client", takeover),
    Scene("sigabrt", "the broker aborts", sigabrt),
    Scene("files", "symbolic links and directories of other users, ipc://*", files),
)
