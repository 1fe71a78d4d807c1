"""Images are read from their medium, judged by two readings, and put into quarantine; a scrub stops and goes on."""

import errno
import hashlib
import math
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storing import MIB, laid_out, published
from underlay import locks
from underlay.errors import CacheNotWritable, ImageDamaged, LockTimeout
from underlay.model import BaseImage, Event, Progress, Reason
from underlay.naming import CacheKind
from underlay.policy.scrub import ScrubSubject, plan_scrub
from underlay.refs import parse_ref
from underlay.scrub.outcome import Scrubbed, ScrubReport
from underlay.scrub.pace import Pace
from underlay.scrub.passes import ScrubOrder, scrub
from underlay.scrub.reading import ImageReader, opened
from underlay.scrub.verify import Meter, verify
from underlay.store import Store, images, locking, quarantine, scrubs
from underlay.stream import stored_digest

BLOCK = 64 << 10
CONTENT = random.Random("scrub").randbytes(3 * MIB + 17)


@dataclass(slots=True)
class Heard:
    """An observer that keeps what it hears, and does something when it hears a code."""

    events: list[Event] = field(default_factory=list)
    steps: list[Progress] = field(default_factory=list)
    when: dict[str, Callable[[], object]] = field(default_factory=dict)

    def event(self, event: Event) -> None:
        self.events.append(event)
        self.when.get(event.code, lambda: None)()

    def progress(self, progress: Progress) -> None:
        self.steps.append(progress)
        self.when.get("progress", lambda: None)()

    @property
    def codes(self) -> list[str]:
        return [event.code for event in self.events]


def everything(*stores: Store) -> list[ScrubSubject]:
    return [one for store in stores for one in scrubs.subjects(store, store.root.name)[0]]


def run(
    *stores: Store, heard: Heard | None = None, pace: Pace | None = None, only: Sequence[str] = (), repair: bool = False
) -> ScrubReport:
    """Scrub all images of some caches; damaged ones have one user, and nothing is really fetched."""
    order = ScrubOrder(
        stores={store.root: store for store in stores},
        pace=pace or Pace(),
        observer=heard or Heard(),
        users=lambda subject: (Reason("backing-file", f"a disk on {subject.name}"),),
        repair=(lambda _subject, _users: Reason("refetched", "")) if repair else None,
    )
    subjects = [one for one in everything(*stores) if not only or one.name in only]
    return scrub(order, plan_scrub(subjects, older_than=0, now=datetime.now(UTC)), [])


def one(report: ScrubReport) -> Scrubbed:
    [scrubbed] = report.images
    return scrubbed


def flip(path: Path, offset: int = 100_000) -> None:
    """Change a bit as a bad medium does: nothing but the content tells."""
    status = path.stat()
    fd = os.open(path, os.O_RDWR)
    try:
        [byte] = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte ^ 4]), offset)
        os.fsync(fd)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)


def read_all(path: Path, **pace: float) -> str | None:
    with opened(path) as image:
        reading = ImageReader(image, Pace(**pace)).finish(lambda: True)
    assert reading is not None
    assert reading.failure is None
    return reading.stored


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


@pytest.fixture
def image(store: Store) -> BaseImage:
    return published(store, CONTENT)


