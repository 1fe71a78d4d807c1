"""From a described version to a published image: each step, what it costs in space, and what a failure leaves."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from children import start, tell, told
from underlay.cache import Cache
from underlay.contracts import BackendTraits
from underlay.disks.flat import FlatBackend
from underlay.errors import (
    BodyTooLong,
    BodyTruncated,
    DigestMismatch,
    FormatMismatch,
    ImageConflict,
    ImageRefused,
    InsufficientSpace,
    SourceChanged,
    SourceUnavailable,
    ToolFailed,
    UnderlayError,
    UnsafeImage,
    VirtualSizeRefused,
)
from underlay.filesystems import free_bytes
from underlay.model import BaseImage, Digest, Event, ImageRecord, Progress
from underlay.naming import CacheKind, ref_key
from underlay.pipeline import BUFFER_BYTES, BUFFERS
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.sources.file import FileSource
from underlay.store import Store, images, staging as stagings
from underlay.store.staging import Staging
from underlay.stream import stored_digest
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace

KIB, MIB = 1 << 10, 1 << 20
STREAM_OPTIMIZED = ("-o", "subformat=streamOptimized")
REF = "fake:image"

Mounted = Callable[..., Path]


def laid_out(root: Path, *, kind: CacheKind = CacheKind.BASE, force_raw: bool = True) -> Store:
    root.mkdir(exist_ok=True)
    store = Store(root=root, kind=kind, force_raw=force_raw)
    store.prepare()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "base")


def fetch(
    store: Store,
    source: FakeSource,
    *,
    ref: str = REF,
    observer: Recorder | None = None,
    checksum: Digest | None = None,
    traits: BackendTraits | None = None,
) -> BaseImage:
    cache = Cache(name="base", store=store)
    return cache.ensure(parse_ref(ref), source, observer or Recorder(), want=Want(checksum=checksum, traits=traits)).image


def serving(content: bytes | Path, **fields: object) -> FakeSource:
    return FakeSource({REF: FakeImage(content, **fields)})  # type: ignore[arg-type]


def record_of(image: BaseImage) -> ImageRecord:
    assert image.record is not None
    return image.record


def image_files(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if path.name != ".underlay")


def in_staging(store: Store) -> list[str]:
    return sorted(os.fspath(path.relative_to(store.paths.tmp)) for path in store.paths.tmp.rglob("*") if path.is_file())


def assert_nothing_left(store: Store) -> None:
    assert [] == image_files(store)
    assert [] == list(store.paths.tmp.iterdir())


def staging_of(store: Store, ref: str = REF) -> Staging:
    return Staging(store.paths.ingest(ref_key(parse_ref(ref).canonical)))


def digest(algorithm: str, content: bytes) -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, timeout=60)


def converted(directory: Path, content: bytes, *options: str, output: str = "qcow2") -> Path:
    """The content as a guest's disk in another format."""
    raw, image = directory / f"{output}.raw", directory / f"image.{output}"
    raw.write_bytes(content)
    qemu_img("convert", "-f", "raw", "-O", output, *options, raw, image)
    return image


