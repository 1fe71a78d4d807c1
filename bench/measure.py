"""Rounds, interleaved: each contender runs once in every round, so that a noisy moment hits them all."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds of wall time, and of processor time of this process and its children."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Something that is timed.

    Attributes:
        prepare: runs before each round, untimed; its value goes to ``run``.
        repeat: how often ``run`` is called in a round; the sample is the mean.
    """

    name: str
    run: Callable[[int], object]
    prepare: Callable[[int], object] = lambda _: None
    repeat: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison: ours against a peer, and the goal for their ratio in wall time."""

    name: str
    ours: Contender
    peer: Contender
    goal: float | None
    source: str


def measure(row: Row, *, rounds: int) -> Mapping[str, object]:
    """Run a comparison and return its medians; ratios are medians of the rounds' ratios. The first round is not counted."""
    samples: dict[str, list[Sample]] = {row.ours.name: [], row.peer.name: []}
    for number in range(rounds + 1):
        # Who goes first changes with each round.
        pair = (row.ours, row.peer) if number % 2 else (row.peer, row.ours)
        for contender in pair:
            sample = _sample(contender, number)
            if number > 0:
                samples[contender.name].append(sample)
    ours, peer = samples[row.ours.name], samples[row.peer.name]
    return {
        "row": row.name,
        "ours": row.ours.name,
        "peer": row.peer.name,
        "rounds": rounds,
        "ours_wall_s": median(sample.wall for sample in ours),
        "peer_wall_s": median(sample.wall for sample in peer),
        "ours_cpu_s": median(sample.cpu for sample in ours),
        "peer_cpu_s": median(sample.cpu for sample in peer),
        "wall_ratio": median(a.wall / b.wall for a, b in zip(ours, peer, strict=True)),
        "cpu_ratio": median(a.cpu / b.cpu for a, b in zip(ours, peer, strict=True)),
        "goal": row.goal,
        "goal_source": row.source,
    }


def _sample(contender: Contender, number: int) -> Sample:
    contender.prepare(number)
    cpu, wall = _cpu(), time.perf_counter()
    for turn in range(contender.repeat):
        contender.run(number * contender.repeat + turn)
    return Sample((time.perf_counter() - wall) / contender.repeat, (_cpu() - cpu) / contender.repeat)


def _cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def command(*argv: str | os.PathLike[str]) -> None:
    """Run a program silently to its successful end; a Python one may keep its compiled modules, as an installed one does."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    silent = subprocess.DEVNULL
    subprocess.run(argv, check=True, stdin=silent, stdout=silent, stderr=silent, env=environment)


def machine() -> Mapping[str, object]:
    """What the figures were measured on."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    uname = os.uname()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": uname.release,
        "load": os.getloadavg()[0],
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(results: Sequence[Mapping[str, object]]) -> str:
    """The results as text, one comparison a line."""
    lines = [f"{'comparison':<34}{'ours':>12}{'peer':>12}{'wall':>8}{'cpu':>8}{'goal':>8}"]
    for result in results:
        ours, peer = (_duration(float(str(result[key]))) for key in ("ours_wall_s", "peer_wall_s"))
        goal = "-" if result["goal"] is None else f"{result['goal']:g}"
        lines.append(
            f"{result['row']:<34}{ours:>12}{peer:>12}{result['wall_ratio']:>8.3f}{result['cpu_ratio']:>8.3f}{goal:>8}"
            f"   {result['ours']} | {result['peer']}"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e6:.1f} us"
