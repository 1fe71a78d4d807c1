"""One pass: an image is raw when its last byte has arrived, whatever its layout, and nothing comes of one that is not right."""

import gzip
import hashlib
import os
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import corpus
from corpus import KIB, MIB
from qcow2_broken import BROKEN, changed
from qcow2_layouts import Kind, Layout, build
from qcow2_strategies import layouts
from storing import laid_out, staging_of
from underlay.cache import Cache
from underlay.claim import Claim
from underlay.errors import DigestMismatch, InsufficientSpace, SourceUnavailable, UnsafeImage
from underlay.files import allocated_bytes, data_extents
from underlay.formats.inspect import BEGINNING_BYTES
from underlay.model import BaseImage, Digest, Event, ImageFacts, ImageVersion, Progress
from underlay.onepass import MOST_WAITING, following
from underlay.order import Order
from underlay.policy.form import Want
from underlay.policy.retry import Retries
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store, staging as stagings
from underlay.stream import stored_digest
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.testing.httpserver import Served, serving

REF = parse_ref("fake:image")
DURING = "while the image arrived"
pytestmark = pytest.mark.component("qemu-img")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "base")


def fetch(
    store: Store, served: bytes, observer: Recorder | None = None, *, want: Want | None = None, **fields: object
) -> BaseImage:
    source = FakeSource({REF.canonical: FakeImage(served, **fields)})  # type: ignore[arg-type]
    return Cache(name="base", store=store).ensure(REF, source, observer or Recorder(), want=want or Want()).image


def told(observer: Recorder, code: str) -> Event:
    (event,) = [event for event in observer.events if event.code == code]
    return event


def assert_raw(image: BaseImage, disk: bytes) -> None:
    assert disk == image.path.read_bytes()
    assert image.record is not None
    with image.path.open("rb") as file:
        assert stored_digest(file.fileno()) == image.record.stored


def assert_nothing_left(store: Store) -> None:
    assert [".underlay"] == os.listdir(store.root)
    assert [] == os.listdir(store.paths.tmp)


def an_image(directory: Path, *, compressed: bool = True, options: str = "") -> tuple[bytes, bytes]:
    """A qcow2 of several MiB, and its disk."""
    pieces = [(0, corpus.noise(MIB)), (3 * MIB, corpus.prose(9 * MIB)), (20 * MIB, corpus.noise(3 * MIB, seed=1))]
    disk = corpus.raw(directory / "disk", 24 * MIB, pieces)
    image = corpus.convert(disk, directory / "image", "qcow2", compressed=compressed, options=options)
    return image.read_bytes(), disk.read_bytes()


@pytest.mark.parametrize("form", ["plain", "compressed"])
@pytest.mark.parametrize(
    "options",
    [
        "",
        "compat=0.10",
        "cluster_size=4k",
        "cluster_size=2M",
        "extended_l2=on",
        "compression_type=zstd",
        "preallocation=metadata",
    ],
)
def test_an_image_is_raw_when_its_last_byte_has_arrived(store: Store, tmp_path: Path, options: str, form: str) -> None:
    if form == "compressed" and "preallocation" in options:
        options = ""  # which qemu-img does not combine
    served, disk = an_image(tmp_path, compressed=form == "compressed", options=options)
    observer = Recorder()

    assert_raw(fetch(store, served, observer, piece=300_000), disk)

    assert DURING == told(observer, "converted").detail
    assert "converted-later" not in observer.codes
    assert "download-durable" not in observer.codes


class Watching(Recorder):
    """Looks at the raw form while the image arrives."""

    def __init__(self, look: Callable[[int], None]) -> None:
        super().__init__()
        self._look = look

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        if progress.stage == "fetch":
            self._look(progress.done)


