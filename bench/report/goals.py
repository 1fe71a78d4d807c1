"""Which goals are met, and in how many rounds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.results import Measured
from bench.table import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one goal of one row.

    Attributes:
        of: what is judged: wall or processor, which are ratios, or time.
        values: one a round.
    """

    row: str
    of: str
    at_most: float
    values: Sequence[float]

    @property
    def is_met(self) -> bool:
        """By the median, as each figure is one."""
        return median(self.values) <= self.at_most

    def __str__(self) -> str:
        good = sum(value <= self.at_most for value in self.values)
        clear = good in (0, len(self.values))
        word = "met" if self.is_met else "**missed**"
        return f"{self._goal}: {word}" + ("" if clear else f", good in {good} of {len(self.values)} rounds")

    @property
    def sentence(self) -> str:
        """The goal and what there is instead."""
        return f"{self._written(median(self.values))} instead of {self._goal}"

    @property
    def _goal(self) -> str:
        return ("processor " if self.of == "processor" else "") + self._written(self.at_most)

    def _written(self, value: float) -> str:
        return duration(value) if self.of == "time" else f"{value:.3g}"


def verdicts(row: Measured) -> Iterator[Verdict]:
    """Of each of its goals that could be judged; without a peer, those of a ratio cannot."""
    if row.goal is None:
        return
    for of, at_most, ratio in (("wall", row.goal.wall, row.wall_ratio), ("processor", row.goal.cpu, row.cpu_ratio)):
        if at_most is not None and ratio:
            yield Verdict(row=row.name, of=of, at_most=at_most, values=ratio.rounds)
    if row.goal.seconds is not None:
        yield Verdict(row=row.name, of="time", at_most=row.goal.seconds, values=row.ours.wall)