# ---------------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("size", [1, 511, 512, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * MIB, 2 * MIB + 1, 9 * MIB + 4095])
@pytest.mark.parametrize("holes", [False, True])
def test_a_reading_gives_the_stored_digest_whatever_the_size(tmp_path: Path, size: int, *, holes: bool) -> None:
    path = tmp_path / "image"
    content = bytearray(random.Random(size).randbytes(size))
    if holes:
        content[: size // 3] = bytes(size // 3)
    path.write_bytes(content)
    os.truncate(path, size + (3 * BLOCK + 5 if holes else 0))
    with path.open("rb") as file:
        expected = stored_digest(file.fileno())

    assert expected == read_all(path)


def test_a_sparse_image_is_read_where_it_has_data_only(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(CONTENT)
    with opened(path) as image:
        reader = ImageReader(image, Pace())
        assert reader.finish(lambda: True) is not None
    assert len(CONTENT) <= reader.read < len(CONTENT) + 2 * BLOCK


@pytest.mark.component("ext4", "xfs", "btrfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_reading_is_of_the_medium_and_leaves_the_pages_of_guests(mounted: Callable[..., Path], kind: str) -> None:
    path = mounted(kind) / "image"
    path.write_bytes(CONTENT)
    os.sync()
    path.read_bytes()  # as a guest did
    with opened(path) as image:
        assert image.direct
    before = _cached_pages(path)
    assert before > 0

    read_all(path)

    assert before == _cached_pages(path)


@pytest.mark.component("tmpfs", "ramfs", "fuse2fs")
@pytest.mark.parametrize("kind", ["ramfs", "fuse2fs", "tmpfs"])
def test_where_nothing_can_be_read_past_the_page_cache_it_is_read_through_it(mounted: Callable[..., Path], kind: str) -> None:
    path = mounted(kind, 64 * MIB) / "image"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        expected = stored_digest(file.fileno())
    assert expected == read_all(path)


@pytest.mark.component("ext4")
def test_a_bit_that_changed_on_the_device_is_seen_although_the_page_cache_has_the_old_one(
    mounted: Callable[..., Path], tmp_path: Path
) -> None:
    store = laid_out(mounted("ext4", 64 * MIB) / "cache")
    image = published(store, CONTENT)
    os.sync()
    assert CONTENT == image.path.read_bytes()  # now it is in memory
    _flip_on_device(tmp_path / "ext4-0.img", image.path)
    assert CONTENT == image.path.read_bytes()

    scrubbed = one(run(store))

    assert ("damaged", "content-differs") == (scrubbed.outcome, scrubbed.damage and scrubbed.damage.code)


def _flip_on_device(device: Path, image: Path) -> None:
    """Change the image where it lies on the file behind its loop device, past the file system."""
    found = subprocess.run(["losetup", "-n", "-O", "NAME", "-j", device], capture_output=True, text=True, check=True)
    loop = found.stdout.strip()
    needle = image.read_bytes()[BLOCK : BLOCK + 4096]
    at = device.read_bytes().index(needle)
    fd = os.open(loop, os.O_RDWR | os.O_DIRECT)
    try:
        page = mmap.mmap(-1, 4096)
        os.preadv(fd, [page], at // 4096 * 4096)
        page[at % 4096] ^= 1
        os.pwritev(fd, [page], at // 4096 * 4096)
        os.fsync(fd)
    finally:
        os.close(fd)


def _cached_pages(path: Path) -> int:
    """Pages of a file in memory (util-linux, fincore)."""
    told = subprocess.run(["fincore", "-n", "-r", "-o", "PAGES", path], capture_output=True, text=True, check=True)
    return int(told.stdout)


@pytest.mark.component("ext4")
def test_an_image_on_a_failing_device_is_damaged_as_well(tmp_path: Path) -> None:
    """Its device ends before the image does, as a drive with a dead surface: the kernel answers with EIO."""
    device, target = tmp_path / "device", tmp_path / "mounted"
    target.mkdir()
    with device.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", device], check=True)
    subprocess.run(["mount", "-o", "loop,errors=continue", device, target], check=True)
    try:
        store = laid_out(target / "cache")
        good, bad = published(store, CONTENT), published(store, CONTENT * 8, version="2")
        unrecorded = store.root / ("5" * 40)
        unrecorded.write_bytes(CONTENT[::-1])
        os.sync()
        _cut_off(device, bad.path, unrecorded)
        subprocess.run(["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"], check=True)
        heard = Heard()

        report = run(store, heard=heard)
    finally:
        subprocess.run(["umount", "-l", target], check=True)
    outcomes = {one.subject.name: (one.outcome, one.damage and one.damage.code) for one in report.images}
    assert {
        good.name: ("sound", None),
        bad.name: ("damaged", "unreadable"),
        unrecorded.name: ("damaged", "unreadable"),
    } == outcomes
    assert 2 == heard.codes.count("suspect")
    assert all("Input/output error" in one.detail for one in report.damaged)


@pytest.mark.component("strace")
@pytest.mark.parametrize("call", ["preadv2:error=EINVAL:when=1", "preadv2:retval=1000:when=1", "preadv2:retval=0:when=1"])
def test_what_a_file_system_does_not_give_past_the_page_cache_is_read_through_it(tmp_path: Path, call: str) -> None:
    """Some take the flag and refuse the reading, and some give less than whole sectors in the middle of a file."""
    path = tmp_path / "image"
    path.write_bytes(CONTENT[: 3 * MIB])  # what is told of an end of 17 bytes could be true of it
    with path.open("rb") as file:
        expected = stored_digest(file.fileno())
    # Each thread's first reading is tampered with; its second one is that of the same piece.
    assert f"None {expected}" == _read_under_strace(path, call)


@pytest.mark.component("strace")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("preadv2:error=EIO", "Input/output error"),
        ("preadv2:error=ENODATA", "No data available"),
        ("preadv2:error=EILSEQ", "Invalid or incomplete"),
        ("preadv2:error=EUCLEAN", "Structure needs cleaning"),
        ("preadv2:error=EBADMSG", "Bad message"),
    ],
)
def test_the_mediums_own_failures_are_the_reading(tmp_path: Path, call: str, told: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    assert _read_under_strace(path, call).startswith(told)


@pytest.mark.component("strace")
@pytest.mark.parametrize("name", ["ESTALE", "ETIMEDOUT", "ENOMEM", "ENOTCONN"])
def test_any_other_failure_says_nothing_of_the_medium(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    assert f"OSError {name}" == _read_under_strace(path, f"preadv2:error={name}")


def _read_under_strace(path: Path, call: str) -> str:
    """Read a file in a process whose calls fail as it is said."""
    program = (
        "import errno, sys; from pathlib import Path\n"
        "from underlay.scrub.pace import Pace; from underlay.scrub.reading import ImageReader, opened\n"
        "with opened(Path(sys.argv[1])) as image:\n"
        "    assert image.direct\n"
        "    try:\n"
        "        reading = ImageReader(image, Pace()).finish(lambda: True)\n"
        "        print(reading.failure, reading.stored)\n"
        "    except OSError as error:\n"
        "        print('OSError', errno.errorcode[error.errno])\n"
    )
    trace: list[str | Path] = ["strace", "-f", "-o", os.devnull, "-P", path, "-e", f"inject={call}"]
    ended = subprocess.run(
        [*trace, sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=60
    )
    return str(ended.stdout).strip()


def _cut_off(device: Path, *images: Path) -> None:
    """End a device before the last of the images' bytes."""
    ends = []
    content = device.read_bytes()
    for image in images:
        needle = image.read_bytes()[-8192:-4096]
        ends.append(content.rindex(needle) // 4096 * 4096)
    assert min(ends) > 2 * MIB
    os.truncate(device, min(ends))


# --------------------------------------------------------------------------------------------------------------------- judging


def test_a_sound_image_is_noted_as_read(store: Store, image: BaseImage) -> None:
    before = datetime.now(UTC)
    report = run(store)

    assert "sound" == one(report).outcome
    assert len(CONTENT) <= report.read <= len(CONTENT) + BLOCK
    [subject] = everything(store)
    assert subject.read_at is not None
    assert before <= subject.read_at <= datetime.now(UTC)
    assert 0 == report.exit_code
    assert (0o100644, 0o040755) == (store.paths.scrub(image.name).stat().st_mode, store.paths.scrubs.stat().st_mode)


def test_a_scrub_changes_nothing_of_a_sound_image(store: Store, image: BaseImage) -> None:
    before = image.path.stat()
    run(store)
    after = image.path.stat()
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    assert image == images.find(store, image.name)  # its last use as well


@pytest.mark.parametrize("kind", list(CacheKind))
def test_a_bit_that_changed_puts_the_image_into_quarantine(tmp_path: Path, kind: CacheKind) -> None:
    store, heard = laid_out(tmp_path / "cache", kind=kind), Heard()
    image = published(store, CONTENT)
    flip(image.path)

    report = run(store, heard=heard)

    scrubbed = one(report)
    assert ("damaged", "content-differs") == (scrubbed.outcome, scrubbed.damage and scrubbed.damage.code)
    assert (Reason("backing-file", f"a disk on {image.name}"),) == scrubbed.users
    assert scrubbed.repair is not None
    assert "not-asked" == scrubbed.repair.code
    assert ["suspect", "quarantined", "damaged"] == heard.codes
    assert image.path.exists()
    with pytest.raises(ImageDamaged):
        images.find(store, image.name)
    assert 35 == report.exit_code


def test_a_truncated_image_is_damaged_without_a_reading(store: Store, image: BaseImage) -> None:
    os.truncate(image.path, 10)
    report = run(store)
    assert ("size-differs", 0) == ((one(report).damage or Reason("", "")).code, report.read)
    with pytest.raises(ImageDamaged):
        images.find(store, image.name)


def test_an_unrecorded_image_can_only_be_read(store: Store) -> None:
    path = store.root / ("5" * 40)
    path.write_bytes(CONTENT)
    assert ("readable", 0) == (one(run(store)).outcome, run(store).exit_code)


def test_one_wrong_reading_condemns_nothing(store: Store, image: BaseImage) -> None:
    """The content is restored before it is read once more, as if memory or a cable had been wrong."""
    flip(image.path)
    heard = Heard(when={"suspect": lambda: flip(image.path)})

    report = run(store, heard=heard)

    assert ("sound", 0) == (one(report).outcome, report.exit_code)
    assert "a first reading was wrong" in one(report).detail
    assert images.find(store, image.name) is not None


def test_readings_that_contradict_each_other_condemn_nothing_and_are_told(store: Store, image: BaseImage) -> None:
    flip(image.path)
    heard = Heard(when={"suspect": lambda: flip(image.path, 5)})

    report = run(store, heard=heard)

    assert ("unsteady", 48) == (one(report).outcome, report.exit_code)
    assert images.find(store, image.name) is not None


def test_a_damaged_image_that_is_sound_again_is_served_again(store: Store, image: BaseImage) -> None:
    flip(image.path)
    run(store)
    flip(image.path)  # an operator has restored it from a copy, byte by byte

    report = run(store)

    assert "sound" == one(report).outcome
    assert "is served again" in one(report).detail
    assert images.find(store, image.name) is not None
    assert frozenset() == quarantine.names(store)


def test_a_damaged_image_is_found_damaged_again(store: Store, image: BaseImage) -> None:
    flip(image.path)
    assert run(store).exit_code == run(store).exit_code == 35


def test_an_image_that_is_evicted_while_it_is_read_is_not_judged(store: Store, image: BaseImage) -> None:
    flip(image.path)
    report = run(store, heard=Heard(when={"suspect": image.path.unlink}))
    assert ("changed", 0) == (one(report).outcome, report.exit_code)
    assert frozenset() == quarantine.names(store)


def test_an_image_that_is_replaced_while_it_is_read_is_not_judged_and_does_not_count_as_read(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", kind=CacheKind.MASTERS)
    image = published(store, CONTENT)
    flip(image.path)
    newer = CONTENT[::-1]
    heard = Heard(when={"suspect": lambda: published(store, newer, version="2")})

    report = run(store, heard=heard)

    assert "changed" == one(report).outcome
    found = images.find(store, image.name)
    assert found is not None
    assert newer == found.path.read_bytes()
    [subject] = everything(store)
    assert (None, 0) == (subject.read_at, subject.reached)


def test_a_sound_image_that_is_replaced_while_it_is_read_does_not_count_as_read(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", kind=CacheKind.MASTERS)
    image = published(store, CONTENT)
    done: list[BaseImage] = []

    def replaced() -> None:
        if not done:
            done.append(published(store, CONTENT[::-1], version="2"))

    heard = Heard(when={"progress": replaced})

    assert "sound" == one(run(store, heard=heard)).outcome

    assert done
    [subject] = everything(store)
    assert (image.name, None) == (subject.name, subject.read_at)


def test_an_image_that_is_gone_before_its_turn_is_told_so(store: Store, image: BaseImage) -> None:
    other = published(store, CONTENT[::-1], ref=parse_ref("https://images.example/other.raw"))
    first = min(image, other, key=lambda one: one.name)
    last = max(image, other, key=lambda one: one.name)
    heard = Heard(when={"sound": lambda: last.path.unlink(missing_ok=True)})
    report = run(store, heard=heard)
    assert [(first.name, "sound"), (last.name, "changed")] == [(one.subject.name, one.outcome) for one in report.images]


def test_an_observer_that_fails_condemns_nothing(store: Store, image: BaseImage) -> None:
    """As one does whose output is on a full disk, whenever it is told something."""

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    subject = everything(store)[0]
    meter = Meter(Heard(when={"progress": fail}), "1 image", subject.size)

    scrubbed = verify(store, subject, Pace(), meter, Heard())

    assert "failed" == scrubbed.outcome
    assert frozenset() == quarantine.names(store)
    assert images.find(store, image.name) is not None


def test_who_makes_a_disk_does_not_wait_for_a_reading(store: Store, image: BaseImage) -> None:
    free: list[bool] = []

    def try_it() -> None:
        with locking.try_exclusive(store, image.name) as taken:
            free.append(taken is not None)

    flip(image.path)
    run(store, heard=Heard(when={"progress": try_it, "suspect": try_it}))
    assert len(free) >= 2
    assert all(free)


def test_an_image_that_is_held_is_condemned_once_it_is_let_go(store: Store, image: BaseImage) -> None:
    flip(image.path)
    holds, lets_go = threading.Event(), threading.Event()

    def hold() -> None:
        with images.held(store, image.name):
            holds.set()
            lets_go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait(10)
    heard = Heard(when={"suspect": lambda: threading.Timer(0.1, lets_go.set).start()})
    report = run(store, heard=heard)
    holder.join()
    assert "damaged" == one(report).outcome


def test_an_image_that_is_held_for_long_is_told_to_be_damaged_all_the_same(store: Store, image: BaseImage) -> None:
    flip(image.path)
    with images.held(store, image.name):
        report = run(store, repair=True)
    scrubbed = one(report)
    assert ("damaged", ImageDamaged.exit_code) == (scrubbed.outcome, report.exit_code)
    assert isinstance(scrubbed.error, LockTimeout)
    assert "not-noted" == (scrubbed.repair or Reason("", "")).code
    assert "still served" in scrubbed.detail
    [subject] = everything(store)
    assert subject.read_at is None  # so the next scrub comes to it first
    assert "damaged" == one(run(store)).outcome
    assert [image.name] == list(quarantine.names(store))


@pytest.mark.component("ext4")
def test_damage_that_cannot_be_noted_is_told(mounted: Callable[..., Path]) -> None:
    """The file system becomes read-only in the middle, as one does whose medium fails."""
    root = mounted("ext4", 64 * MIB)
    store = laid_out(root / "cache")
    flip(published(store, CONTENT).path)

    [subject] = everything(store)
    heard = Heard(when={"suspect": lambda: subprocess.run(["mount", "-o", "remount,ro", root], check=True)})
    meter = Meter(heard, "1 image", subject.size)
    scrubbed = verify(store, subject, Pace(), meter, heard)

    assert ("damaged", "content-differs") == (scrubbed.outcome, scrubbed.damage and scrubbed.damage.code)
    assert isinstance(scrubbed.error, CacheNotWritable)


@pytest.mark.component("ext4")
def test_damage_is_noted_in_a_cache_that_is_full_to_the_last_block(mounted: Callable[..., Path]) -> None:
    root = mounted("ext4", 64 * MIB)
    store = laid_out(root / "cache")
    image = published(store, CONTENT)
    run(store)
    flip(image.path)
    heard = Heard(when={"suspect": lambda: _fill(root)})

    report = run(store, heard=heard)

    assert ("damaged", None) == (one(report).outcome, one(report).error)
    assert not store.paths.ballast.exists()
    with pytest.raises(ImageDamaged):
        images.find(store, image.name)


def _fill(root: Path) -> None:
    """Take every block that is left."""
    with (root / "filler").open("wb") as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)


# ---------------------------------------------------------------------------------------------- pace, stopping, going on


def stop_after(pieces: int) -> tuple[Heard, Pace]:
    """A scrub whose time is up once so much was told."""
    pace = Pace()
    heard = Heard()
    heard.when["progress"] = lambda: setattr(pace, "until", -math.inf) if len(heard.steps) >= pieces else None
    return heard, pace


def test_a_scrub_that_stops_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    content = random.Random("long").randbytes(16 * MIB + 5)
    image = published(store, content)
    heard, pace = stop_after(1)

    first = run(store, heard=heard, pace=pace)

    assert ("stopped", 0) == (one(first).outcome, first.exit_code)
    [subject] = everything(store)
    assert (MIB, None) == (subject.reached, subject.read_at)
    second = run(store)
    assert ("sound", image.name) == (one(second).outcome, one(second).subject.name)
    assert second.read <= len(content) - MIB + BLOCK
    [subject] = everything(store)
    assert (0, True) == (subject.reached, subject.read_at is not None)


def test_damage_before_the_place_where_it_stopped_and_behind_it_is_found(tmp_path: Path) -> None:
    for offset in (100, 12 * MIB):
        store = laid_out(tmp_path / f"cache-{offset}")
        image = published(store, random.Random("long").randbytes(16 * MIB))
        flip(image.path, offset)
        heard, pace = stop_after(1)
        run(store, heard=heard, pace=pace)
        assert "damaged" == one(run(store)).outcome


def test_an_image_that_was_replaced_since_it_stopped_is_read_from_its_beginning(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", kind=CacheKind.MASTERS)
    published(store, random.Random(1).randbytes(8 * MIB))
    heard, pace = stop_after(1)
    run(store, heard=heard, pace=pace)
    published(store, random.Random(2).randbytes(8 * MIB), version="2")

    [subject] = everything(store)
    assert 0 == subject.reached
    report = run(store)
    assert ("sound", 8 * MIB) == (one(report).outcome, report.read)


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"x":' * 100_000])
def test_a_record_that_cannot_be_read_says_nothing(store: Store, image: BaseImage, junk: bytes) -> None:
    run(store)
    store.paths.scrub(image.name).write_bytes(junk)
    [subject] = everything(store)
    assert (None, 0) == (subject.read_at, subject.reached)
    assert "sound" == one(run(store)).outcome


@pytest.mark.parametrize(
    ("told", "lie"),
    [
        (b'"offset":1048576', b'"offset":2097152'),
        (b'"offset":1048576', b'"offset":-65536'),
        (b'"offset":1048576', b'"offset":99999999999'),
        (b'"run":[0,', b'"run":[7,'),
        (b'"length":1048576', b'"length":1048577'),
        (b'"words":"', b'"words":"no'),
    ],
)
def test_a_record_that_lies_about_where_it_stopped_condemns_nothing(tmp_path: Path, told: bytes, lie: bytes) -> None:
    store = laid_out(tmp_path / "cache")
    image = published(store, random.Random("long").randbytes(8 * MIB))
    heard, pace = stop_after(1)
    run(store, heard=heard, pace=pace)
    record = store.paths.scrub(image.name)
    assert told in record.read_bytes()
    record.write_bytes(record.read_bytes().replace(told, lie))

    assert "sound" == one(run(store)).outcome


def test_an_interrupt_leaves_the_place_where_it_was(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    published(store, random.Random("long").randbytes(16 * MIB))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, heard=Heard(when={"progress": interrupt}))

    [subject] = everything(store)
    assert MIB == subject.reached
    assert not locks.is_held(store.paths.scrub_lock)
    assert "sound" == one(run(store)).outcome


def test_what_there_is_no_time_for_is_left_and_told(store: Store, image: BaseImage) -> None:
    report = run(store, pace=Pace(until=-math.inf))
    assert ([], [image.name]) == (list(report.images), [verdict.subject.name for verdict in report.left])


def test_the_oldest_is_read_first(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    refs = [parse_ref(f"https://images.example/{number}.raw") for number in range(3)]
    made = [published(store, bytes([number + 1]) * 1000, ref=ref) for number, ref in enumerate(refs)]
    for image in (made[1], made[2], made[0]):
        run(store, only=[image.name])
        time.sleep(0.002)
    assert [made[1].name, made[2].name, made[0].name] == [one.subject.name for one in run(store).images]


def test_a_rate_is_kept(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    published(store, random.Random("long").randbytes(8 * MIB))
    begun = time.monotonic()
    run(store, pace=Pace(rate=16 * MIB))
    assert time.monotonic() - begun >= (8 - 2) / 16  # nothing is waited for behind the last piece


def test_a_rate_does_not_make_a_scrub_outlast_its_time(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    published(store, random.Random("long").randbytes(8 * MIB))
    begun = time.monotonic()
    report = run(store, pace=Pace(rate=1024, until=time.monotonic() + 1.0))
    assert time.monotonic() - begun < 30
    assert "stopped" == one(report).outcome


def test_one_scrub_at_a_time_reads_a_cache(store: Store, image: BaseImage, tmp_path: Path) -> None:
    other = laid_out(tmp_path / "other")
    elsewhere = published(other, CONTENT)
    with locks.exclusive(store.paths.scrub_lock, timeout=1):
        report = run(store, other)
    assert [elsewhere.name] == [one.subject.name for one in report.images]
    assert ([image.path], LockTimeout.exit_code) == ([one.subject.path for one in report.left], report.exit_code)
    assert [("lock-timeout", store.root)] == [(problem.code, problem.path) for problem in report.problems]


def test_the_records_of_images_that_are_gone_go_too(store: Store, image: BaseImage) -> None:
    run(store)
    image.path.unlink()
    published(store, CONTENT, ref=parse_ref("https://images.example/other.raw"))
    run(store)
    assert [f"{one.name}.json" for one in everything(store)] == os.listdir(store.paths.scrubs)


def test_progress_comes_to_its_end_over_all_images(tmp_path: Path) -> None:
    store, heard = laid_out(tmp_path / "cache"), Heard()
    for number in range(3):
        published(store, CONTENT, ref=parse_ref(f"https://images.example/{number}.raw"))
    run(store, heard=heard)
    assert {("3 images", "scrub")} == {(step.ref, step.stage) for step in heard.steps}
    done = [step.done for step in heard.steps]
    assert sorted(done) == done
    assert heard.steps[-1].total == done[-1] > 0


def test_strangers_links_and_directories_are_not_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(CONTENT)
    (store.root / ("1" * 40)).symlink_to(tmp_path / "outside")
    (store.root / ("2" * 40)).mkdir()
    os.mkfifo(store.root / ("3" * 40))
    (store.root / "README").write_text("an operator's notes")
    assert [] == list(run(store).images)


def test_the_digest_is_the_documented_one(store: Store, image: BaseImage) -> None:
    """The sha256 over the digest of the data and the digest of where it is (docs/design/layout.md)."""
    content = hashlib.sha256(CONTENT).digest()
    places = hashlib.sha256((0).to_bytes(8, "little") + len(CONTENT).to_bytes(8, "little")).digest()
    assert f"sha256:{hashlib.sha256(content + places).hexdigest()}" == read_all(image.path)
