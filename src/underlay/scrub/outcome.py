"""What came of a scrub."""

from collections.abc import Sequence
from dataclasses import dataclass

from underlay.errors import ImageDamaged, StorageFailed, UnderlayError
from underlay.model import Problem, Reason
from underlay.policy.scrub import ScrubSubject, ScrubVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrubbed:
    """What came of one image.

    Attributes:
        outcome: ``sound``, ``readable``, ``damaged``, ``unsteady``, ``changed``, ``stopped`` or ``failed``.
        read: bytes that were read of it. damage: its code and what is told of it.
        users: who needs an image that is damaged, and what could not be told of that.
        repair: what became of a damaged one: ``refetched``, or why it was not.
        error: why it could not be scrubbed, or why what was found of a damaged one could not be noted.
    """

    subject: ScrubSubject
    outcome: str
    detail: str
    read: int = 0
    damage: Reason | None = None
    users: tuple[Reason, ...] = ()
    repair: Reason | None = None
    error: UnderlayError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What a scrub did.

    Attributes:
        images: those that it came to, in their order. left: those that it did not come to, and that were left out.
        read: bytes that were read in all. seconds: how long it took.
        errors: why a whole cache could not be scrubbed.
    """

    images: Sequence[Scrubbed]
    left: Sequence[ScrubVerdict]
    problems: Sequence[Problem]
    read: int
    seconds: float
    errors: Sequence[UnderlayError] = ()

    @property
    def damaged(self) -> list[Scrubbed]:
        """The images that are damaged, repaired or not."""
        return [one for one in self.images if one.outcome == "damaged"]

    @property
    def exit_code(self) -> int:
        """The status of a command that answers with this: damage first, then what could not be told."""
        if self.damaged:
            return ImageDamaged.exit_code
        if any(one.outcome == "unsteady" for one in self.images):
            return StorageFailed.exit_code
        errors = [*(one.error for one in self.images if one.error is not None), *self.errors]
        return errors[0].exit_code if errors else 0
