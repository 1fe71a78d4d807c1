"""One sitting: the rows of a group, measured one after the other. Whatever cannot run is left out with a reason."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.groups import Group
from bench.machine import load, machine
from bench.measure import Gauge, Row, measure
from bench.results import Gauged, LeftOut, Measured, Run
from bench.setting import CannotRun, Setting
from underlay.errors import UnderlayError

# What a row may end with: programs, file systems and services that are not here or not as they should be. A service that fails
# is an AssertionError, as it is in the tests.
_CANNOT = (AssertionError, CannotRun, OSError, UnderlayError, subprocess.SubprocessError)
Outcome = Measured | Gauged | LeftOut


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How it is measured.

    Attributes:
        rounds: that count. size: bytes of the image where a row has one.
        limit: seconds that all rounds of one contender may take on a growth curve, by what the point before took.
        files: that a point of a growth curve may have.
        directory: where to work; None: a temporary directory.
    """

    rounds: int
    size: int
    limit: float
    files: int
    directory: Path | None = None


def sit(group: Group, names: tuple[str, ...], terms: Terms) -> Run:
    """Measure the rows of these names."""
    began, load_before = _now(), load()
    with tempfile.TemporaryDirectory(prefix="underlay-bench-", dir=terms.directory) as made:
        setting = Setting(directory=Path(made), size=terms.size, files=terms.files, rounds=terms.rounds, asked=names)
        outcomes = list(_outcomes(group, names, setting, terms))
        where = machine(setting.directory)
    return Run(
        group=group.name,
        began=began,
        ended=_now(),
        rounds=terms.rounds,
        size=terms.size,
        load_before=load_before,
        load_after=load(),
        machine=where,
        rows=tuple(one for one in outcomes if isinstance(one, Measured)),
        gauges=tuple(one for one in outcomes if isinstance(one, Gauged)),
        left_out=tuple(one for one in outcomes if isinstance(one, LeftOut)),
    )


def _outcomes(group: Group, names: tuple[str, ...], setting: Setting, terms: Terms) -> Iterator[Outcome]:
    """One for each name. A group that cannot go on leaves out all that it has not made yet."""
    left, why = dict.fromkeys(names), "its group did not make it"
    progress = _Progress(terms=terms)
    things = group.rows(setting)
    try:
        for thing in things:
            assert thing.name in group.names, f"{thing.name} is not listed in bench/groups.py"
            if thing.name in left:
                del left[thing.name]
                yield progress.outcome(thing)
    except _CANNOT as error:
        why = _reason(error)
    finally:
        things.close()
    yield from (LeftOut(name=name, why=why) for name in left)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """What the points of curves took so far, by the curve's name and the contender's."""

    terms: Terms
    took: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)

    def outcome(self, thing: Row | Gauge | Measured | LeftOut) -> Outcome:
        if isinstance(thing, Measured | LeftOut):
            return thing
        sys.stderr.write(f"measuring {thing.name} …\n")
        try:
            return self._gauged(thing) if isinstance(thing, Gauge) else self._measured(thing)
        except _CANNOT as error:
            return LeftOut(name=thing.name, why=_reason(error))

    def _gauged(self, gauge: Gauge) -> Gauged:
        return Gauged(name=gauge.name, what=gauge.what, size=gauge.read(), at_most=gauge.at_most)

    def _measured(self, row: Row) -> Measured | LeftOut:
        if too_long := self._too_long(row, row.ours.name):
            return LeftOut(name=row.name, why=too_long)
        alone = self._too_long(row, row.peer.name) if row.peer else None
        measured = measure(row, rounds=self.terms.rounds, alone=alone)
        for side in (measured.ours, measured.peer):
            if side and row.curve and row.at:
                self.took[row.curve, side.name] = (row.at, side.wall_median)
        return measured

    def _too_long(self, row: Row, name: str) -> str | None:
        """Why a contender is not run at a point: by what it took at a smaller one, if time grows with the number."""
        if row.curve is None or row.at is None or (row.curve, name) not in self.took:
            return None
        at, seconds = self.took[row.curve, name]
        expected = seconds * row.at / at
        if expected * (self.terms.rounds + 1) <= self.terms.limit:
            return None
        return (
            f"{name} would take about {expected:.0f} s a round, by what it took at {at:,}; "
            f"{self.terms.rounds + 1} rounds were to take {self.terms.limit:.0f} s at most"
        )


def _reason(error: BaseException) -> str:
    """One line, with what a program said last."""
    said = getattr(error, "stderr", None) or b""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return " ".join(f"{type(error).__name__}: {error} {last}".split())[:400]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