@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_it_is_made_while_the_image_arrives_and_is_not_to_be_seen_before(store: Store, tmp_path: Path, form: str) -> None:
    served, disk = an_image(tmp_path, compressed=form == "compressed")
    sizes: list[int] = []

    def look(done: int) -> None:
        assert [".underlay"] == os.listdir(store.root)
        if done < len(served):
            converted = staging_of(store, REF).converted
            sizes.append(allocated_bytes(converted.stat()) if converted.exists() else 0)

    assert_raw(fetch(store, served, Watching(look), piece=MIB // 4, delay=0.05), disk)
    assert max(sizes) > 2 * MIB


@pytest.mark.parametrize("seed", range(6))
def test_tables_behind_their_data_and_clusters_in_any_order_are_converted_all_the_same(store: Store, seed: int) -> None:
    kinds = [Kind.PLAIN, Kind.COMPRESSED, Kind.ZERO, Kind.PLAIN, Kind.ABSENT, Kind.ZERO_ALLOCATED] * 8
    served, disk = build(Layout(kinds=kinds, seed=seed))
    observer = Recorder()

    assert_raw(fetch(store, served, observer, piece=100_000), disk)
    assert DURING == told(observer, "converted").detail


def test_a_compressed_download_is_followed_behind_its_decompression(store: Store, tmp_path: Path) -> None:
    served, disk = an_image(tmp_path, compressed=False)
    observer = Recorder()

    assert_raw(fetch(store, gzip.compress(served, 1), observer), disk)
    assert DURING == told(observer, "converted").detail


def test_an_image_that_is_kept_as_served_is_not_followed(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "base", force_raw=False)
    served, _ = an_image(tmp_path)
    observer = Recorder()

    assert served == fetch(store, served, observer).path.read_bytes()
    assert "converted" not in observer.codes


def test_a_raw_form_that_is_asked_for_is_made_on_the_way(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "base", force_raw=False)
    served, disk = an_image(tmp_path)
    observer = Recorder()

    assert_raw(fetch(store, served, observer, want=Want(raw=True)), disk)
    assert DURING == told(observer, "converted").detail


# -------------------------------------------------------------------------------------------------------- not as it should be


def test_a_digest_that_is_wrong_in_the_last_byte_ends_in_nothing(store: Store, tmp_path: Path) -> None:
    served, _ = an_image(tmp_path)
    right = Digest("sha256", hashlib.sha256(served[:-1] + bytes([served[-1] ^ 1])).hexdigest())

    with pytest.raises(DigestMismatch):
        fetch(store, served, digests=(right,))

    assert_nothing_left(store)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_an_image_that_is_cut_short_ends_in_nothing(store: Store, tmp_path: Path, part: float) -> None:
    served, _ = an_image(tmp_path)

    with pytest.raises(UnsafeImage, match="cut-short"):
        fetch(store, served[: int(len(served) * part)])

    assert_nothing_left(store)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_refused_by_its_rule_once_it_is_known_to_be_the_right_one(
    case: str, store: Store, tmp_path: Path
) -> None:
    change, rule = BROKEN[case]
    image = changed(tmp_path, change).read_bytes()
    other = Digest("sha256", hashlib.sha256(b"").hexdigest())

    with pytest.raises(DigestMismatch):
        fetch(store, image, digests=(other,))
    with pytest.raises(UnsafeImage) as refusal:
        fetch(store, image, piece=70_000)

    # The header read as a table points behind the end as well, which is seen sooner of a file that is whole.
    assert refusal.value.rule == ("cut-short" if case == "an-l1-table-that-is-the-header" else rule)
    assert_nothing_left(store)


def test_of_an_image_that_is_refused_at_last_it_is_told_why_it_was_not_converted_before(store: Store, tmp_path: Path) -> None:
    image = changed(tmp_path, BROKEN["two-plain-clusters-in-one"][0]).read_bytes()
    observer = Recorder()

    with pytest.raises(UnsafeImage, match=r"corrupt: two"):
        fetch(store, image, observer)

    assert "corrupt: two" in told(observer, "converted-later").detail


@pytest.mark.parametrize("step", range(1, 8))
def test_an_image_that_is_cut_short_at_a_cluster_ends_in_nothing(store: Store, step: int) -> None:
    kinds = [Kind.PLAIN, Kind.COMPRESSED, Kind.ZERO, Kind.COMPRESSED, Kind.PLAIN] * 2
    image, _ = build(Layout(kinds=kinds, seed=step))
    size = len(image) // 8 * step // (64 * KIB) * (64 * KIB)

    with pytest.raises(UnsafeImage):
        fetch(store, image[:size], piece=64 * KIB)

    assert_nothing_left(store)


def test_an_l1_table_that_is_taken_in_pieces_is_followed_as_well(store: Store, tmp_path: Path) -> None:
    size = 65_537 * 32 * KIB  # which so many L2 tables of so small clusters map
    image = corpus.create(tmp_path / "image", "qcow2", size, options="cluster_size=512")
    corpus.qemu_io(image, f"write -P 8 {size - 64 * KIB} 64k", "write -P 9 1G 64k", "write -P 7 1M 64k")
    observer = Recorder()

    raw = fetch(store, image.read_bytes(), observer)

    assert DURING == told(observer, "converted").detail
    assert [1 * MIB, 1024 * MIB, size - 64 * KIB] == [start for start, _ in data_of(raw.path)]
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw.path], check=True)


