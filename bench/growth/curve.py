"""A growth curve: rows that differ in one number."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.measure import Contender, Row
from bench.results import Goal
from underlay.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What is measured at several points.

    Attributes:
        name: of the curve; a point's row has it and the number. what: as a row's.
        of: what there is more of: instances, masters or bytes.
    """

    name: str
    what: str
    of: str
    points: Sequence[int]

    def row(self, at: int, ours: Contender, peer: Contender | None, *, goal: Goal | None = None) -> Row:
        """The row of one point."""
        return Row(name=self.row_name(at), what=self.what, ours=ours, peer=peer, goal=goal, curve=self.name, at=at)

    def row_name(self, at: int) -> str:
        """What a point's row is called."""
        return f"{self.name}, {self.number(at)}"

    def number(self, at: int) -> str:
        """How a point is written."""
        return format_size(at).replace(".0 ", " ") if self.of == "bytes" else f"{at:,}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its rows."""
        return tuple(map(self.row_name, self.points))
