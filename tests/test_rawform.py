"""The raw form of a verified download: who makes it, its digest, how far that is, and nothing of an image that is not right."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import corpus
from corpus import GIB, KIB, MIB
from qcow2_layouts import Kind, Layout, build
from storing import laid_out, staging_of
from underlay.cache import Cache
from underlay.errors import UnsafeImage
from underlay.files import allocated_bytes
from underlay.formats.qcow2.entries import OFFSET_MASK
from underlay.formats.qcow2.hostclusters import MOST_CLUSTERS
from underlay.model import LAYOUT, BaseImage, ImageVersion, Progress
from underlay.order import Order
from underlay.rawform import _watched, make_raw
from underlay.refs import parse_ref
from underlay.store import Store, staging as stagings
from underlay.store.staging import Journal, Staging
from underlay.stream import stored_digest
from underlay.telling import PROGRESS_INTERVAL, Meter
from underlay.testing.fakes import FakeImage, FakeSource, Recorder

REF = parse_ref("fake:image")
needs_qemu_img = pytest.mark.component("qemu-img")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "base")


def fetch(store: Store, served: bytes, observer: Recorder | None = None) -> BaseImage:
    source = FakeSource({REF.canonical: FakeImage(served)})
    return Cache(name="base", store=store).ensure(REF, source, observer or Recorder()).image


def assert_raw(image: BaseImage, disk: bytes) -> None:
    assert disk == image.path.read_bytes()
    assert image.record is not None
    with image.path.open("rb") as file:
        assert stored_digest(file.fileno()) == image.record.stored


def assert_nothing_left(store: Store) -> None:
    assert [".underlay"] == os.listdir(store.root)
    assert [] == os.listdir(store.paths.tmp)


# ------------------------------------------------------------------------------------------------------------ our own converter


@pytest.mark.parametrize("seed", range(6))
def test_tables_behind_their_data_and_clusters_in_any_order_make_the_disk_and_its_digest(store: Store, seed: int) -> None:
    kinds = [Kind.PLAIN, Kind.COMPRESSED, Kind.ZERO, Kind.PLAIN, Kind.ABSENT, Kind.ZERO_ALLOCATED] * 8
    served, disk = build(Layout(kinds=kinds, seed=seed))
    observer = Recorder()

    assert_raw(fetch(store, served, observer), disk)

    assert "converted" in observer.codes
    assert "left-to-qemu-img" not in observer.codes


@needs_qemu_img
@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_a_block_that_the_file_does_not_reach_the_end_of_yet_is_read_as_it_will_be(
    store: Store, tmp_path: Path, form: str
) -> None:
    """Small clusters, each alone in its 64 KiB: what is final reaches further than what has been written."""
    pieces = [(offset, corpus.prose(4 * KIB)) for offset in range(0, 32 * MIB, 128 * KIB)]
    disk = corpus.raw(tmp_path / "disk", 32 * MIB, pieces)
    image = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=form == "compressed", options="cluster_size=4k")

    assert_raw(fetch(store, image.read_bytes()), disk.read_bytes())


class Slow(Recorder):
    """Takes so long that the next progress is due already."""

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        time.sleep(PROGRESS_INTERVAL)


@needs_qemu_img
def test_our_conversion_tells_how_far_it_is(store: Store, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", 48 * MIB, [(0, corpus.prose(48 * MIB))])
    served = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=True).read_bytes()
    observer = Slow()

    fetch(store, served, observer)

    told_of = [progress for progress in observer.steps if progress.stage == "convert"]
    done = [progress.done for progress in told_of]
    assert {48 * MIB} == {progress.total for progress in told_of}
    assert sorted(done) == done
    assert 48 * MIB == done[-1]
    assert [step for step in done if 0 < step < 48 * MIB]


@needs_qemu_img
@pytest.mark.component("root")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.component(kind)) for kind in ("xfs", "btrfs", "tmpfs")])
@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_every_file_system_will_do(mounted: Callable[..., Path], tmp_path: Path, kind: str, form: str) -> None:
    pieces = [(0, corpus.noise(MIB)), (3 * MIB, corpus.prose(9 * MIB)), (20 * MIB, corpus.noise(3 * MIB, seed=1))]
    disk = corpus.raw(tmp_path / "disk", 24 * MIB, pieces)
    served = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=form == "compressed").read_bytes()

    image = fetch(laid_out(mounted(kind)), served)

    assert_raw(image, disk.read_bytes())
    assert allocated_bytes(image.path.stat()) <= 14 * MIB


# ---------------------------------------------------------------------------------------------------------------- what is wrong


def with_shared_cluster(directory: Path) -> bytes:
    image = bytearray(build(Layout(kinds=[Kind.PLAIN] * 32, seed=1))[0])
    (directory / "image").write_bytes(image)
    l2 = corpus.l1_table(directory / "image")[1][0] & OFFSET_MASK
    image[l2 + 8 : l2 + 16] = image[l2 : l2 + 8]
    return bytes(image)


def test_an_image_whose_clusters_overlap_is_refused_and_not_left_to_a_tool(store: Store, tmp_path: Path) -> None:
    observer = Recorder()

    with pytest.raises(UnsafeImage, match="corrupt: two clusters") as refusal:
        fetch(store, with_shared_cluster(tmp_path), observer)

    assert "corrupt" == refusal.value.rule
    assert "left-to-qemu-img" not in observer.codes
    assert_nothing_left(store)


@needs_qemu_img
def test_an_image_whose_compressed_data_are_broken_is_refused(store: Store, tmp_path: Path) -> None:
    disk = corpus.raw(tmp_path / "disk", MIB, [(0, corpus.noise(MIB // 2) + corpus.prose(MIB // 2))])
    image = bytearray(corpus.convert(disk, tmp_path / "image", "qcow2", compressed=True).read_bytes())
    image[5 * 64 * KIB :] = corpus.noise(len(image) - 5 * 64 * KIB, seed=2)

    with pytest.raises(UnsafeImage, match="a compressed cluster are broken"):
        fetch(store, bytes(image))

    assert_nothing_left(store)


# --------------------------------------------------------------------------------------------------------------------- qemu-img


def a_download(store: Store, image: Path, *, size: int) -> tuple[Order, Staging, Journal]:
    """An image that lies in its staging directory as a transfer leaves it."""
    staging = staging_of(store, REF)
    stagings.begin(staging)
    image.rename(staging.download)
    order = Order(store=store, source=FakeSource({}), version=ImageVersion(ref=REF))
    journal = Journal(
        layout=LAYOUT,
        ref=REF.canonical,
        version_id="1",
        validator=None,
        size=staging.download.stat().st_size,
        digests=(),
        stored="",
        format="qcow2",
        label="qcow2",
        virtual_size=size,
    )
    return order, staging, journal


@needs_qemu_img
def test_what_our_converter_does_not_know_is_left_to_qemu_img_which_is_told(store: Store, tmp_path: Path) -> None:
    disk = corpus.scattered(tmp_path / "disk")
    image = corpus.convert(disk, tmp_path / "image", "qcow2", options="cluster_size=512")
    os.truncate(image, MOST_CLUSTERS * 512 + 512)
    assert image.stat().st_size > 8 * GIB  # all but the beginning is a hole
    order, staging, journal = a_download(store, image, size=8 * MIB)
    observer = Recorder()

    raw = make_raw(order, staging, journal, observer)

    (event,) = observer.events
    assert ("left-to-qemu-img", f"it has more than {MOST_CLUSTERS} clusters") == (event.code, event.detail)
    assert disk.read_bytes() == staging.converted.read_bytes()
    with disk.open("rb") as file:
        assert (8 * MIB, stored_digest(file.fileno())) == (raw.size, raw.stored)


def test_a_tool_is_told_of_by_what_its_output_occupies(tmp_path: Path) -> None:
    recorder = Recorder()
    staging = Staging(tmp_path)
    staging.converted.write_bytes(os.urandom(MIB))
    meter = Meter("file:///x", 2 * MIB, staging, recorder)

    with _watched(staging, meter):
        told_of = recorder.wait_for_progress("convert")

    assert MIB <= told_of.done
    assert told_of == stagings.read_progress(staging)
