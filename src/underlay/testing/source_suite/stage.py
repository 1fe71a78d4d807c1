"""What a third party sets up for the suite: its source, the place from which that fetches, and the troubles of that place."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

from underlay.contracts import ImageSource


@dataclass(frozen=True, slots=True)
class Empty:
    """An image of no bytes can be put."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """The ref means other content now."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """There is no such image any more."""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Whoever the source asks as may not have the image: by rights, by wrong credentials or by none."""


@dataclass(frozen=True, slots=True)
class Away:
    """The whole place does not answer: it refuses connections, or is not there. It is back when the block ends."""


@dataclass(frozen=True, slots=True)
class Silent:
    """Questions about the image are taken, and nothing is ever answered."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The image's bytes come up to the ``after``-th of each transfer, and then no more, though nothing is closed."""

    after: int


@dataclass(frozen=True, slots=True)
class Slow:
    """The image's bytes come at this many a second, steadily."""

    rate: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Each transfer of the image breaks off after so many bytes of its own; one that has fewer to give is whole."""

    after: int


@dataclass(frozen=True, slots=True)
class Announced:
    """The description tells this size, whatever the image has."""

    size: int


Trouble = Replaced | Withdrawn | Forbidden | Away | Silent | Stalled | Slow | Cut | Announced

ABILITIES: tuple[type, ...] = (Empty, Replaced, Withdrawn, Forbidden, Away, Silent, Stalled, Slow, Cut, Announced)
"""Everything that a case may need of a place."""


class Stage(Protocol):
    """A source to be tried, with a real place behind it.

    Cases may share a stage: each puts images of its own. None of them runs beside another.
    """

    cannot: ClassVar[Mapping[type, str]]
    """Which of `ABILITIES` this kind of place cannot have, each with the reason: a Glance image never has other content."""

    @property
    def source(self) -> ImageSource:
        """The source. Its time-outs should be short, and it should ask anew each time (``revalidate_after`` 0)."""
        ...

    @property
    def patience(self) -> float:
        """Seconds within which the source, as it was made, gives up on a place that says nothing."""
        ...

    @property
    def place(self) -> str:
        """What an error about the absent place must name: the host, say."""
        ...

    @property
    def secrets(self) -> Sequence[str]:
        """What its refs and its configuration carry and nobody may read: passwords, tokens, signatures."""
        ...

    @property
    def unsafe_refs(self) -> Sequence[str]:
        """Refs that lead out of what this source may open, or to something else than an image. Each must be refused."""
        ...

    def put(self, content: bytes) -> str:
        """Make an image of these bytes, served as they are, and return its ref as a user would write it."""
        ...

    def trouble(self, ref: str, trouble: Trouble) -> AbstractContextManager[None]:
        """From the next question on, and while the block lasts, this is the matter with the image.

        One trouble at a time. `Replaced`, `Withdrawn` and `Forbidden` may outlast the block, the others must not. A trouble of
        which ``cannot`` speaks is never asked for.
        """
        ...
