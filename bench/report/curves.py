"""The points of each growth curve, and the power by which time grows along it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression

from bench.results import Measured, Run, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender's values along a curve.

    Attributes:
        whose: Underlay, or the peer. name: of the contender.
        points: what there was more and more of, and what it took there.
    """

    whose: str
    name: str
    points: Sequence[tuple[int, Side]]

    @property
    def power(self) -> float | None:
        """Time is as the number to this power: the slope through all points where both axes are logarithmic."""
        if len(self.points) < 2:
            return None
        numbers = [math.log(at) for at, _ in self.points]
        return linear_regression(numbers, [math.log(side.wall_median) for _, side in self.points]).slope


def lines(runs: Mapping[str, Run], curve: str) -> list[Line]:
    """Ours and the peer's; of a side that ran nowhere there is none."""
    rows = sorted((row for run in runs.values() for row in run.rows if row.curve == curve), key=lambda row: row.at or 0)
    return [*_line("Underlay", ((row, row.ours) for row in rows)), *_line("the peer", ((row, row.peer) for row in rows))]


def _line(whose: str, sides: Iterable[tuple[Measured, Side | None]]) -> Iterator[Line]:
    points = [(row.at, side) for row, side in sides if row.at and side]
    if points:
        yield Line(whose=whose, name=points[0][1].name, points=points)
