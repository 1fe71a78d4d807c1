"""What becomes of compressed images: decompressed while they arrive, verified as served, bounded, and found again."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from compressing import COMPRESS
from storing import MIB, laid_out
from underlay.cache import Cache, Ensured
from underlay.errors import BodyTruncated, DigestMismatch, ImageRefused, InsufficientSpace, UnsafeImage, VirtualSizeRefused
from underlay.model import Digest, ImageRecord
from underlay.naming import CacheKind
from underlay.policy.form import Want
from underlay.policy.retry import Retries
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store
from underlay.testing.bootimage import write_qcow2, write_raw
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.testing.httpserver import Served, serving
from underlay.values import replace

REF = "fake:image"
QUICK = Retries(attempts=3, first_wait=0.01, longest_wait=0.05)

each_compression = pytest.mark.parametrize("compression", list(COMPRESS))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "base")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A disk that boots, with holes and with bytes that do not shrink."""
    path = tmp_path_factory.mktemp("content") / "image.raw"
    write_raw(path, size=5 * MIB, message="from a compressed image", payload=3 * MIB)
    return path.read_bytes()


def fetch(store: Store, source: FakeSource, *, observer: Recorder | None = None, want: Want | None = None) -> Ensured:
    return Cache(name="base", store=store).ensure(parse_ref(REF), source, observer or Recorder(), want=want or Want())


def serving_bytes(served: bytes, **fields: object) -> FakeSource:
    return FakeSource({REF: FakeImage(served, **fields)})  # type: ignore[arg-type]


def digest(algorithm: str, content: bytes) -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


def record_of(ensured: Ensured) -> ImageRecord:
    assert ensured.image.record is not None
    return ensured.image.record


def nothing_is_left(store: Store) -> bool:
    return [] == [path.name for path in store.root.iterdir() if path.name != ".underlay"] + list(store.paths.tmp.iterdir())


# ------------------------------------------------------------------------------------------------------------------- content


@each_compression
@pytest.mark.parametrize("announced", [True, False])
def test_a_compressed_image_is_kept_decompressed_and_its_digest_is_of_the_bytes_as_served(
    store: Store, content: bytes, compression: str, *, announced: bool
) -> None:
    served = COMPRESS[compression](content)
    ensured = fetch(
        store,
        serving_bytes(served, announces_size=announced),
        want=Want(checksum=digest("sha512", served)),
    )
    assert content == ensured.image.path.read_bytes()
    record = record_of(ensured)
    assert (compression, "raw", len(content), True) == (record.compression, record.format, record.size, record.as_served)
    assert {str(digest("sha256", served)), str(digest("sha512", served))} == set(record.digests)


@pytest.mark.component("qemu-img")
@each_compression
def test_a_compressed_qcow2_is_converted_as_a_plain_one_is(store: Store, tmp_path: Path, compression: str) -> None:
    write_qcow2(tmp_path / "image.qcow2", size=5 * MIB, message="from a compressed qcow2", payload=2 * MIB)
    served = COMPRESS[compression]((tmp_path / "image.qcow2").read_bytes())
    ensured = fetch(store, serving_bytes(served, disk_format="qcow2"))
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", tmp_path / "image.qcow2", tmp_path / "image.raw"], check=True
    )
    assert (tmp_path / "image.raw").read_bytes() == ensured.image.path.read_bytes()
    assert (compression, "raw", "qcow2") == (
        record_of(ensured).compression,
        ensured.image.format,
        record_of(ensured).served_format,
    )


def test_holes_inside_are_kept(store: Store) -> None:
    content = os.urandom(MIB) + bytes(64 * MIB) + os.urandom(MIB)
    ensured = fetch(store, serving_bytes(COMPRESS["gzip"](content)))
    assert content == ensured.image.path.read_bytes()
    assert ensured.image.allocated < 4 * MIB


def test_a_compressed_image_is_found_again_by_a_digest_of_the_bytes_as_served(store: Store, content: bytes) -> None:
    served = COMPRESS["xz"](content)
    source = serving_bytes(served)
    fetch(store, source)
    assert "hit" == fetch(store, source, want=Want(checksum=digest("sha256", served))).reason.code
    assert 1 == source.opened(REF)