def compressible(size: int) -> bytes:
    """Bytes without a block of zeros that shrink to next to nothing, also for QEMU, whose window is of 4 KiB."""
    return os.urandom(KIB) * (size // KIB)


# ----------------------------------------------------------------------------------------------------------- what is published


@pytest.mark.parametrize("size", [1, 511, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 12345])
@pytest.mark.parametrize("announced", [True, False])
def test_the_published_bytes_of_a_raw_image_are_the_served_ones(store: Store, size: int, *, announced: bool) -> None:
    content = os.urandom(size)
    image = fetch(store, serving(content, announces_size=announced, piece=100_000))
    assert content == image.path.read_bytes()
    assert (size, size, "raw") == (image.size, image.virtual_size, image.format)
    assert [image.name] == image_files(store)
    assert [] == list(store.paths.tmp.iterdir())


def test_zeros_are_kept_as_holes_wherever_they_are(store: Store, tmp_path: Path) -> None:
    served = tmp_path / "served"
    with served.open("wb") as file:
        for offset in (0, 17 * MIB + 5, 30 * MIB, 60 * MIB - 3):
            file.seek(offset)
            file.write(b"data")
        file.truncate(64 * MIB)
    image = fetch(store, serving(served))
    subprocess.run(["cmp", served, image.path], check=True)
    assert image.path.stat().st_size == 64 * MIB
    assert image.path.stat().st_blocks * 512 <= 6 * 64 * KIB
    assert image.allocated == image.path.stat().st_blocks * 512


def test_an_image_of_nothing_but_zeros_occupies_nothing(store: Store, tmp_path: Path) -> None:
    served = tmp_path / "served"
    with served.open("wb") as file:
        file.truncate(64 * MIB)
    image = fetch(store, serving(served))
    assert 64 * MIB == image.size
    assert image.allocated <= 4 * KIB  # its record


def test_the_record_says_what_the_image_is(store: Store) -> None:
    content = os.urandom(200_000)
    promised = digest("sha512", content)
    image = fetch(store, serving(content, digests=(promised,)), checksum=digest("md5", content))
    record = record_of(image)
    sha256 = digest("sha256", content)
    assert {str(promised), str(sha256), str(digest("md5", content))} == set(record.digests)
    assert (REF, f"{REF}#{sha256}", "raw", True) == (record.ref, record.version_id, record.format, record.as_served)
    assert (200_000, 200_000) == (record.size, record.virtual_size)
    with image.path.open("rb") as file:
        assert stored_digest(file.fileno()) == record.stored


def test_sha256_is_computed_whether_anybody_asks_or_not(store: Store) -> None:
    image = fetch(store, serving(b"content"))
    assert (str(digest("sha256", b"content")),) == record_of(image).digests


QCOW2_FORMS = {
    "plain": (),
    "compressed": ("-c",),
    "zstd": ("-c", "-o", "compression_type=zstd"),
    "old": ("-o", "compat=0.10"),
    "small clusters": ("-o", "cluster_size=512"),
    "large clusters": ("-o", "cluster_size=2M"),
    "extended L2": ("-o", "extended_l2=on,cluster_size=128k"),
    "preallocated": ("-o", "preallocation=metadata"),
}


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("form", QCOW2_FORMS)
def test_a_qcow2_image_becomes_the_raw_disk_that_a_guest_sees(store: Store, tmp_path: Path, form: str) -> None:
    content = bytes(MIB) + os.urandom(MIB) + bytes(5 * MIB) + compressible(MIB) + bytes(512)
    served = converted(tmp_path, content, *QCOW2_FORMS[form])
    image = fetch(store, serving(served))
    assert ("raw", len(content), len(content)) == (image.format, image.size, image.virtual_size)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", served, image.path)
    assert content == image.path.read_bytes()
    assert image.allocated <= 3 * MIB
    record = record_of(image)
    assert not record.as_served
    assert (str(digest("sha256", served.read_bytes())),) == record.digests
    with image.path.open("rb") as file:
        assert stored_digest(file.fileno()) == record.stored
    assert 0o644 == image.path.stat().st_mode & 0o777
    assert [] == list(store.paths.tmp.iterdir())


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize(
    ("output", "options"),
    [("vmdk", STREAM_OPTIMIZED), ("vmdk", ()), ("vdi", ()), ("vpc", ()), ("vhdx", ())],
)
def test_an_image_of_another_format_becomes_raw(store: Store, tmp_path: Path, output: str, options: tuple[str, ...]) -> None:
    content = os.urandom(MIB) + bytes(7 * MIB)
    served = converted(tmp_path, content, *options, output=output)
    image = fetch(store, serving(served))
    assert "raw" == image.format
    qemu_img("compare", "-f", output, "-F", "raw", served, image.path)


@pytest.mark.component("qemu-img")
def test_a_cache_that_keeps_images_as_served_keeps_every_byte(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "base", force_raw=False)
    served = converted(tmp_path, os.urandom(MIB) + bytes(7 * MIB))
    image = fetch(store, serving(served))
    assert served.read_bytes() == image.path.read_bytes()
    assert ("qcow2", 8 * MIB, ".qcow2") == (image.format, image.virtual_size, image.path.suffix)
    assert record_of(image).as_served


@pytest.mark.component("qemu-img")
def test_a_backend_that_needs_raw_gets_raw_beside_the_form_that_is_kept(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "base", force_raw=False)
    source = serving(converted(tmp_path, os.urandom(MIB)))
    needs_raw, any_form = (replace(FlatBackend.traits, needs_raw=needs) for needs in (True, False))
    formats = [fetch(store, source, traits=traits).format for traits in (None, any_form, needs_raw, any_form, None)]
    assert ["qcow2", "qcow2", "raw", "qcow2", "qcow2"] == formats
    assert 2 == len(image_files(store))
    assert 1 == source.opened(REF)


# --------------------------------------------------------------------------------------------------------------- the way there


def test_the_steps_of_a_raw_image_are_told_in_order(store: Store) -> None:
    observer = Recorder()
    fetch(store, serving(os.urandom(3 * MIB)), observer=observer)
    assert list(observer.codes) == [
        "staged", "reserved", "fetching", "received", "verified", "already-raw",
        "remembered", "published", "cleared", "fetched",
    ]  # fmt: skip
    assert all(event.fields["ref"] == REF for event in observer.events)


@pytest.mark.component("qemu-img")
def test_the_steps_of_a_converted_image_are_told_in_order(store: Store, tmp_path: Path) -> None:
    observer = Recorder()
    fetch(store, serving(converted(tmp_path, os.urandom(3 * MIB))), observer=observer)
    assert [code for code in observer.codes if code != "reserved"] == [
        "staged", "fetching", "received", "verified", "force-raw", "converted",
        "remembered", "published", "cleared", "fetched",
    ]  # fmt: skip


@pytest.mark.component("qemu-img")
def test_the_steps_of_an_image_that_qemu_img_converts_are_told_in_order(store: Store, tmp_path: Path) -> None:
    observer = Recorder()
    fetch(store, serving(converted(tmp_path, os.urandom(3 * MIB), output="vdi")), observer=observer)
    assert [code for code in observer.codes if code != "reserved"] == [
        "staged", "fetching", "received", "verified", "force-raw", "download-durable", "converted",
        "remembered", "published", "cleared", "fetched",
    ]  # fmt: skip


def test_progress_grows_to_the_whole_size(store: Store) -> None:
    observer = Recorder()
    fetch(store, serving(os.urandom(5 * MIB), delay=0.05, piece=MIB), observer=observer)
    done = [step.done for step in observer.steps if step.stage == "fetch"]
    assert done == sorted(set(done))
    assert len(done) >= 2
    assert 5 * MIB == done[-1]
    assert {5 * MIB} == {step.total for step in observer.steps}


class AtEvent(Recorder):
    """Does something at the first event of a code, on the thread that works."""

    def __init__(self, code: str, action: Callable[[], None]) -> None:
        super().__init__()
        self._code, self._action = code, action

    def event(self, event: Event) -> None:
        if event.code == self._code and self._code not in self.codes:
            super().event(event)
            self._action()
        else:
            super().event(event)


class AtProgress(Recorder):
    """Does something at the first progress of a stage, on the thread that works."""

    def __init__(self, stage: str, action: Callable[[], None]) -> None:
        super().__init__()
        self._stage, self._action = stage, action

    def progress(self, progress: Progress) -> None:
        first = all(step.stage != self._stage for step in self.steps)
        super().progress(progress)
        if first and progress.stage == self._stage:
            self._action()


def test_room_is_reserved_before_the_source_is_asked_for_a_byte(store: Store) -> None:
    source, claimed = serving(os.urandom(3 * MIB)), []

    def look() -> None:
        assert 0 == source.opened(REF)
        assert not staging_of(store).download.exists()
        claimed.append(stagings.outstanding(staging_of(store)))

    fetch(store, source, observer=AtEvent("reserved", look))
    assert 3 * MIB <= claimed[0] <= 4 * MIB


@pytest.mark.component("qemu-img")
def test_the_raw_form_is_reserved_beside_the_download_before_the_first_byte_is_written(store: Store, tmp_path: Path) -> None:
    served = converted(tmp_path, os.urandom(3 * MIB))
    claims: list[tuple[int, int]] = []

    class Looking(Recorder):
        def event(self, event: Event) -> None:
            if event.code == "reserved":
                claims.append((stagings.allocated(staging_of(store)), stagings.outstanding(staging_of(store))))

    fetch(store, serving(served), observer=Looking())
    written, claim = claims[1]
    assert 0 == written
    assert served.stat().st_size + 3 * MIB <= claim <= served.stat().st_size + 4 * MIB


@pytest.mark.component("qemu-img")
def test_an_unsafe_image_is_refused_before_the_rest_of_it_is_fetched(store: Store, tmp_path: Path) -> None:
    (tmp_path / "backing").write_bytes(bytes(MIB))
    qemu_img("create", "-f", "qcow2", "-b", tmp_path / "backing", "-F", "raw", tmp_path / "evil", str(64 * MIB))
    content = (tmp_path / "evil").read_bytes() + os.urandom(20 * MIB)
    source = serving(content)
    with pytest.raises(UnsafeImage, match=f"{REF} is refused by rule backing-file"):
        fetch(store, source)
    assert source.read(REF) <= 2 * BUFFER_BYTES
    assert_nothing_left(store)


# ------------------------------------------------------------------------------------------------------------------- refusals


def test_a_wrong_checksum_prints_both_digests_and_leaves_nothing(store: Store) -> None:
    wrong, right = digest("sha512", b"other"), digest("sha512", b"content")
    with pytest.raises(DigestMismatch) as caught:
        fetch(store, serving(b"content"), checksum=wrong)
    assert (str(wrong), str(right)) == (caught.value.expected, caught.value.actual)
    assert str(wrong) in caught.value.message
    assert str(right) in caught.value.message
    assert_nothing_left(store)


def test_each_digest_that_the_source_promises_must_hold(store: Store) -> None:
    promised = (digest("sha256", b"content"), digest("md5", b"other"))
    with pytest.raises(DigestMismatch, match="md5:"):
        fetch(store, serving(b"content", digests=promised))
    assert_nothing_left(store)


def test_a_digest_is_judged_by_its_algorithm_and_not_its_order(store: Store) -> None:
    promised = tuple(digest(algorithm, b"content") for algorithm in ("md5", "sha256", "sha1"))
    assert set(map(str, promised)) == set(record_of(fetch(store, serving(b"content", digests=promised))).digests)


@pytest.mark.parametrize(("announced", "error"), [(6, BodyTooLong), (8, BodyTruncated), (0, BodyTooLong)])
def test_a_body_of_another_length_than_announced_is_refused(store: Store, announced: int, error: type[UnderlayError]) -> None:
    with pytest.raises(error, match=REF):
        fetch(store, serving(b"content", size=announced))
    assert_nothing_left(store)


def test_a_body_that_never_ends_is_cut_off_at_the_announced_length(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(1 << 40)
    source = serving(tmp_path / "endless", size=5 * MIB)
    with pytest.raises(BodyTooLong):
        fetch(store, source)
    assert source.read(REF) <= 5 * MIB + BUFFER_BYTES
    assert_nothing_left(store)


def test_an_image_without_bytes_is_refused(store: Store) -> None:
    for announces_size in (True, False):
        with pytest.raises(UnsafeImage, match="empty"):
            fetch(store, serving(b"", announces_size=announces_size))
        assert_nothing_left(store)


@pytest.mark.component("qemu-img")
def test_a_label_that_the_content_contradicts_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FormatMismatch, match="expected to be raw, but its content is qcow2"):
        fetch(store, serving(converted(tmp_path, bytes(MIB)), disk_format="raw"))
    assert_nothing_left(store)
    with pytest.raises(FormatMismatch, match="expected to be qcow2, but its content is raw"):
        fetch(store, serving(os.urandom(MIB), disk_format="qcow2"))
    assert_nothing_left(store)


@pytest.mark.component("qemu-img")
def test_a_virtual_size_over_the_limit_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", tmp_path / "huge", str(11 << 40))
    store = laid_out(tmp_path / "base")
    with pytest.raises(VirtualSizeRefused, match=str(11 << 40)):
        fetch(store, serving(tmp_path / "huge"))
    assert_nothing_left(store)
    generous = replace(store, virtual_size_limit=12 << 40, force_raw=False)
    assert 11 << 40 == fetch(generous, serving(tmp_path / "huge")).virtual_size


@pytest.mark.component("qemu-img")
def test_a_qcow2_image_that_was_cut_short_at_its_source_is_refused(store: Store, tmp_path: Path) -> None:
    whole = converted(tmp_path, os.urandom(3 * MIB)).read_bytes()
    with pytest.raises(UnsafeImage, match="cut-short"):
        fetch(store, serving(whole[: 2 * MIB]))
    assert_nothing_left(store)


@pytest.mark.parametrize("after", [0, 100, 2 * MIB])
def test_a_source_that_breaks_off_and_cannot_be_gone_on_from_leaves_nothing(store: Store, after: int) -> None:
    broken = SourceUnavailable("the line is dead")
    with pytest.raises(SourceUnavailable, match="the line is dead"):
        fetch(store, serving(os.urandom(3 * MIB), read_error=broken, read_error_after=after, validator=None))
    assert_nothing_left(store)


def test_a_file_that_is_written_while_it_is_ingested_leaves_nothing(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(os.urandom(3 * MIB))
    cache, source = Cache(name="base", store=store), FileSource(allowed_paths=(tmp_path,))

    def rewrite() -> None:
        with file.open("r+b") as written:
            written.write(b"new")

    with pytest.raises(SourceChanged, match="changed while it was fetched"):
        cache.ensure(parse_ref(f"file://{file}"), source, AtProgress("fetch", rewrite))
    assert_nothing_left(store)
    answer = cache.ensure(parse_ref(f"file://{file}"), source, Recorder())
    assert file.read_bytes() == answer.image.path.read_bytes()


@pytest.mark.parametrize("code", ["staged", "reserved", "fetching", "received", "verified"])
def test_an_interruption_of_what_cannot_be_gone_on_from_leaves_nothing(store: Store, code: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(store, serving(os.urandom(3 * MIB), validator=None), observer=AtEvent(code, interrupt))
    assert [] == image_files(store)
    assert [] == in_staging(store)
    assert fetch(store, serving(b"content")).size == 7


# ------------------------------------------------------------------------------------------------------------------ exemptions


NO_IMAGE = b"QFI\xfb" + bytes(60)  # a qcow2 header that every rule refuses


@pytest.mark.parametrize("label", ["aki", "ari", "ami"])
def test_a_kernel_or_ramdisk_carries_no_format_rule(store: Store, label: str) -> None:
    image = fetch(store, serving(NO_IMAGE, disk_format=label))
    assert NO_IMAGE == image.path.read_bytes()
    assert ("raw", len(NO_IMAGE)) == (image.format, image.virtual_size)


@pytest.mark.component("qemu-img")
def test_a_kernel_that_looks_like_a_disk_is_never_converted(store: Store, tmp_path: Path) -> None:
    served = converted(tmp_path, os.urandom(MIB))
    image = fetch(store, serving(served, disk_format="aki"))
    assert served.read_bytes() == image.path.read_bytes()
    assert "raw" == image.format


def test_what_carries_no_format_rule_is_verified_all_the_same(store: Store, tmp_path: Path) -> None:
    unvalidated = replace(laid_out(tmp_path / "iso"), validation=False)
    for where, label in ((store, "ari"), (unvalidated, None), (unvalidated, "qcow2")):
        with pytest.raises(DigestMismatch):
            fetch(where, serving(NO_IMAGE, disk_format=label), checksum=digest("sha256", b"other"))
        with pytest.raises(BodyTruncated):
            fetch(where, serving(NO_IMAGE, disk_format=label, size=1000))
        assert_nothing_left(where)


def test_a_cache_without_validation_keeps_anything_as_served(store: Store) -> None:
    unvalidated = replace(store, validation=False)
    assert NO_IMAGE == fetch(unvalidated, serving(NO_IMAGE)).path.read_bytes()
    assert b"" == fetch(unvalidated, FakeSource({"fake:empty": FakeImage(b"")}), ref="fake:empty").path.read_bytes()


def test_without_an_exemption_the_same_bytes_are_refused(store: Store) -> None:
    with pytest.raises(ImageRefused):
        fetch(store, serving(NO_IMAGE))
    assert_nothing_left(store)


# ----------------------------------------------------------------------------------------------------------------------- space


@pytest.mark.component("root", "tmpfs")
@pytest.mark.parametrize("announced", [True, False])
def test_an_image_without_room_is_refused_with_all_numbers(mounted: Mounted, *, announced: bool) -> None:
    store = laid_out(mounted("tmpfs", 8 * MIB))
    free = free_bytes(store.root)
    source = serving(os.urandom(12 * MIB), announces_size=announced)
    with pytest.raises(InsufficientSpace) as caught:
        fetch(store, source)
    error = caught.value
    assert error.needed is not None
    assert error.needed > error.free
    assert {str(store.root): 0} == error.reclaimable
    for number in (error.needed, error.free, 0):
        assert f" {number} bytes" in error.message
    if announced:
        assert error.needed >= 12 * MIB
        assert free - 64 * KIB <= error.free <= free
        assert 0 == source.opened(REF)
    assert_nothing_left(store)


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_an_image_whose_raw_form_has_no_room_is_refused_before_a_byte_is_written(mounted: Mounted, tmp_path: Path) -> None:
    store = laid_out(mounted("tmpfs", 16 * MIB))
    source = serving(converted(tmp_path, os.urandom(12 * MIB)))
    observer = Recorder()
    with pytest.raises(InsufficientSpace) as caught:
        fetch(store, source, observer=observer)
    assert caught.value.needed is not None
    assert caught.value.needed >= 24 * MIB
    assert source.read(REF) <= BUFFER_BYTES
    assert "received" not in observer.codes
    assert_nothing_left(store)


@pytest.mark.component("root", "tmpfs")
def test_an_image_that_just_fits_is_fetched(mounted: Mounted) -> None:
    store = laid_out(mounted("tmpfs", 8 * MIB))
    size = (free_bytes(store.root) - 300 * KIB) // 4096 * 4096
    for announced in (True, False):
        image = fetch(store, serving(os.urandom(size), announces_size=announced))
        assert size == image.size
        image.path.unlink()


@pytest.mark.component("root", "tmpfs")
@pytest.mark.parametrize("slack", [0, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB])
def test_an_image_that_just_does_not_fit_beside_our_records_is_refused_before_it_is_begun(mounted: Mounted, slack: int) -> None:
    store = laid_out(mounted("tmpfs", 4 * MIB))
    source = serving(os.urandom(free_bytes(store.root) - slack))
    with suppress(InsufficientSpace):
        fetch(store, source)
    assert len(image_files(store)) == source.opened(REF)


@pytest.mark.component("root", "tmpfs")
def test_a_growing_reservation_ends_before_the_file_system_does(mounted: Mounted) -> None:
    """The room of an image without an announced size is claimed as it comes; another's claim is not touched."""
    store = laid_out(mounted("tmpfs", 24 * MIB))
    source = FakeSource(
        {
            "fake:slow": FakeImage(os.urandom(10 * MIB), piece=MIB, delay=0.02),
            "fake:endless": FakeImage(os.urandom(40 * MIB), announces_size=False),
        }
    )
    reserved, done = threading.Event(), threading.Event()

    def wait() -> None:
        reserved.set()
        assert done.wait(30)

    slow: list[BaseImage] = []
    observer = AtEvent("fetching", wait)
    worker = threading.Thread(target=lambda: slow.append(fetch(store, source, ref="fake:slow", observer=observer)))
    worker.start()
    try:
        assert reserved.wait(30)
        with pytest.raises(InsufficientSpace) as caught:
            fetch(store, source, ref="fake:endless")
    finally:
        done.set()
        worker.join()
    assert caught.value.needed is not None  # the claim was refused; the file system itself was never full
    assert 10 * MIB <= source.read("fake:endless") <= 15 * MIB + BUFFERS * BUFFER_BYTES
    assert [10 * MIB] == [image.size for image in slow]


@pytest.mark.component("root", "tmpfs")
def test_of_two_images_that_only_fit_one_at_a_time_the_second_is_refused_at_once(mounted: Mounted) -> None:
    store = laid_out(mounted("tmpfs", 24 * MIB))
    source = FakeSource({f"fake:{name}": FakeImage(os.urandom(14 * MIB), piece=MIB, delay=0.02) for name in "ab"})
    half_way, refused = threading.Event(), threading.Event()

    class HalfWay(Recorder):
        def progress(self, progress: Progress) -> None:
            if progress.done >= 5 * MIB and not half_way.is_set():
                half_way.set()
                assert refused.wait(30)

    brought: list[BaseImage] = []
    worker = threading.Thread(target=lambda: brought.append(fetch(store, source, ref="fake:a", observer=HalfWay())))
    worker.start()
    try:
        assert half_way.wait(30)
        with pytest.raises(InsufficientSpace) as caught:
            fetch(store, source, ref="fake:b")
    finally:
        refused.set()
        worker.join()
    assert 0 == source.opened("fake:b")
    assert caught.value.free <= 10 * MIB  # what the first is still to write is not free
    assert [14 * MIB] == [image.size for image in brought]
    brought[0].path.unlink()
    assert 14 * MIB == fetch(store, source, ref="fake:b").size


@pytest.mark.component("root", "tmpfs")
def test_many_at_once_never_run_into_the_end_of_the_file_system(mounted: Mounted) -> None:
    store = laid_out(mounted("tmpfs", 24 * MIB))
    pace = FakeImage(piece=256 * KIB, delay=0.001)
    served = {
        f"fake:{number}": replace(pace, content=os.urandom((3 + number) * MIB), announces_size=number % 2 == 0)
        for number in range(6)
    }
    source = FakeSource(served)
    outcomes: dict[str, int | None] = {}

    def bring(ref: str) -> None:
        try:
            outcomes[ref] = fetch(store, source, ref=ref).size
        except InsufficientSpace as error:
            outcomes[ref] = error.needed

    workers = [threading.Thread(target=bring, args=(ref,)) for ref in served]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert served.keys() == outcomes.keys()
    assert None not in outcomes.values()  # None: the file system filled up unforeseen
    assert [] == list(store.paths.tmp.iterdir())
    for image in images.images(store)[0]:
        assert record_of(image).size == image.size


def ingest_half_way(root: str) -> None:
    """In a child: fetch an image of 10 MiB and stop half-way."""

    class HalfWay(Recorder):
        def progress(self, progress: Progress) -> None:
            if progress.done >= 5 * MIB:
                tell("half-way")
                told()

    fetch(laid_out(Path(root)), serving(os.urandom(10 * MIB), piece=MIB, delay=0.05), observer=HalfWay())


@pytest.mark.component("root", "tmpfs")
def test_the_space_of_a_dead_ingest_is_free_for_others_at_once(mounted: Mounted) -> None:
    store = laid_out(mounted("tmpfs", 16 * MIB))
    other = FakeSource({"fake:other": FakeImage(os.urandom(14 * MIB))})
    with start(ingest_half_way, store.root) as child:
        assert "half-way" == child.hear()
        assert stagings.allocated(staging_of(store)) >= 3 * MIB  # what was received is written a little later
        with pytest.raises(InsufficientSpace) as caught:
            fetch(store, other, ref="fake:other")
        assert {str(store.root): 0} == caught.value.reclaimable  # it is alive
        child.kill()
    assert 14 * MIB == fetch(store, other, ref="fake:other").size
    assert [] == list(store.paths.tmp.iterdir())


@pytest.mark.component("root", "tmpfs")
def test_the_claim_of_a_dead_ingest_does_not_count_though_its_bytes_may_stay(mounted: Mounted) -> None:
    store = laid_out(mounted("tmpfs", 32 * MIB))
    with start(ingest_half_way, store.root) as child:
        assert "half-way" == child.hear()
        child.kill()
    other = FakeSource({"fake:other": FakeImage(os.urandom(24 * MIB))})
    assert 24 * MIB == fetch(store, other, ref="fake:other").size


@pytest.mark.component("root", "tmpfs")
def test_what_the_hosts_other_cache_is_to_write_is_not_free(mounted: Mounted) -> None:
    """Two caches of one file system draw on the same room, the living and the dead in them."""
    root = mounted("tmpfs", 24 * MIB)
    base, masters = laid_out(root / "base"), laid_out(root / "masters", kind=CacheKind.MASTERS)
    cache = Cache(name="masters", store=masters, neighbours=(base,))
    source, ref = FakeSource({"fake:other": FakeImage(os.urandom(20 * MIB))}), parse_ref("fake:other")
    with start(ingest_half_way, base.root) as child:
        assert "half-way" == child.hear()
        with pytest.raises(InsufficientSpace) as caught:
            cache.ensure(ref, source, Recorder())
        assert caught.value.free <= 14 * MIB
        child.kill()
    assert 20 * MIB == cache.ensure(ref, source, Recorder()).image.size
    assert [] == list(base.paths.tmp.iterdir())


@pytest.mark.component("root", "tmpfs")
def test_a_file_system_that_somebody_else_fills_meanwhile_ends_the_download_and_nothing_is_left(mounted: Mounted) -> None:
    store = laid_out(mounted("tmpfs", 24 * MIB))
    observer = AtProgress("fetch", lambda: fill(store.root / "foreign", free_bytes(store.root) - 3 * MIB))
    with pytest.raises(InsufficientSpace) as caught:
        fetch(store, serving(os.urandom(12 * MIB)), observer=observer)
    assert (12 * MIB, True) == (caught.value.needed, caught.value.free < 12 * MIB)
    assert ["foreign"] == image_files(store)
    assert [] == list(store.paths.tmp.iterdir())


def fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_file_system_that_somebody_else_fills_meanwhile_ends_the_conversion_and_the_download_stays(
    mounted: Mounted, tmp_path: Path
) -> None:
    store = laid_out(mounted("tmpfs", 24 * MIB))
    source = serving(converted(tmp_path, compressible(12 * MIB), "-o", "subformat=streamOptimized", output="vmdk"))
    foreign = store.root / "foreign"
    with pytest.raises(InsufficientSpace) as caught:
        fetch(store, source, observer=AtProgress("convert", lambda: fill(foreign, free_bytes(store.root) - 3 * MIB)))
    assert 12 * MIB == caught.value.needed
    assert {"download", "journal.json"} <= {Path(name).name for name in in_staging(store)}
    assert not staging_of(store).converted.exists()
    foreign.unlink()
    assert 12 * MIB == fetch(store, source).size
    assert 1 == source.opened(REF)


@pytest.mark.component("root", "tmpfs")
def test_an_image_that_leaves_for_its_place_is_not_counted_twice(mounted: Mounted) -> None:
    """Between its publication and its end, an ingest needs nothing more."""
    store = laid_out(mounted("tmpfs", 24 * MIB))
    source = FakeSource({f"fake:{name}": FakeImage(os.urandom(10 * MIB)) for name in "ab"})
    second: list[BaseImage] = []
    fetch(store, source, ref="fake:a", observer=AtEvent("published", lambda: second.append(fetch(store, source, ref="fake:b"))))
    assert [10 * MIB] == [image.size for image in second]


# ---------------------------------------------------------------------------------------------------- a download that is kept


@pytest.fixture
def cramped(mounted: Mounted) -> Store:
    """A cache with room for a compressed image, and for its raw form only after `make_room`."""
    return laid_out(mounted("tmpfs", 8 * MIB))


def make_room(store: Store) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", store.root], check=True)


def cramped_source(tmp_path: Path, **fields: object) -> FakeSource:
    return serving(converted(tmp_path, compressible(12 * MIB), "-c"), **fields)


def fail_to_convert(store: Store, source: FakeSource) -> None:
    observer = Recorder()
    with pytest.raises(InsufficientSpace) as caught:
        fetch(store, source, observer=observer)
    assert caught.value.needed is not None
    assert caught.value.needed >= 12 * MIB
    assert "download-durable" == observer.codes[-1]


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_verified_download_is_kept_when_its_raw_form_has_no_room(cramped: Store, tmp_path: Path) -> None:
    source = cramped_source(tmp_path)
    for _ in range(2):
        fail_to_convert(cramped, source)
        assert [] == image_files(cramped)
        assert 0 == stagings.outstanding(staging_of(cramped))
    make_room(cramped)
    observer = Recorder()
    image = fetch(cramped, source, observer=observer)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", tmp_path / "image.qcow2", image.path)
    assert "download-kept" in observer.codes
    assert 1 == source.opened(REF)
    assert [] == list(cramped.paths.tmp.iterdir())


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_kept_download_that_has_rotted_is_fetched_again(cramped: Store, tmp_path: Path) -> None:
    """What is made of it would have a digest that vouches for the rot."""
    source = cramped_source(tmp_path)
    fail_to_convert(cramped, source)
    flip(staging_of(cramped).download)
    make_room(cramped)
    observer = Recorder()
    image = fetch(cramped, source, observer=observer)
    assert (tmp_path / "qcow2.raw").read_bytes() == image.path.read_bytes()
    assert ("download-damaged" in observer.codes, "download-kept" in observer.codes) == (True, False)
    assert 2 == source.opened(REF)
    assert [] == list(cramped.paths.tmp.iterdir())


def flip(path: Path) -> None:
    """Change a byte in the midst of the data, as a failing disk does; what inspection reads stays."""
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_kept_download_has_a_digest_that_is_asked_for_only_now(cramped: Store, tmp_path: Path) -> None:
    source = cramped_source(tmp_path)
    fail_to_convert(cramped, source)
    make_room(cramped)
    right = digest("sha512", (tmp_path / "image.qcow2").read_bytes())
    fetch(cramped, source, checksum=right)
    assert 1 == source.opened(REF)


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_kept_download_without_the_digest_that_is_asked_for_now_is_fetched_again(cramped: Store, tmp_path: Path) -> None:
    source = cramped_source(tmp_path)
    fail_to_convert(cramped, source)
    make_room(cramped)
    with pytest.raises(DigestMismatch):
        fetch(cramped, source, checksum=digest("sha256", b"other"))
    assert 2 == source.opened(REF)
    assert_nothing_left(cramped)


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_kept_download_of_another_version_is_fetched_again(cramped: Store, tmp_path: Path) -> None:
    source = cramped_source(tmp_path)
    fail_to_convert(cramped, source)
    source.put(REF, FakeImage(b"a new version"))
    assert b"a new version" == fetch(cramped, source).path.read_bytes()
    assert [] == list(cramped.paths.tmp.iterdir())


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_kept_download_is_fetched_again_from_a_source_that_cannot_vouch_for_it(cramped: Store, tmp_path: Path) -> None:
    source = cramped_source(tmp_path, validator=None)
    for opened in (1, 2):
        fail_to_convert(cramped, source)
        assert opened == source.opened(REF)


@pytest.mark.component("root", "tmpfs", "qemu-img")
def test_a_kept_download_stands_under_the_rules_that_hold_now(cramped: Store, tmp_path: Path) -> None:
    content = converted(tmp_path, compressible(12 * MIB), "-c")
    source = serving(content, validator="same")
    fail_to_convert(cramped, source)
    make_room(cramped)
    with pytest.raises(VirtualSizeRefused):
        fetch(replace(cramped, virtual_size_limit=MIB), source)
    assert_nothing_left(cramped)
    assert 12 * MIB == fetch(replace(cramped, virtual_size_limit=64 * MIB), source).size


def test_a_download_that_was_kept_unseen_is_inspected_before_it_is_published(store: Store) -> None:
    """A kernel that cannot be published stays as a download; as a disk it must pass the rules first."""
    conflicting = fetch(store, serving(NO_IMAGE, validator="same", disk_format="aki"))
    conflicting.path.write_bytes(b"x" * len(NO_IMAGE))
    os.removexattr(conflicting.path, "user.underlay")
    with pytest.raises(ImageConflict):
        fetch(store, serving(NO_IMAGE, validator="changed", disk_format="aki"))
    assert "download" in {Path(name).name for name in in_staging(store)}
    conflicting.path.unlink()
    with pytest.raises(ImageRefused):
        fetch(store, serving(NO_IMAGE, validator="changed"))
    assert_nothing_left(store)


def test_a_download_whose_name_is_taken_is_kept_and_nothing_is_replaced(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content"), "fake:another": FakeImage(b"another")})
    taken = fetch(store, source).path
    fetch(store, source, ref="fake:another").path.replace(taken)
    for _ in range(2):
        with pytest.raises(ImageConflict, match=taken.name):
            fetch(store, source)
        assert b"another" == taken.read_bytes()
    assert 2 == source.opened(REF)
    taken.unlink()
    assert taken == fetch(store, source).path
    assert b"content" == taken.read_bytes()
    assert 2 == source.opened(REF)
    assert [] == list(store.paths.tmp.iterdir())


@pytest.mark.component("qemu-img")
def test_an_image_that_qemu_img_cannot_convert_is_an_error_of_one_line(store: Store, tmp_path: Path) -> None:
    served = converted(tmp_path, os.urandom(MIB), *STREAM_OPTIMIZED, output="vmdk")
    with served.open("r+b") as file:
        file.seek(5 * 64 * KIB)
        file.write(os.urandom(64 * KIB))
    with pytest.raises(ToolFailed, match="qemu-img failed") as caught:
        fetch(store, serving(served))
    assert "\n" not in caught.value.message
    assert [] == image_files(store)
    assert not staging_of(store).converted.exists()


# --------------------------------------------------------------------------------------------------------------------- masters


@pytest.fixture
def masters(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "masters", kind=CacheKind.MASTERS, force_raw=False)


@pytest.mark.component("qemu-img")
def test_a_master_that_is_stored_raw_has_the_suffix_that_ironic_gives_it(masters: Store, tmp_path: Path) -> None:
    served = converted(tmp_path, os.urandom(MIB))
    as_served = fetch(masters, serving(served))
    raw = fetch(replace(masters, force_raw=True), serving(served))
    assert ("qcow2", "raw") == (as_served.format, raw.format)
    assert f"{as_served.name}.converted" == raw.name


def test_a_raw_image_in_a_raw_forcing_masters_cache_is_found_again(masters: Store) -> None:
    source, raw_only = serving(os.urandom(MIB)), replace(masters, force_raw=True)
    name = fetch(raw_only, source).name
    assert name.endswith(".converted")
    assert name == fetch(raw_only, source).name == fetch(masters, source).name
    assert 1 == source.opened(REF)
