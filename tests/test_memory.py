"""A transfer takes the same memory whatever the size of the image, and little of it."""

import os
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import corpus
from children import start, tell, told
from compressing import COMPRESS
from corpus import MIB
from storing import laid_out
from underlay.cache import Cache
from underlay.model import BaseImage
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import serving
from underlay.web import Web

SMALL, LARGE = 16, 64  # MiB of data
MOST = 16 * MIB


def dense(path: Path, size: int) -> Path:
    piece = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(size):
            file.write(piece)
    return path


def sparse(path: Path, size: int) -> Path:
    """A quarter of it is data."""
    piece = os.urandom(MIB)
    return corpus.raw(path, 4 * size * MIB, [(offset * 4 * MIB, piece) for offset in range(size)])


def system(path: Path, size: int) -> Path:
    """Data that can be compressed, and some that cannot."""
    return corpus.raw(
        path, 4 * size * MIB, [(offset * 4 * MIB, corpus.prose(MIB - 70_000) + os.urandom(70_000)) for offset in range(size)]
    )


def as_qcow2(disk: Path, *, compressed: bool) -> Path:
    image = corpus.convert(disk, disk.with_suffix(".qcow2"), "qcow2", compressed=compressed)
    disk.unlink()
    return image


def packed(compression: str) -> Callable[[Path, int], Path]:
    def make(path: Path, size: int) -> Path:
        path.write_bytes(COMPRESS[compression](dense(path, size // 2).read_bytes()))
        return path

    return make


FORMS: Mapping[str, Callable[[Path, int], Path]] = MappingProxyType(
    {
        "dense": dense,
        "sparse": sparse,
        "qcow2": lambda path, size: as_qcow2(sparse(path, size), compressed=False),
        "compressed-qcow2": lambda path, size: as_qcow2(system(path, size), compressed=True),
        "gzip": packed("gzip"),
        "zstd": packed("zstd"),
    }
)


def serve(directory: str) -> None:
    """In a child, whose memory is its own: serve a directory until told otherwise."""
    with serving(Path(directory)) as server:
        tell(server.base)
        told()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and where it is served."""
    directory = tmp_path / "served"
    directory.mkdir()
    with start(serve, directory) as child:
        yield directory, child.hear()


def fetched(root: Path, url: str, web: Web) -> BaseImage:
    cache = Cache(name="base", store=laid_out(root))
    return cache.ensure(parse_ref(url), HttpSource(web=web), Recorder(), want=Want()).image


def peak(root: Path, url: str, web: Web) -> int:
    """Bytes that a fetch took at most, beside what was there before."""
    tracemalloc.start()
    try:
        fetched(root, url, web)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("form", FORMS)
def test_a_transfer_takes_the_same_memory_whatever_the_size(tmp_path: Path, served: tuple[Path, str], form: str) -> None:
    directory, base = served
    small, large = (FORMS[form](directory / str(size), size) for size in (SMALL, LARGE))
    fetched(tmp_path / "first", f"{base}/{small.name}", Web())  # what it imports stays

    little, much = (peak(tmp_path / image.name, f"{base}/{image.name}", Web()) for image in (small, large))

    assert much <= min(MOST, little + MIB)


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("parallel", [2, 4, 16])
@pytest.mark.parametrize("form", ["dense", "qcow2"])
def test_ranges_at_once_take_no_more_than_is_allowed(
    tmp_path: Path, served: tuple[Path, str], form: str, parallel: int
) -> None:
    directory, base = served
    image, web = FORMS[form](directory / "image", LARGE), Web(parallel=parallel)
    fetched(tmp_path / "first", f"{base}/{image.name}", web)

    assert peak(tmp_path / "second", f"{base}/{image.name}", web) <= MOST
