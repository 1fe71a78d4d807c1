"""The files of a cache as they are judged: which are seen, what is told of each, and that a look changes nothing."""

import os
import threading
import time
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from machine import tree
from storing import MIB, REF, laid_out, published, record_of, stage, staging_of
from underlay import locks
from underlay.attributes import encode_record
from underlay.errors import CacheMissing
from underlay.files import ATTRIBUTE
from underlay.naming import CacheKind, ref_key, stem_of_version
from underlay.store import Store, eviction, images, listing, refs

STEM = stem_of_version("an image")
KINDS = {
    STEM: "original",
    f"{STEM}.raw": "original",
    f"{STEM}.qcow2": "original",
    f"{STEM}_5": "resized",
    f"{STEM}_5368709120": "resized",
    f"{STEM}_sm": "resized",
    "swap_512": "swap",
    "ephemeral_20_0706d66": "ephemeral",
    f"{STEM}.part": "leftover",
    f"{STEM}.converted": "leftover",
    "swap_512.part": "leftover",
}
STRANGERS = [
    "00000001", STEM.upper(), f"{STEM}_resized", f"{STEM}_20.parts", f"{STEM[:-1]}", "swap_", "swap_abc", "swap_1_", "123_swap",
    "ephemeral_456_", "ephemeral_0706d66_20", "README", f"{STEM}\n", f"{STEM}.bak", "new\nline", os.fsdecode(b"swap_\xff"),
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


def test_names_of_the_grammar_are_listed_by_kind_and_no_others(store: Store) -> None:
    for name in [*KINDS, *STRANGERS]:
        (store.root / name).write_bytes(b"x")

    found = listing.files(store)

    assert KINDS == {file.name: file.kind for file in found}
    assert sorted(KINDS) == [file.name for file in found]


def test_a_directory_with_nothing_in_it_has_no_files(tmp_path: Path) -> None:
    assert [] == listing.files(Store(root=tmp_path, kind=CacheKind.MASTERS))


@pytest.mark.parametrize("kind", ["directory", "link", "dangling", "fifo", "socket"])
def test_what_is_no_plain_file_is_not_judged(store: Store, tmp_path: Path, kind: str) -> None:
    path = store.root / STEM
    (tmp_path / "target").write_bytes(b"x")
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "target")
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
        case "fifo":
            os.mkfifo(path)
        case _:
            os.mknod(path, 0o140644)

    assert [] == listing.files(store)
    assert None is listing.look(store, STEM)


def test_each_file_is_told_with_its_identity_its_bytes_and_its_last_use(store: Store, tmp_path: Path) -> None:
    path = store.root / STEM
    path.write_bytes(os.urandom(MIB))
    os.truncate(path, 3 * MIB)
    os.link(path, tmp_path / "link")
    os.utime(path, ns=(0, 1_234_567_890_123_456_789))

    (file,) = listing.files(store)

    status = path.stat()
    assert (status.st_dev, status.st_ino, 3 * MIB, 2) == (file.device, file.inode, file.size, file.links)
    assert (1_234_567_890_123_456_789, status.st_ctime_ns) == (file.mtime_ns, file.ctime_ns)
    assert status.st_blocks * 512 == file.allocated
    assert MIB <= file.allocated < 3 * MIB
    assert 1_234_567_890_123_456_789 == file.used_ns
    assert file == listing.look(store, STEM)


@pytest.mark.parametrize(("mtime", "marker", "used"), [(5, 9, 9), (9, 5, 9), (7, 7, 7)])
def test_the_last_use_is_the_newer_of_mtime_and_marker(store: Store, mtime: int, marker: int, used: int) -> None:
    (store.root / STEM).write_bytes(b"x")
    images.mark_used(store, STEM, at_ns=marker)
    os.utime(store.root / STEM, ns=(0, mtime))

    (file,) = listing.files(store)

    assert used == file.used_ns
    assert file == listing.look(store, STEM)


def test_an_image_of_ours_is_told_with_its_ref_and_version_and_a_nova_name_without(store: Store) -> None:
    image = published(store, b"content")
    (store.root / STEM).write_bytes(b"x")

    found = {file.name: (file.ref, file.version_id) for file in listing.files(store) if file.kind == "original"}

    assert image.record is not None
    assert {image.name: (REF.canonical, image.record.version_id), STEM: (None, None)} == found


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b"[1]", b'{"layout": 99, "ref": "a", "version_id": "b"}', b"[" * 2000])
def test_a_record_that_is_none_makes_a_file_unrecorded_and_no_error(store: Store, value: bytes) -> None:
    path = store.root / f"{STEM}.raw"
    path.write_bytes(b"x")
    os.setxattr(path, ATTRIBUTE, value)

    (file,) = listing.files(store)

    assert (None, None) == (file.ref, file.version_id)


def test_a_record_is_read_though_a_later_version_says_more_in_it(store: Store) -> None:
    image = published(store, b"content")
    assert image.record is not None
    staged = stage(store, b"other")
    value = encode_record(record_of(staged, ref=REF))
    os.setxattr(image.path, ATTRIBUTE, value[:-1] + b',"new":[1]}')

    (file, *_) = [one for one in listing.files(store) if one.name == image.name]

    assert REF.canonical == file.ref