class Failing(Recorder):
    """Raises an error where the following thread tells how far it is, and nowhere else."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        if threading.current_thread().name.startswith("underlay-follow"):
            raise self._error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_what_the_machine_is_short_of_costs_time_and_nothing_else(store: Store, tmp_path: Path, error: Exception) -> None:
    served, disk = an_image(tmp_path)
    observer = Failing(error)

    assert_raw(fetch(store, served, observer), disk)

    assert "short of something" in told(observer, "converted-later").detail
    assert "from the finished file" == told(observer, "converted").detail
    assert [] == os.listdir(store.paths.tmp)


def test_a_fault_of_the_program_is_not_hidden_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    served, _ = an_image(tmp_path)

    with pytest.raises(ZeroDivisionError):
        fetch(store, served, Failing(ZeroDivisionError()))

    assert_nothing_left(store)


def test_how_far_a_download_is_is_not_told_any_more_to_who_has_left_off(store: Store, tmp_path: Path) -> None:
    order = Order(store=store, source=FakeSource({}), version=ImageVersion(ref=REF), want=Want())
    staging, observer = staging_of(store, REF), Recorder()
    served = tmp_path / "image"
    served.write_bytes(changed(tmp_path, BROKEN["two-plain-clusters-in-one"][0]).read_bytes())
    stagings.restart(staging)
    os.link(served, staging.download)
    facts = ImageFacts(format="qcow2", label="qcow2", virtual_size=MIB)
    with following(order, staging, Claim(order, staging, observer), observer) as follower:
        follower.follow(facts, served.stat().st_size)
        deadline = time.monotonic() + 30
        while follower.is_at_work:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "converted-later" in observer.codes
        left = follower._sizes.qsize()
        for size in range(100):
            follower.follow(facts, size)

        assert left == follower._sizes.qsize()
        assert follower.finish() is None


def test_of_many_tables_that_have_come_at_once_no_more_are_taken_than_there_is_memory_for(store: Store, tmp_path: Path) -> None:
    """Each maps 512 clusters that lie apart, behind all that has come."""
    cluster, tables = 4 * KIB, MOST_WAITING // 512 + 2
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 12, tables * 512 * cluster, 0, tables, cluster, 2 * cluster, 1, 0, 0
    )
    header += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    l1_table = struct.pack(f">{tables}Q", *(cluster * (3 + index) for index in range(tables)))
    l2_tables = struct.pack(f">{tables * 512}Q", *(cluster * (1000 + 2 * index) for index in range(tables * 512)))
    content = header.ljust(cluster, b"\0") + l1_table.ljust(2 * cluster, b"\0") + l2_tables
    order = Order(store=store, source=FakeSource({}), version=ImageVersion(ref=REF), want=Want())
    staging, observer = staging_of(store, REF), Recorder()
    stagings.restart(staging)
    staging.download.write_bytes(content)
    facts = ImageFacts(format="qcow2", label="qcow2", virtual_size=tables * 512 * cluster)
    with following(order, staging, Claim(order, staging, observer), observer) as follower:
        follower.follow(facts, len(content))

        assert follower.finish() is None

    assert f"more than {MOST_WAITING} clusters wait" in told(observer, "converted-later").detail


def data_of(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(data_extents(file.fileno(), path.stat().st_size))


@settings(max_examples=25)
@given(layout=layouts(), piece=st.sampled_from([5_000, 64 * KIB, MIB]))
def test_a_layout_that_no_tool_writes_is_raw_when_its_last_byte_has_arrived(layout: Layout, piece: int) -> None:
    served, disk = build(layout)
    observer = Recorder()
    with tempfile.TemporaryDirectory() as root:
        assert_raw(fetch(laid_out(Path(root, "base")), served, observer, piece=piece), disk)
    # What is shorter than its inspection begins with has arrived before anything is known of it.
    expected = DURING if len(served) >= BEGINNING_BYTES else "from the finished file"
    assert expected == told(observer, "converted").detail


@pytest.mark.component("root", "tmpfs")
def test_without_room_for_both_the_download_is_finished_first(mounted: Callable[..., Path], tmp_path: Path) -> None:
    """The raw form is told to need more than is assumed before, and only when its tables have come."""
    store = laid_out(mounted("tmpfs", 8 * MIB))
    disk = corpus.raw(tmp_path / "disk", 12 * MIB, [(0, corpus.prose(12 * MIB))])
    served = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=True).read_bytes()
    observer = Recorder()

    with pytest.raises(InsufficientSpace):
        fetch(store, served, observer)

    assert "no room" in told(observer, "converted-later").detail
    assert served == staging_of(store, REF).download.read_bytes()
    assert not staging_of(store, REF).converted.exists()


def test_a_transfer_that_breaks_goes_on_and_so_does_the_conversion(store: Store, tmp_path: Path) -> None:
    served, disk = an_image(tmp_path)
    whole, observer = Served(served, etag='"1"'), Recorder()
    quick = Retries(attempts=3, first_wait=0.01, longest_wait=0.05)
    with serving({"/image": [whole, replace(whole, cut_after=2 * MIB + 7), whole]}) as server:
        cache = Cache(name="base", store=store)
        image = cache.ensure(parse_ref(server.url("/image")), HttpSource(), observer, retries=quick).image

    assert_raw(image, disk)
    assert "retrying" in observer.codes
    assert DURING == told(observer, "converted").detail


def test_an_attempt_that_another_left_converts_what_is_on_disk_as_well(store: Store, tmp_path: Path) -> None:
    served, disk = an_image(tmp_path)
    broken = FakeImage(served, validator="1", read_error=SourceUnavailable("it broke"), read_error_after=3 * MIB)
    source, observer = FakeSource({REF.canonical: broken}), Recorder()
    cache = Cache(name="base", store=store)
    with pytest.raises(SourceUnavailable):
        cache.ensure(REF, source, observer)
    assert not staging_of(store, REF).converted.exists()
    assert staging_of(store, REF).download.exists()
    source.put(REF.canonical, replace(broken, read_error=None))

    image = cache.ensure(REF, source, observer).image

    assert_raw(image, disk)
    assert "resumed" in observer.codes
    assert DURING == told(observer, "converted").detail


@pytest.mark.component("root", "tmpfs")
def test_what_it_writes_is_claimed_before(mounted: Callable[..., Path], tmp_path: Path) -> None:
    """At each step the claim covers what the download and its raw form occupy, though the tables say more than was assumed."""
    store = laid_out(mounted("tmpfs", 128 * MIB))
    disk = corpus.raw(tmp_path / "disk", 48 * MIB, [(0, corpus.prose(48 * MIB))])
    served = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=True, options="cluster_size=4k").read_bytes()
    staging = staging_of(store, REF)
    excess: list[int] = []

    def look(_: int) -> None:
        allocated = stagings.allocated(staging)  # first: a claim is made before what it is for is written
        excess.append(allocated - int(staging.reservation.read_bytes()))

    observer = Watching(look)
    assert_raw(fetch(store, served, observer, piece=128 * KIB, delay=0.01), disk.read_bytes())
    claims = [size for event in observer.events if event.code == "reserved" and (size := event.fields["size"])]
    assert len(served) + 48 * MIB == max(int(size) for size in claims)
    assert max(excess) <= 0


@pytest.mark.component("root")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.component(kind)) for kind in ("xfs", "btrfs", "tmpfs")])
@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_every_file_system_will_do(mounted: Callable[..., Path], tmp_path: Path, kind: str, form: str) -> None:
    store = laid_out(mounted(kind))
    served, disk = an_image(tmp_path, compressed=form == "compressed")

    image = fetch(store, served, piece=200_000)

    assert_raw(image, disk)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "disk", image.path], check=True)