def test_a_digest_that_was_never_recorded_takes_another_transfer(store: Store, content: bytes) -> None:
    served = COMPRESS["zstd"](content)
    source = serving_bytes(served)
    fetch(store, source)
    assert "fetched" == fetch(store, source, want=Want(checksum=digest("sha512", served))).reason.code
    assert "revalidated" == fetch(store, source, want=Want(checksum=digest("sha512", served))).reason.code


def test_a_wrong_digest_of_the_bytes_as_served_is_refused(store: Store, content: bytes) -> None:
    with pytest.raises(DigestMismatch):
        fetch(store, serving_bytes(COMPRESS["gzip"](content)), want=Want(checksum=digest("sha256", content)))
    assert nothing_is_left(store)


def test_what_the_source_promises_of_the_decompressed_bytes_must_hold(store: Store, content: bytes) -> None:
    served = COMPRESS["gzip"](content)
    wrong = (digest("sha512", content), digest("md5", served))
    with pytest.raises(DigestMismatch, match="decompressed, has the digest md5:"):
        fetch(store, serving_bytes(served, content_digests=wrong))
    assert nothing_is_left(store)
    right = (digest("sha512", content), digest("md5", content))
    assert content == fetch(store, serving_bytes(served, content_digests=right)).image.path.read_bytes()


# ------------------------------------------------------------------------------------------------------------------ refusals


@each_compression
def test_a_compressed_image_that_was_cut_short_at_its_source_is_refused(store: Store, content: bytes, compression: str) -> None:
    served = COMPRESS[compression](content)
    with pytest.raises(UnsafeImage, match="rule cut-short"):
        fetch(store, serving_bytes(served[:-5]))
    assert nothing_is_left(store)


@each_compression
def test_a_bomb_ends_at_the_limit_of_virtual_sizes(tmp_path: Path, compression: str) -> None:
    store = replace(laid_out(tmp_path / "base"), virtual_size_limit=8 * MIB)
    bomb = COMPRESS[compression](bytes(256 * MIB))
    source = serving_bytes(bomb + os.urandom(64 * MIB))
    with pytest.raises(VirtualSizeRefused):
        fetch(store, source)
    assert source.read(REF) < len(bomb) + 16 * MIB
    assert nothing_is_left(store)


def test_a_bomb_inside_a_small_disk_format_ends_there_too(tmp_path: Path) -> None:
    """The header of a qcow2 says that it is small; what follows it does not."""
    write_qcow2(tmp_path / "image.qcow2", size=5 * MIB, message="small", payload=MIB)
    store = replace(laid_out(tmp_path / "base"), virtual_size_limit=8 * MIB)
    with pytest.raises(VirtualSizeRefused):
        fetch(store, serving_bytes(COMPRESS["gzip"]((tmp_path / "image.qcow2").read_bytes() + bytes(64 * MIB))))
    assert nothing_is_left(store)


@pytest.mark.component("qemu-img")
def test_what_is_inside_is_inspected(store: Store, tmp_path: Path) -> None:
    (tmp_path / "backing").write_bytes(bytes(MIB))
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "backing", "-F", "raw", tmp_path / "evil", "1M"],
        check=True,
    )
    with pytest.raises(UnsafeImage, match="rule backing-file"):
        fetch(store, serving_bytes(COMPRESS["gzip"]((tmp_path / "evil").read_bytes())))
    assert nothing_is_left(store)


def test_compressed_twice_is_no_image_that_anybody_means(store: Store, content: bytes) -> None:
    """It is decompressed once; what comes out is judged as it is, and kept as the raw bytes that it is to QEMU."""
    once = COMPRESS["gzip"](content)
    assert once == fetch(store, serving_bytes(COMPRESS["xz"](once))).image.path.read_bytes()


@pytest.mark.component("root", "tmpfs")
def test_room_is_claimed_for_what_comes_out(mounted: "object", tmp_path: Path) -> None:
    assert callable(mounted)
    store = laid_out(mounted("tmpfs", 16 * MIB))
    block = os.urandom(65536)
    with pytest.raises(InsufficientSpace):
        fetch(store, serving_bytes(COMPRESS["xz"](block * 512)))  # of 32 MiB, in far less as served
    assert nothing_is_left(store)


