"""Fakes of the contracts in `underlay.contracts`, and of nothing else: a source of images, an observer that remembers.

They keep the contracts to the letter, so what works with them works with an adapter; what they are told to get wrong is said
by an image's fields.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, ClassVar

from underlay.errors import BodyTruncated, ImageNotFound, SourceChanged, UnderlayError
from underlay.model import Digest, Event, ImageRef, ImageVersion, Progress
from underlay.naming import content_version_id
from underlay.refs import parse_ref

AUTOMATIC = "automatic"
"""The validator of an image whose source counts its versions."""


@dataclass(frozen=True, slots=True)
class FakeImage:
    """What a `FakeSource` has under one ref.

    Attributes:
        content: the bytes, or the file that holds them.
        id: a version id that the ref alone fixes, as Glance's, or None.
        validator: None: the source has none.
        size: what is announced; None: the content's own size. announces_size: whether any is.
        describe_error, open_error: raised in place of an answer.
        read_error: raised when ``read_error_after`` bytes of the content have been read.
        cut_after: each stream breaks off after so many bytes of its own; one that has fewer to give is whole.
        piece: at most so many bytes come at once.
        delay: seconds that each description and each read takes.
    """

    content: bytes | Path = b""
    id: str | None = field(default=None, kw_only=True)
    validator: str | None = field(default=AUTOMATIC, kw_only=True)
    size: int | None = field(default=None, kw_only=True)
    announces_size: bool = field(default=True, kw_only=True)
    disk_format: str | None = field(default=None, kw_only=True)
    digests: tuple[Digest, ...] = field(default=(), kw_only=True)
    content_digests: tuple[Digest, ...] = field(default=(), kw_only=True)
    min_disk: int = field(default=0, kw_only=True)
    no_store: bool = field(default=False, kw_only=True)
    locations: tuple[str, ...] = field(default=(), kw_only=True)
    properties: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    describe_error: UnderlayError | None = field(default=None, kw_only=True)
    open_error: UnderlayError | None = field(default=None, kw_only=True)
    read_error: UnderlayError | None = field(default=None, kw_only=True)
    read_error_after: int = field(default=0, kw_only=True)
    cut_after: int | None = field(default=None, kw_only=True)
    piece: int = field(default=1 << 20, kw_only=True)
    delay: float = field(default=0.0, kw_only=True)


class FakeSource:
    """An `ImageSource` over images in memory or in files, named ``fake:…``.

    Attributes:
        revalidate_after, stale_if_error: as the contract has them.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"fake"})

    def __init__(
        self, images: Mapping[str, FakeImage] | None = None, *, revalidate_after: float = 0.0, stale_if_error: bool = True
    ) -> None:
        self.revalidate_after = revalidate_after
        self.stale_if_error = stale_if_error
        self._lock = threading.Lock()
        self._images: dict[str, FakeImage] = {}
        self._versions: Counter[str] = Counter()
        self._described: Counter[str] = Counter()
        self._opened: Counter[str] = Counter()
        self._read: Counter[str] = Counter()
        for ref, image in (images or {}).items():
            self.put(ref, image)

    def put(self, ref: str, image: FakeImage) -> None:
        """From now on the ref means this image: a new version of it."""
        canonical = parse_ref(ref).canonical
        with self._lock:
            self._images[canonical] = image
            self._versions[canonical] += 1

    def withdraw(self, ref: str) -> None:
        """From now on there is no such image."""
        with self._lock:
            del self._images[parse_ref(ref).canonical]

    def described(self, ref: str) -> int:
        """How often the ref was described, or asked for without success."""
        return self._count(self._described, ref)

    def opened(self, ref: str) -> int:
        """How often the ref's bytes were opened, or asked for without success."""
        return self._count(self._opened, ref)

    def read(self, ref: str) -> int:
        """How many of the ref's bytes were read, over all streams."""
        return self._count(self._read, ref)

    # The contract.

    def fixed_id(self, ref: ImageRef) -> str | None:
        """The image's own id, if it has one."""
        with self._lock:
            image = self._images.get(ref.canonical)
        return None if image is None else image.id

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The image's own id, else the ref and its content's digest."""
        return self.fixed_id(ref) or content_version_id(ref, sha256)

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the ref is now.

        Raises:
            ImageNotFound, or what the image says.
        """
        self._add(self._described, ref, 1)
        image, version = self._current(ref)
        time.sleep(image.delay)
        if image.describe_error is not None:
            raise image.describe_error
        return version

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator["_FakeStream"]:
        """The image's bytes from ``offset`` on.

        Raises:
            ImageNotFound, SourceChanged when the ref is another version now, or what the image says.
        """
        self._add(self._opened, version.ref, 1)
        image, now = self._current(version.ref)
        if image.open_error is not None:
            raise image.open_error
        if now != version:
            raise SourceChanged(f"{version.ref} changed after it was described")
        with _opened(image.content) as file:
            file.seek(offset)
            cut_at = None if image.cut_after is None else offset + image.cut_after
            yield _FakeStream(self, version.ref, image, file, offset, cut_at)

    def count_read(self, ref: ImageRef, length: int) -> None:
        """Add to what `read` answers; for the streams."""
        self._add(self._read, ref, length)

    def _current(self, ref: ImageRef) -> tuple[FakeImage, ImageVersion]:
        with self._lock:
            image, number = self._images.get(ref.canonical), self._versions[ref.canonical]
        if image is None:
            raise ImageNotFound(f"{ref} does not exist")
        version = ImageVersion(
            ref=ref,
            id=image.id,
            size=_announced(image),
            disk_format=image.disk_format,
            digests=image.digests,
            content_digests=image.content_digests,
            validator=f"version:{number}" if image.validator == AUTOMATIC else image.validator,
            min_disk=image.min_disk,
            no_store=image.no_store,
            properties=image.properties,
            locations=image.locations,
        )
        return image, version

    def _add(self, counter: Counter[str], ref: ImageRef, number: int) -> None:
        with self._lock:
            counter[ref.canonical] += number

    def _count(self, counter: Counter[str], ref: str) -> int:
        with self._lock:
            return counter[parse_ref(ref).canonical]