def test_a_look_changes_nothing(store: Store) -> None:
    published(store, b"content")
    for name in KINDS:
        (store.root / name).write_bytes(b"x")
    stage(store, b"dead")
    before = tree(store.root)

    listing.files(store)
    listing.versions(store)

    assert before == tree(store.root)


def test_a_cache_that_is_gone_is_an_error_and_one_without_our_directory_is_listed(tmp_path: Path) -> None:
    store = Store(root=tmp_path / "cache", kind=CacheKind.BASE)
    with pytest.raises(CacheMissing):
        listing.files(store)
    store.root.mkdir()
    (store.root / STEM).write_bytes(b"x")
    assert [STEM] == [file.name for file in listing.files(store)]


def test_files_that_come_and_go_meanwhile_are_no_error_and_those_that_stay_are_all_there(store: Store) -> None:
    stay = sorted(stem_of_version(f"stays {number}") for number in range(50))
    for name in stay:
        (store.root / name).write_bytes(b"x")
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            path = store.root / stem_of_version(f"comes {number % 20}")
            path.write_bytes(b"x")
            images.mark_used(store, path.name)
            eviction.trash(store, path.name)
            eviction.destroy(store, path.name)
            number += 1

    busy = threading.Thread(target=churn)
    busy.start()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert set(stay) <= {file.name for file in listing.files(store)}
    finally:
        stop.set()
        busy.join()


# ---------------------------------------------------------------------------------------------------------------------- ingests


def test_a_dead_ingest_is_a_leftover_used_when_its_newest_file_was(store: Store) -> None:
    download = stage(store, os.urandom(MIB))
    directory = staging_of(store).directory
    os.utime(download, ns=(0, 7_000_000_000))
    os.utime(directory, ns=(0, 5_000_000_000))

    (file,) = listing.files(store)

    assert f".underlay/tmp/{ref_key(REF.canonical)}" == file.name
    assert ("leftover", 7_000_000_000, MIB) == (file.kind, file.used_ns, file.allocated)


def test_an_ingest_that_somebody_works_on_is_not_listed(store: Store) -> None:
    stage(store, b"content")

    with locks.exclusive(store.paths.ingest_lock(ref_key(REF.canonical)), timeout=1):
        assert [] == listing.files(store)

    assert 1 == len(listing.files(store))


def test_a_strangers_file_among_the_ingests_is_left_out(store: Store) -> None:
    (store.paths.tmp / "notes").write_bytes(b"x")
    stage(store, b"dead")

    assert [f".underlay/tmp/{ref_key(REF.canonical)}"] == [file.name for file in listing.files(store)]


def test_in_a_cache_of_masters_dead_ingests_are_judged_too(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", kind=CacheKind.MASTERS)
    stage(store, b"content")

    assert ["leftover"] == [file.kind for file in listing.files(store)]


def test_the_last_use_of_a_master_is_its_marker_once_there_is_one(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", kind=CacheKind.MASTERS)
    name = "11111111-1111-4111-8111-111111111111"
    (store.root / name).write_bytes(b"x")
    os.utime(store.root / name, ns=(0, 9_000_000_000))
    assert [9_000_000_000] == [file.used_ns for file in listing.files(store)]
    store.paths.used_marker(name).touch()
    os.utime(store.paths.used_marker(name), ns=(0, 5_000_000_000))
    assert [5_000_000_000] == [file.used_ns for file in listing.files(store)]


def test_a_marker_counts_for_its_master_only_and_one_without_a_master_for_none(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", kind=CacheKind.MASTERS)
    names = [f"{digit * 8}-1111-4111-8111-111111111111" for digit in "cab"]
    for name in names[:2]:
        (store.root / name).write_bytes(b"x")
        os.utime(store.root / name, ns=(0, 9_000_000_000))
    for name in names[1:]:
        store.paths.used_marker(name).touch()
        os.utime(store.paths.used_marker(name), ns=(0, 5_000_000_000))

    found = [(file.name, file.used_ns) for file in listing.files(store)]

    assert [(names[1], 5_000_000_000), (names[0], 9_000_000_000)] == found


def list_in_a_child(root: str) -> None:
    for file in listing.files(Store(root=Path(root), kind=CacheKind.BASE)):
        tell(file.name)
    tell("end")


@pytest.mark.component("root")
def test_who_may_not_look_into_ingests_lists_the_images_all_the_same(open_directory: Path) -> None:
    store = laid_out(open_directory / "cache")
    image = published(store, b"content")
    stage(store, b"dead")

    with start(list_in_a_child, store.root, user=NOBODY) as child:
        assert [image.name, "end"] == [child.hear(), child.hear()]


# --------------------------------------------------------------------------------------------------------------------- versions


def test_the_versions_that_a_ref_has_meant_are_told_and_a_broken_record_says_nothing(store: Store) -> None:
    published(store, b"content")
    before = listing.versions(store)
    (store.paths.refs / f"{'0' * 64}.json").write_bytes(b"{broken")

    assert before == listing.versions(store)
    assert all(isinstance(record.ref, str) for record in refs.all_records(store))
