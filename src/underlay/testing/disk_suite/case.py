"""One case of the suite, what it works with, and what it expects.

A contract that is broken is an AssertionError, whose message says what the contract wants.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from uuid import uuid4

from underlay import qemuimg
from underlay.config import parse_config
from underlay.contracts import DiskBackend
from underlay.errors import DiskNotFound, UnderlayError
from underlay.host import Host
from underlay.model import BaseImage, DiskSpec, Extraction, InstanceDisk
from underlay.testing.disk_suite.stage import Stage
from underlay.testing.expecting import expect as expect, expect_equal as expect_equal
from underlay.testing.fakes import FakeImage, FakeSource

MIB = 1 << 20
_LEEWAY = 5.0  # seconds that a busy machine may add to a time-out


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that every backend must do.

    Attributes:
        name: what must hold, in words.
        needs: what the storage must be able to, of `underlay.testing.disk_suite.stage.ABILITIES`.
    """

    name: str
    needs: frozenset[type]
    check: "Callable[[Scene], None]"

    def __str__(self) -> str:
        return self.name

    def run(self, stage: Stage) -> None:
        """Try it, and remove what it made.

        Raises:
            AssertionError: the backend breaks its contract.
            ValueError: the case needs what the stage says that it cannot.
        """
        if missing := self.needs & stage.cannot.keys():
            named = " or ".join(sorted(kind.__name__ for kind in missing))
            raise ValueError(f"{self.name} needs {named}, which {type(stage).__name__} cannot")
        scene = Scene(stage, stage.left(), {})
        try:
            self.check(scene)
        except UnderlayError as error:
            raise AssertionError(f"an error where there should be none: {error!r}") from error
        finally:
            scene.clear()


def case(*needs: type) -> "Callable[[Callable[[Scene], None]], Case]":
    """Make a function the check of a case, which is called as the function is."""
    return lambda check: Case(check.__name__.replace("_", "-"), frozenset(needs), check)


@dataclass(frozen=True, slots=True)
class Scene:
    """One case's stage, images and disks.

    Attributes:
        before: what was in the storage when the case began. specs: the disks that the case has to do with.
    """

    stage: Stage
    before: frozenset[str]
    specs: dict[Path, DiskSpec]

    @property
    def backend(self) -> DiskBackend:
        """What is tried."""
        return self.stage.backend

    def image(self, content: bytes, *, min_disk: int = 0, qcow2: bool = False) -> BaseImage:
        """A base image of these bytes in a cache of its own kind, kept raw or as a qcow2."""
        cache = self.stage.directory / "cache"
        cache.mkdir(exist_ok=True)
        ref = f"fake:{uuid4()}"
        served = _as_qcow2(content, self.stage.directory) if qcow2 else content
        source = FakeSource({ref: FakeImage(served, min_disk=min_disk)})
        text = f'[caches.one]\nkind = "base"\npath = "{cache}"\nforce_raw_images = false\n'
        return Host.open(parse_config(text, origin=Path("suite")), sources={"fake": source}).ensure(ref)

    def spec(
        self,
        *,
        size: int | None = None,
        instance: str | None = None,
        name: str = "disk",
        key: bytes | None = None,
        maker: str | None = None,
    ) -> DiskSpec:
        """A disk that could be made: of a new instance, unless one is named."""
        instance = instance or f"vm-{uuid4().hex[:12]}"
        path = self.backend.place(instance, name)
        if path is None:
            directory = self.stage.directory / "instances" / instance
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / name
        spec = DiskSpec(instance=instance, name=name, path=path, size=size, key=key, maker=maker)
        self.specs[path] = spec
        return spec

    def disk(self, content: bytes, *, size: int | None = None) -> InstanceDisk:
        """A disk that was made from an image of these bytes."""
        return self.backend.create(self.image(content), self.spec(size=size))

    def read(self, disk: InstanceDisk) -> bytes:
        """What its guest sees."""
        return self.stage.read(disk)

    def extracted(self, disk: InstanceDisk, want: Extraction) -> Path:
        """A file that the disk was written out to."""
        target = self.stage.directory / f"extracted-{uuid4().hex}"
        self.backend.extract(disk, target, want)
        return target

    def rounded(self, size: int) -> int:
        """A size as the storage has it."""
        return -(-size // self.stage.granularity) * self.stage.granularity

    def left(self) -> frozenset[str]:
        """What is in the storage and was not before."""
        return self.stage.left() - self.before

    def clear(self) -> None:
        """Remove the disks; what cannot be removed is for who looks on to find."""
        for spec in self.specs.values():
            with suppress(UnderlayError):
                self.backend.remove(self.backend.describe(spec))


def _as_qcow2(content: bytes, directory: Path) -> bytes:
    raw, made = directory / f"raw-{uuid4().hex}", directory / f"qcow2-{uuid4().hex}"
    raw.write_bytes(content)
    qemuimg.convert(qemuimg.node(raw.absolute(), format="raw"), made.absolute(), format="qcow2")
    raw.unlink()
    served = made.read_bytes()
    made.unlink()
    return served


def content(seed: int, *, size: int = 2 * MIB) -> bytes:
    """An image's bytes: data, a hole, data up to the end."""
    random, part = Random(seed), size // 4
    return random.randbytes(part) + bytes(2 * part) + random.randbytes(size - 3 * part)


# ------------------------------------------------------------------------------------------------------------ expectations


def expect_content(scene: Scene, disk: InstanceDisk, expected: bytes, what: str) -> None:
    """A disk's guest sees these bytes, and zeros behind them up to the disk's size."""
    found = scene.read(disk)
    expect_equal(disk.size, len(found), f"{what}: the size that its guest sees")
    expect_equal(expected, found[: len(expected)], f"{what}: what its guest sees")
    expect(not found[len(expected) :].strip(b"\0"), f"{what}: behind the image there is something else than zeros")


def expect_nothing(scene: Scene, spec: DiskSpec, what: str) -> None:
    """There is no such disk, and nothing of it."""
    expect(not scene.backend.exists(spec), f"{what}: something has the disk's place")
    with refused(DiskNotFound):
        scene.backend.describe(spec)
    expect_equal(frozenset(), scene.left(), f"{what}: what is left in the storage")


@contextmanager
def refused(*errors: type[UnderlayError]) -> Iterator[None]:
    """The block ends with one of these errors."""
    named = " or ".join(kind.__name__ for kind in errors)
    try:
        yield
    except errors:
        return
    except UnderlayError as error:
        raise AssertionError(f"expected {named}, found {error!r}") from error
    raise AssertionError(f"expected {named}, and nothing was raised")


@contextmanager
def in_time(stage: Stage) -> Iterator[None]:
    """The block ends within the backend's patience."""
    started = time.monotonic()
    yield
    elapsed = time.monotonic() - started
    expect(elapsed < stage.patience + _LEEWAY, f"the backend gives up after {elapsed:.1f} s, not {stage.patience:g} s")


def facts(disk: InstanceDisk) -> Mapping[str, object]:
    """What tells a disk from others, without what its guest changes."""
    names = ("instance", "name", "path", "backend", "format", "size", "base", "base_path", "parent", "maker")
    return {name: getattr(disk, name) for name in names}
