"""Rounds, interleaved: each contender runs once in every round, so that a noisy moment hits them all."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.results import Goal, LeftOut, Measured, Ratio, Side


def processor_time() -> float:
    """Seconds of processor that this process has had, and those of its children that ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds of wall time, and of processor time."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Something that is timed.

    Attributes:
        run: is told how often it ran before.
        prepare: runs before each round, untimed; it is told the round.
        repeat: how often ``run`` is called in a round; the sample is the mean.
        clock: of the processor time. A process that runs already and is asked has one of its own.
    """

    name: str
    run: Callable[[int], object]
    prepare: Callable[[int], object] = lambda _: None
    repeat: int = 1
    clock: Callable[[], float] = processor_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison: ours against a peer.

    Attributes:
        name: begins with its group's. what: what both do, and what only one of them does.
        peer: None where nothing else does the same.
        curve, at: of which growth curve it is a point, and of how many.
    """

    name: str
    what: str
    ours: Contender
    peer: Contender | None
    goal: Goal | None = None
    curve: str | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """Something that is measured once, in bytes."""

    name: str
    what: str
    read: Callable[[], int]
    at_most: int | None


def measure(row: Row, *, rounds: int, alone: str | None = None) -> Measured:
    """Run a comparison. The first round is not counted, and who goes first changes with each.

    Args:
        alone: why the peer does not run, although there is one.
    """
    contenders = [row.ours, *([row.peer] if row.peer and not alone else [])]
    samples: list[list[Sample]] = [[] for _ in contenders]
    for number in range(rounds + 1):
        in_turn = list(zip(contenders, samples, strict=True))
        for contender, its in in_turn if number % 2 else reversed(in_turn):
            sample = _sample(contender, number)
            if number > 0:
                its.append(sample)
    ours, *peers = samples
    return Measured(
        name=row.name,
        what=row.what,
        curve=row.curve,
        at=row.at,
        goal=row.goal,
        alone=alone,
        ours=_side(row.ours, ours),
        peer=_side(row.peer, peers[0]) if row.peer and peers else None,
        wall_ratio=_ratio(ours, peers, lambda sample: sample.wall),
        cpu_ratio=_ratio(ours, peers, lambda sample: sample.cpu),
    )


def _sample(contender: Contender, number: int) -> Sample:
    contender.prepare(number)
    cpu, wall = contender.clock(), time.perf_counter()
    for turn in range(contender.repeat):
        contender.run(number * contender.repeat + turn)
    wall = time.perf_counter() - wall
    return Sample(wall / contender.repeat, (contender.clock() - cpu) / contender.repeat)


def _side(contender: Contender, samples: Sequence[Sample]) -> Side:
    wall, cpu = ([sample.wall for sample in samples], [sample.cpu for sample in samples])
    return Side(
        name=contender.name,
        wall=tuple(map(_rounded, wall)),
        cpu=tuple(map(_rounded, cpu)),
        wall_median=_rounded(median(wall)),
        cpu_median=_rounded(median(cpu)),
    )


def _ratio(ours: Sequence[Sample], peers: Sequence[Sequence[Sample]], of: Callable[[Sample], float]) -> Ratio | None:
    """None without a peer, or when the clock was too coarse to see the peer's."""
    ratios = [_rounded(of(a) / of(b)) for peer in peers for a, b in zip(ours, peer, strict=True) if of(b) > 0]
    if not ratios or len(ratios) < len(ours):
        return None
    return Ratio(median=_rounded(median(ratios)), least=min(ratios), most=max(ratios), rounds=tuple(ratios))


def _rounded(value: float) -> float:
    """No clock is better than six digits, and shorter numbers make differences that can be read."""
    return float(f"{value:.6g}")


def command(*argv: str | os.PathLike[str]) -> None:
    """Run a program silently to its successful end; a Python one may keep its compiled modules, as an installed one does."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    silent = subprocess.DEVNULL
    subprocess.run(argv, check=True, stdin=silent, stdout=silent, stderr=subprocess.PIPE, env=environment)


def process(name: str, *argv: str | os.PathLike[str]) -> Contender:
    """A contender that is a program."""
    return Contender(name=name, run=lambda _: command(*argv))


Things = Generator[Row | Gauge | Measured | LeftOut, None, None]
"""What a group makes, one at a time: each is measured before the next is made, so a group can put its things away.

What can only be measured elsewhere comes measured.
"""
