"""Coverage-guided fuzzing with atheris, which is an extra: `pip install 'axon-zmq[fuzz]'`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

SEEDS: Final = 300
"""Generated inputs with which a run starts."""
MAX_SIZE: Final = 64 * 1024
"""Bytes of the largest input."""
_INSTRUMENTED: Final = [
    *("axon_zmq.protocol", "axon_zmq.broker.core", "axon_zmq.worker.core", "axon_zmq.worker.delivery"),
    *("axon_zmq.client", "axon_zmq.jsonschema"),
]


def run(name: str, inputs: int, seed: int) -> None:
    """Run one harness; the process ends with the run.

    Args:
        name: Name of the harness.
        inputs: How many inputs to run.
        seed: Seed of libFuzzer.

    Raises:
        SystemExit: atheris is not installed.
    """
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        raise SystemExit("atheris is not installed: run `pip install 'axon-zmq[fuzz]'`, or use `fuzz run`") from None
    with atheris.instrument_imports(include=_INSTRUMENTED):
        harness = importlib.import_module("fuzz.harnesses").HARNESSES[name]
    findings = Path(__file__).parent / "findings"
    findings.mkdir(exist_ok=True)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.1:
            return atheris.Mutate(data, len(data))
        return harness.mutate(data, rng, max_size)

    with TemporaryDirectory(prefix="axon-fuzz-") as folder:
        for number in range(SEEDS):
            (Path(folder) / str(number)).write_bytes(harness.make(Random(number))[:MAX_SIZE])
        options = [f"-runs={inputs}", f"-seed={seed}", f"-max_len={MAX_SIZE}", f"-artifact_prefix={findings}/{name}-"]
        limits = ["-rss_limit_mb=2048", "-timeout=60", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, *limits, folder], harness, custom_mutator=mutate)
        atheris.Fuzz()