# --------------------------------------------------------------------------------------------------------------- byte for byte


@pytest.mark.parametrize(
    ("decompress", "is_undone"), [(None, False), (frozenset({"gzip"}), True), (frozenset({"zstd"}), False)]
)
def test_byte_for_byte_a_compressed_image_stays_as_it_is(
    tmp_path: Path, content: bytes, decompress: frozenset[str] | None, *, is_undone: bool
) -> None:
    store = laid_out(tmp_path / "masters", kind=CacheKind.MASTERS, force_raw=False)
    served = COMPRESS["gzip"](content)
    source, want = serving_bytes(served), Want(raw=False, decompress=decompress)
    assert (content if is_undone else served) == fetch(store, source, want=want).image.path.read_bytes()
    assert "revalidated" == fetch(store, source, want=want).reason.code


def test_a_decompressed_image_is_not_what_is_asked_for_byte_for_byte(tmp_path: Path, content: bytes) -> None:
    store = laid_out(tmp_path / "masters", kind=CacheKind.MASTERS, force_raw=False)
    served = COMPRESS["gzip"](content)
    source = serving_bytes(served)
    assert content == fetch(store, source).image.path.read_bytes()
    assert served == fetch(store, source, want=Want(raw=False)).image.path.read_bytes()


@pytest.mark.parametrize("label", ["aki", "ari", "ami"])
def test_a_kernel_or_ramdisk_stays_compressed(store: Store, content: bytes, label: str) -> None:
    served = COMPRESS["gzip"](content)
    ensured = fetch(store, serving_bytes(served, disk_format=label))
    assert served == ensured.image.path.read_bytes()
    assert None is record_of(ensured).compression


def test_a_cache_without_validation_keeps_what_it_gets(tmp_path: Path, content: bytes) -> None:
    store = laid_out(tmp_path / "base", validation=False, force_raw=False)
    served = COMPRESS["gzip"](content)
    assert served == fetch(store, serving_bytes(served)).image.path.read_bytes()


# ------------------------------------------------------------------------------------------------------------------- transfers


@each_compression
def test_a_transfer_that_breaks_goes_on_in_the_same_process(store: Store, content: bytes, compression: str) -> None:
    served = COMPRESS[compression](content)
    whole = Served(served, etag='"1"')
    with serving({"/a": [whole, replace(whole, cut_after=len(served) // 2), whole]}) as server:
        ref, cache = parse_ref(server.url("/a")), Cache(name="base", store=store)
        assert content == cache.ensure(ref, HttpSource(), Recorder(), retries=QUICK).image.path.read_bytes()
        assert len(served) == server.sent("/a")


def test_another_process_begins_anew_because_the_bytes_as_served_are_gone(store: Store) -> None:
    content = os.urandom(4 * MIB)
    whole = Served(COMPRESS["gzip"](content), etag='"1"')
    with serving({"/a": [whole, replace(whole, cut_after=3 * MIB), whole]}) as server:
        ref, cache = parse_ref(server.url("/a")), Cache(name="base", store=store)
        with pytest.raises(BodyTruncated):
            cache.ensure(ref, HttpSource(), Recorder())
        assert nothing_is_left(store)
        assert content == cache.ensure(ref, HttpSource(), Recorder()).image.path.read_bytes()
        assert [None, None] == [request.headers.get("range") for request in server.requests if request.method == "GET"]


def test_a_refusal_is_no_reason_to_try_again(store: Store, content: bytes) -> None:
    broken = bytearray(COMPRESS["gzip"](content))
    broken[len(broken) // 2] ^= 0xFF
    with serving({"/a": Served(bytes(broken), etag='"1"')}) as server:
        with pytest.raises(ImageRefused):
            Cache(name="base", store=store).ensure(parse_ref(server.url("/a")), HttpSource(), Recorder(), retries=QUICK)
        assert 1 == server.bodies("/a")
