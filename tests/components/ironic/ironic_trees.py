"""Directories of masters as Ironic hosts have them: what Hypothesis draws, and the builder that writes it with real files.

Ironic takes a file's age from its newest time, and nobody can set a file's ctime. So for Ironic the times lie ahead, and so
does the clock of its process; for us they lie in the past.
"""

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from underlay.values import replace

BLOCK = 64 << 10
AHEAD = 60 * 86400.0  # seconds; more than any age
NAMES = tuple(
    f"{uuid.uuid5(uuid.NAMESPACE_URL, f'http://images/{number}')}{suffix}"
    for number in range(8)
    for suffix in ("", ".converted")
)
STRANGERS = ("snponly.efi", ".hidden", NAMES[0].upper(), f"{NAMES[1]}.part", "notes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Master:
    """Attributes:
    age: seconds since its last use. blocks: of 64 KiB, all of them allocated. delivered: whether a node has a link to it.
    """

    age: float
    blocks: int
    delivered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A directory and how it is cleaned up.

    Attributes:
        masters: by name. strangers: names of files that are no masters, as old as can be.
        links: names of symlinks, with where they lead. fifos, directories: names of such.
        size: bytes. ttl: seconds. amount: bytes, or None.
    """

    masters: Mapping[str, Master]
    size: int
    ttl: int
    amount: int | None
    strangers: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    fifos: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()

    @property
    def unused(self) -> list[str]:
        """The names of masters that nobody has, the oldest first."""
        names = [name for name, master in self.masters.items() if not master.delivered]
        return sorted(names, key=lambda name: -self.masters[name].age)

    @property
    def expired(self) -> list[str]:
        """Those of them that are older than the time to live."""
        return [name for name in self.unused if self.masters[name].age > self.ttl]

    def bytes_of(self, names: list[str]) -> int:
        return sum(self.masters[name].blocks * BLOCK for name in names)

    def promised(self) -> set[str]:
        """What goes by Ironic's documentation.

        Without an amount: what is too old, and the oldest until the size is kept. With one: the oldest until so much is free,
        and the size is kept.
        """
        kept, gone = self.unused, list[str]()
        total = self.bytes_of(list(self.masters))
        while kept and (
            (kept[0] in self.expired if self.amount is None else self.bytes_of(gone) < self.amount) or total > self.size
        ):
            total -= self.bytes_of(kept[:1])
            gone.append(kept.pop(0))
        return set(gone)


def build(case: Case, root: Path, *, ahead: float = 0.0) -> Path:
    """Write it; returns the directory of masters. Times lie so far ahead of where they would be."""
    masters, nodes = root / "masters", root / "nodes"
    masters.mkdir(parents=True)
    nodes.mkdir()
    for name in case.directories:
        (masters / name).mkdir()
        (masters / name / "image").write_bytes(b"x")
    for name in case.fifos:
        os.mkfifo(masters / name)
    for name, target in case.links.items():
        (masters / name).symlink_to(target)
    now = time.time() + ahead
    for name in case.strangers:
        _write(masters / name, blocks=1, at=now - AHEAD / 2)
    for name, master in case.masters.items():
        _write(masters / name, blocks=master.blocks, at=now - master.age, link=nodes / name if master.delivered else None)
    return masters


def _write(path: Path, *, blocks: int, at: float, link: Path | None = None) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, blocks * BLOCK)
    if link is not None:
        link.hardlink_to(path)
    os.utime(path, (at, at))


def names_in(masters: Path) -> set[str]:
    """The names in the directory but our private one."""
    return set(os.listdir(masters)) - {".underlay"}


# --------------------------------------------------------------------------------------------------------------- what is drawn

AGES = st.integers(1, 30).map(lambda number: number * 1000.0)
SIZES = st.integers(0, 24).map(lambda blocks: blocks * BLOCK + (BLOCK // 2 if blocks else 0))
TTLS = st.sampled_from([0, 500, 5500, 12500, 20500, 99500])
AMOUNTS = st.one_of(st.none(), st.sampled_from([0, 1, -1, BLOCK, 3 * BLOCK, 100 * BLOCK]), st.integers(1, 30 * BLOCK))


@st.composite
def cases(draw: st.DrawFn, *, strange: bool) -> Case:
    """A directory with nothing but masters in it, or one with all sorts of things."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=10))
    ages = draw(st.lists(AGES, unique=True, min_size=len(names), max_size=len(names)))
    masters = {
        name: Master(age=age, blocks=draw(st.integers(1, 4)), delivered=draw(st.integers(0, 3)) == 0)
        for name, age in zip(names, ages, strict=True)
    }
    case = Case(masters=masters, size=draw(SIZES), ttl=draw(TTLS), amount=draw(AMOUNTS))
    if not strange:
        return case
    free = [name for name in NAMES if name not in names]
    odd = draw(st.lists(st.sampled_from(free), unique=True, max_size=4))
    return replace(
        case,
        strangers=tuple(draw(st.lists(st.sampled_from(STRANGERS), unique=True))),
        links={name: draw(st.sampled_from(["nowhere", "/etc/hostname", *names])) for name in odd[:2]},
        fifos=tuple(odd[2:3]),
        directories=(*odd[3:], *draw(st.sampled_from([(), ("tmpabcdefgh",)]))),
    )