@dataclass(slots=True)
class _FakeStream:
    source: FakeSource
    ref: ImageRef
    image: FakeImage
    file: BinaryIO
    position: int
    cut_at: int | None

    def readinto(self, buffer: memoryview, /) -> int:
        time.sleep(self.image.delay)
        length = min(len(buffer), self.image.piece)
        if self.image.read_error is not None:
            length = min(length, self.image.read_error_after - self.position)
            if length <= 0:
                raise self.image.read_error
        if self.cut_at is not None:
            length = min(length, self.cut_at - self.position)
        piece = self.file.read(length)
        if self.position == self.cut_at and self.file.read(1):
            raise BodyTruncated(f"{self.ref}: the transfer broke off after {self.image.cut_after} bytes")
        buffer[: len(piece)] = piece
        self.position += len(piece)
        self.source.count_read(self.ref, len(piece))
        return len(piece)


def _opened(content: bytes | Path) -> BinaryIO:
    return BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _announced(image: FakeImage) -> int | None:
    if not image.announces_size:
        return None
    if image.size is not None:
        return image.size
    return len(image.content) if isinstance(image.content, bytes) else image.content.stat().st_size


class Recorder:
    """An `Observer` that remembers everything, in order; safe to share between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._progress: list[Progress] = []

    def event(self, event: Event) -> None:
        """Remember it."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def progress(self, progress: Progress) -> None:
        """Remember it."""
        with self._changed:
            self._progress.append(progress)
            self._changed.notify_all()

    @property
    def events(self) -> tuple[Event, ...]:
        """What was told so far."""
        with self._changed:
            return tuple(self._events)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of `events`."""
        return tuple(event.code for event in self.events)

    @property
    def steps(self) -> tuple[Progress, ...]:
        """The progress that was told so far."""
        with self._changed:
            return tuple(self._progress)

    def wait_for_event(self, code: str, *, seconds: float = 60) -> Event:
        """The first event of this code, as soon as there is one.

        Raises:
            TimeoutError
        """
        with self._changed:
            if not self._changed.wait_for(lambda: code in self.codes, timeout=seconds):
                raise TimeoutError(f"no event {code!r} in {seconds:g} s, but {', '.join(self.codes) or 'none'}")
            return next(event for event in self._events if event.code == code)

    def wait_for_progress(self, stage: str, *, seconds: float = 60) -> Progress:
        """The first progress of this stage, as soon as there is one.

        Raises:
            TimeoutError
        """
        with self._changed:
            if not self._changed.wait_for(lambda: any(step.stage == stage for step in self._progress), timeout=seconds):
                raise TimeoutError(f"no progress of stage {stage!r} in {seconds:g} s")
            return next(step for step in self._progress if step.stage == stage)
