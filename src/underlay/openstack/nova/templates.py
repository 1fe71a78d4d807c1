"""Images that Nova's callbacks make: written to staging, inspected, and published under Nova's name for them, unrecorded.

Nobody sees one before it is whole. From any number of threads and processes that want the same image one makes it; a callback
that fails, or whose process is killed, leaves nothing that anybody would take for an image.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from underlay import qemuimg
from underlay.contracts import Observer
from underlay.errors import CacheMissing, NotAnImage, NotCached, UnderlayError
from underlay.files import copy_sparse, create, open_regular, translated
from underlay.model import BaseImage, Event, ImageRef, Level
from underlay.store import Store, images, locking, staging as stagings
from underlay.store.staging import Staging
from underlay.values import replace

Make = Callable[[Path], None]
"""Makes a file at a path where none is; it may make others beside it."""

_LOOKS = 3  # at a name for which others make links and remove them
_MODE = 0o600
_GIB = 1 << 30


def ensure(store: Store, name: str, make: Make, observer: Observer, holding: ExitStack) -> BaseImage | None:
    """The image of this name, made first unless it is here; its use is marked.

    Args:
        holding: keeps the image from eviction, until it is closed.

    Returns:
        The image; None: it was not here, and nothing was made.

    Raises:
        NotCached: it was here, and somebody who takes no lock has removed it.
        UnsafeImage, FormatMismatch, VirtualSizeRefused, NotAnImage: what was made is empty, or breaks another rule.
        CacheError, LockError, ToolError; what the callback raises.
    """
    store.prepare()
    found = find(store, name)
    if found is None:
        with stagings.turn(store, _ref(name), observer) as staging:
            _drop_link(store, name)
            found = images.find(store, name)
            if found is None:
                with _made(store, name, make, staging) as content:
                    found = None if content is None else _publish(store, content, name, observer)
    if found is not None:
        _hold(store, found, holding)
    return found


@contextmanager
def named(store: Store, name: str, target: Path) -> Iterator[Path]:
    """The path that an image is to have, for a callback that has to be told that one, and leads to the target meanwhile.

    Nova copies an image from another host by one path for both hosts. A link stands there while it does, which nobody takes for
    an image, and whoever takes Nova's lock waits. What takes the link's place, as rsync has it, becomes the target.

    Raises:
        NotAnImage: something is there. LockTimeout, CacheNotWritable
    """
    path = store.paths.image(name)
    with locking.exclusive(store, name):
        with translated(path):
            if os.path.lexists(path):
                raise NotAnImage(f"{path} is there", hint="look at it with 'underlay show'")
            os.symlink(target, path)  # crash: a link into staging, which the next maker removes
        try:
            yield path
        finally:
            with translated(path):
                if _is_link_of_ours(store, name):
                    os.unlink(path)
                elif os.path.lexists(path):
                    os.rename(path, target)  # crash before this: an image that is whole, as a copy has it


def find(store: Store, name: str) -> BaseImage | None:
    """The image of this name, or None; one that is being copied from another host is not here yet.

    Raises:
        as `underlay.store.images.find`
    """
    for _ in range(_LOOKS):
        if _is_link_of_ours(store, name):
            return None
        with suppress(NotAnImage):  # which may be a link of ours that is new, or was one and is gone
            return images.find(store, name)
    return images.find(store, name)


def _drop_link(store: Store, name: str) -> None:
    """Remove the link that one who was killed has left. The caller holds the ingest's lock."""
    if _is_link_of_ours(store, name):
        with translated(store.root):
            os.unlink(store.paths.image(name))


def _is_link_of_ours(store: Store, name: str) -> bool:
    path = store.paths.image(name)
    try:
        return Path(os.readlink(path)).is_relative_to(store.paths.tmp)
    except OSError:  # no link, or none that is there
        return False


def _hold(store: Store, image: BaseImage, holding: ExitStack) -> None:
    try:
        images.keep_open(image.path, holding)
    except CacheMissing as error:
        raise NotCached(f"the image {image.name} is gone already", hint="something else removes files there") from error
    images.mark_used(store, image.name)


