"""What a harness is, and the limit on the time of one input."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from fuzz import corpus
from fuzz.mutations import mutated_steps
from fuzz.steps import Step, decode, encode

MAX_CPU_S: Final = 2.0
"""CPU seconds of one small input. The slowest legal ones, large schemas, take about a tenth of this."""
MAX_CPU_S_PER_MIB: Final = 5.0
"""Further CPU seconds for each MiB of an input: a harness unpacks a message several times, and 400,000 nested values
take half a second each time."""
MAX_TEXT: Final = 4096
"""Characters of an error message or log line: a message never repeats large input."""


class BrokenInvariantError(AssertionError):
    """An input has broken an invariant of a harness."""


def check(true: object, otherwise: str) -> None:
    """Raise `BrokenInvariantError` if a condition is false."""
    if not true:
        raise BrokenInvariantError(otherwise)


@dataclass(slots=True)
class Outcome:
    """What one input has done."""

    messages: int = 0
    """Messages that were given to a parser or core."""
    passed: int = 0
    """Messages that passed the parser."""
    signs: set[Hashable] = field(default_factory=set[Hashable])
    """Kinds of messages, errors and effects that occurred. An input with a new one joins the corpus of a long run."""


@dataclass(frozen=True)
class Harness:
    """A function from bytes to None, with the means to make inputs for it.

    Args:
        name: Name for the command line.
        about: The code under test.
        legal: The exceptions that the code may raise, with the condition; all others are failures.
        invariants: What must hold for every input.
        examine: Runs one input; raises any exception if the input breaks an invariant.
        begin: Makes a valid input.
        more: Makes one further valid step.
        share: Share of the inputs of a long run, in percent.
        ci_inputs: Inputs of one run in CI.
    """

    name: str
    about: str
    legal: str
    invariants: Sequence[str]
    examine: Callable[[Sequence[Step]], Outcome]
    begin: Callable[[Random], list[Step]]
    more: Callable[[Random], Step]
    share: int
    ci_inputs: int

    def __call__(self, data: bytes) -> None:
        """Run one input.

        Raises:
            Exception: The input has broken an invariant.
        """
        self.outcome(data)

    def outcome(self, data: bytes) -> Outcome:
        """Run one input, and return what it has done; see `__call__`."""
        steps = decode(data)
        began = time.thread_time()
        outcome = self.examine(steps)
        spent = time.thread_time() - began
        limit = MAX_CPU_S + MAX_CPU_S_PER_MIB * len(data) / 2**20
        check(
            spent <= limit, f"an input of {len(data)} bytes took {spent:.2f} s of CPU time, the limit is {limit:.2f} s"
        )
        return outcome

    def make(self, rng: Random, grown: Sequence[bytes] = ()) -> bytes:
        """Return an input: a valid one, or one of a grown corpus, with up to a few mutations.

        Args:
            rng: Source of all choices; equal states make equal inputs.
            grown: Earlier inputs that have done something new.
        """
        steps = decode(rng.choice(grown)) if grown and rng.random() < 0.5 else self.begin(rng)
        mutations = rng.choice((0, 1, 1, 1, 2, 3, 5))
        return encode(self._mutated(steps, mutations, rng))

    def mutate(self, data: bytes, rng: Random, max_size: int) -> bytes:
        """Return an input with one or two mutations, in at most `max_size` bytes; the mutator of atheris."""
        return encode(self._mutated(decode(data), rng.choice((1, 1, 2)), rng))[:max_size]

    def _mutated(self, steps: list[Step], mutations: int, rng: Random) -> list[Step]:
        for _ in range(mutations):
            steps = mutated_steps(steps, rng, corpus.values(), self.more)
        return steps


def check_text(text: Any) -> None:
    """Check a message for people: text of limited size."""
    check(isinstance(text, str), f"a message is {type(text).__name__}, not text")
    check(len(text) <= MAX_TEXT, f"a message has {len(text)} characters, the limit is {MAX_TEXT}")
