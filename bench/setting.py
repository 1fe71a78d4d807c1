"""In what a group makes its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class CannotRun(Exception):
    """Something that a row needs is not here. The message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a group works and what was asked for.

    Attributes:
        directory: the group's own, empty at first, removed afterwards.
        size: bytes of the image where a row has one.
        files: that a point of a growth curve may have at most; a hundred thousand take minutes to write and to remove.
        rounds: that count; of rows that are measured where the group has them measured.
        asked: beginnings of the names of rows; none: all.
    """

    directory: Path
    size: int
    files: int
    rounds: int = 1
    asked: Sequence[str] = ()

    def wants(self, name: str) -> bool:
        """Whether a row of this name was asked for; what nobody asks for need not be prepared."""
        return not self.asked or any(name.startswith(one) for one in self.asked)

    def too_many(self, files: int) -> str | None:
        """Why a point with so many files is left out."""
        return f"it needs {files:,} files, and {self.files:,} were allowed" if files > self.files else None