@contextmanager
def alone(store: Store, name: str, whose: str, make: Make, observer: Observer) -> Iterator[BaseImage | None]:
    """What a callback makes for one disk only: a staged file, which is gone with the context. None: nothing was made.

    Args:
        whose: the disk. Of those who want the same one, one is in the context at a time; nobody waits for another disk.

    Raises:
        as `ensure`
    """
    store.prepare()
    with stagings.turn(store, _ref(f"{name}:{whose}"), observer) as staging, _made(store, name, make, staging) as content:
        yield content


def _ref(name: str) -> ImageRef:
    """Under which an image of Nova's is ingested; no source serves it."""
    text = f"nova:{name}"
    return ImageRef(scheme="nova", canonical=text, location=text)


@contextmanager
def scratch(store: Store, name: str, observer: Observer) -> Iterator[Path]:
    """An empty directory in staging, for one who asks for this name at a time; what is left of a killed one is swept.

    Raises:
        CacheMissing, CacheNotWritable
    """
    store.prepare()
    with stagings.turn(store, _ref(name), observer) as staging, _emptied(staging):
        yield staging.directory


@contextmanager
def _emptied(staging: Staging) -> Iterator[None]:
    stagings.restart(staging)  # what one who was killed has left
    try:
        yield  # crash: an ingest's directory, which the next one replaces
    finally:
        with suppress(UnderlayError):
            stagings.discard(staging)


@contextmanager
def _made(store: Store, name: str, make: Make, staging: Staging) -> Iterator[BaseImage | None]:
    """What the callback makes, inspected, in the form that the cache keeps."""
    with _emptied(staging):
        make(staging.download)
        yield _inspected(store, name, staging) if os.path.lexists(staging.download) else None


def _inspected(store: Store, name: str, staging: Staging) -> BaseImage:
    content = images.inspect_staged(replace(store, force_raw=False), staging.download, name)
    if not store.force_raw or content.format == "raw":
        return content
    with translated(staging.converted):
        qemuimg.convert_to_raw(content.path, staging.converted, format=content.format)
    return images.inspect_staged(store, staging.converted, name)


def _publish(store: Store, content: BaseImage, name: str, observer: Observer) -> BaseImage:
    image = images.publish_unrecorded(store, content.path, name)
    fields: dict[str, str | int | float | None] = {"name": name, "format": image.format, "size": image.size}
    detail = "published under the name that Nova gives it"
    observer.event(Event(code="published", level=Level.INFO, detail=detail, fields=fields))
    return image


# -------------------------------------------------------------------------------------------------- made from what is here


def raw_form(store: Store, image: BaseImage, observer: Observer, holding: ExitStack) -> BaseImage:
    """The image for a backend that reads raw images only: itself, or its raw form beside it, made first unless it is here.

    Raises:
        as `ensure`
    """
    if image.format == "raw":
        return image

    def make(target: Path) -> None:
        with translated(target):
            qemuimg.convert_to_raw(image.path, target, format=image.format)

    raw = ensure(store, f"{image.name}.raw", make, observer, holding)
    assert raw is not None
    return raw


def resized(store: Store, image: BaseImage, size_gib: int, observer: Observer, holding: ExitStack) -> BaseImage:
    """The copy of an image of so many GiB that disks of older Novas stand on, made first unless it is here.

    Raises:
        as `ensure`
    """

    def make(target: Path) -> None:
        size = size_gib * _GIB
        with translated(target):
            _copy(image, target, size=max(size, image.size) if image.format == "raw" else image.size)
            if image.format != "raw" and size > image.virtual_size:
                qemuimg.resize(target, format=image.format, size=size)

    copy = ensure(store, f"{image.name}_{size_gib}", make, observer, holding)
    assert copy is not None
    return copy


def _copy(image: BaseImage, target: Path, *, size: int) -> None:
    source = open_regular(image.path)
    try:
        fd = create(target, _MODE)
        try:
            copy_sparse(source, fd, image.size)
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
    finally:
        os.close(source)
