"""What a run of a group of rows leaves: one JSON file, from which the page and its pictures are made.

Times are seconds, sizes bytes. Medians and ratios stand beside every single value, for whoever reads the file without us.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

RESULTS = Path(__file__).with_name("results")


class BadResults(Exception):
    """A file of results that cannot be read, or that is not what its name says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is aimed at, as the most that is good: ratios to the peer, or seconds of ours. A goal is never a test.

    Attributes:
        why: where it comes from.
    """

    wall: float | None = None
    cpu: float | None = None
    seconds: float | None = None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One contender's values, one a round, and their medians."""

    name: str
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    wall_median: float
    cpu_median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ours over the peer's in each round; the median, and from where to where they reach."""

    median: float
    least: float
    most: float
    rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A comparison that was made.

    Attributes:
        alone: why there is no peer where one should be.
    """

    name: str
    what: str
    curve: str | None
    at: int | None
    goal: Goal | None
    alone: str | None
    ours: Side
    peer: Side | None
    wall_ratio: Ratio | None
    cpu_ratio: Ratio | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauged:
    """A size that was measured."""

    name: str
    what: str
    size: int
    at_most: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A row that could not run, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What it ran on.

    Attributes:
        file_system: of the directory that was worked in, and what it lies on. programs: the first words of their versions.
    """

    cpu: str
    cores: int
    memory: int
    kernel: str
    system: str
    file_system: str
    python: str
    libraries: Mapping[str, str]
    programs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One group, measured at one sitting.

    Attributes:
        began, ended: in UTC, to the second. rounds: that were counted. size: of the image where a row has one.
        load_before, load_after: processes that ran or waited, over a minute. Ours are among the latter.
    """

    group: str
    began: str
    ended: str
    rounds: int
    size: int
    load_before: float
    load_after: float
    machine: Machine
    rows: tuple[Measured, ...]
    gauges: tuple[Gauged, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def names(self) -> frozenset[str]:
        """Every row that it says something about."""
        spoken_of: Iterable[Measured | Gauged | LeftOut] = chain(self.rows, self.gauges, self.left_out)
        return frozenset(one.name for one in spoken_of)


def write(run: Run, directory: Path = RESULTS) -> Path:
    """Put a run in the place of the group's last one."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{run.group}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
    return path


def read(directory: Path = RESULTS) -> Mapping[str, Run]:
    """The last run of each group.

    Raises:
        BadResults
    """
    return {path.stem: _read(path) for path in sorted(directory.glob("*.json"))}


def _read(path: Path) -> Run:
    try:
        run = msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError) as error:  # a ValidationError is a DecodeError
        raise BadResults(f"{path}: {error}") from None
    if run.group != path.stem:
        raise BadResults(f"{path} has the group {run.group}, and not the one of its name")
    return run
