"""Files on their way out of a cache: through the trash, gone for good or back where they were, whatever crashed before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from storing import MIB, REF, laid_out, published, stage, staging_of
from underlay import locks
from underlay.errors import CacheMissing
from underlay.naming import ref_key, stem_of_version
from underlay.plan import CachedFile
from underlay.store import Store, eviction, images, listing
from underlay.store.locking import exclusive

NAME = stem_of_version("an image")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


def put(store: Store, name: str = NAME, content: bytes = b"content") -> CachedFile:
    """A file in the cache, as a listing finds it."""
    (store.root / name).write_bytes(content)
    found = listing.look(store, name)
    assert found is not None
    return found


@contextmanager
def opened(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------------------------------------------ trash


def test_a_trashed_file_is_the_same_inode_by_no_name_that_leads_to_it(store: Store) -> None:
    file = put(store)

    eviction.trash(store, NAME)

    assert not (store.root / NAME).exists()
    assert file.inode == store.paths.trashed(NAME).stat().st_ino
    assert eviction.is_same_trashed(file, eviction.trashed(store, file))


def test_only_the_owner_of_the_cache_may_look_into_the_trash(store: Store) -> None:
    assert 0o700 == store.paths.trash.stat().st_mode & 0o777


def test_trashing_what_is_gone_says_so_and_a_file_in_the_trash_is_not_overwritten(store: Store) -> None:
    with pytest.raises(CacheMissing):
        eviction.trash(store, NAME)
    store.paths.trashed(NAME).write_bytes(b"older")
    put(store)
    with pytest.raises(Exception, match="exists"):
        eviction.trash(store, NAME)
    assert b"older" == store.paths.trashed(NAME).read_bytes()
    assert b"content" == (store.root / NAME).read_bytes()


@pytest.mark.parametrize("change", ["mtime", "size", "link", "marker", "other", "gone"])
def test_a_trashed_file_that_changed_is_noticed(store: Store, change: str, tmp_path: Path) -> None:
    file = put(store)
    eviction.trash(store, NAME)
    trashed = store.paths.trashed(NAME)
    match change:
        case "mtime":
            os.utime(trashed, ns=(0, file.mtime_ns + 1))
        case "size":
            with trashed.open("ab") as more:
                more.write(b"x")
            os.utime(trashed, ns=(0, file.mtime_ns))
        case "link":
            os.link(trashed, tmp_path / "link")
        case "marker":
            images.mark_used(store, NAME, at_ns=file.used_ns + 1)
        case "other":
            (tmp_path / "copy").write_bytes(b"content")
            os.utime(tmp_path / "copy", ns=(0, file.mtime_ns))
            os.rename(tmp_path / "copy", trashed)
        case _:
            trashed.unlink()

    assert not eviction.is_same_trashed(file, eviction.trashed(store, file))


def test_reading_a_trashed_file_changes_nothing_that_is_compared(store: Store) -> None:
    file = put(store)
    eviction.trash(store, NAME)

    store.paths.trashed(NAME).read_bytes()

    assert eviction.is_same_trashed(file, eviction.trashed(store, file))


# ------------------------------------------------------------------------------------------------------------ gone, or put back


def test_a_destroyed_file_is_gone_with_its_marker_and_its_bytes_are_told(store: Store) -> None:
    put(store, content=os.urandom(MIB))
    images.mark_used(store, NAME)
    eviction.trash(store, NAME)

    freed = eviction.destroy(store, NAME)

    assert MIB == freed
    assert [] == os.listdir(store.paths.trash)
    assert [] == os.listdir(store.paths.used)


def test_destroying_one_of_two_names_frees_nothing(store: Store, tmp_path: Path) -> None:
    put(store, content=os.urandom(MIB))
    os.link(store.root / NAME, tmp_path / "link")
    eviction.trash(store, NAME)

    assert 0 == eviction.destroy(store, NAME)


def test_a_hole_frees_nothing(store: Store) -> None:
    put(store)
    os.truncate(store.root / NAME, 64 * MIB)
    eviction.trash(store, NAME)

    assert eviction.destroy(store, NAME) <= MIB


def test_a_file_that_is_put_back_is_as_it_was(store: Store) -> None:
    image = published(store, b"content")
    before = listing.look(store, image.name)
    assert before is not None
    eviction.trash(store, image.name)

    assert eviction.put_back(store, image.name)

    after = listing.look(store, image.name)
    assert after is not None
    assert before == replace(after, ctime_ns=before.ctime_ns)
    assert image == images.find(store, image.name)
    assert [] == os.listdir(store.paths.trash)


def test_nothing_is_put_over_a_file_that_has_the_name_by_now(store: Store) -> None:
    put(store)
    eviction.trash(store, NAME)
    put(store, content=b"another")

    assert not eviction.put_back(store, NAME)

    assert b"another" == (store.root / NAME).read_bytes()
    assert b"content" == store.paths.trashed(NAME).read_bytes()


# ---------------------------------------------------------------------------------------------------------------- after a crash


def test_what_a_crash_left_in_the_trash_is_put_back(store: Store) -> None:
    image = published(store, b"content")
    eviction.trash(store, image.name)

    assert [image.name] == eviction.recover(store)

    assert image == images.find(store, image.name)
    assert [] == eviction.recover(store)


def test_what_somebody_else_is_removing_now_is_left_to_them(store: Store) -> None:
    put(store)
    eviction.trash(store, NAME)

    with exclusive(store, NAME):
        assert [] == eviction.recover(store)
        assert store.paths.trashed(NAME).exists()

    assert [NAME] == eviction.recover(store)


@pytest.mark.component("leases")
def test_what_was_fetched_anew_since_the_crash_goes_from_the_trash_unless_it_is_open(store: Store) -> None:
    put(store, content=b"old")
    eviction.trash(store, NAME)
    put(store, content=b"new")
    images.mark_used(store, NAME)

    with opened(store.paths.trashed(NAME)):
        assert [] == eviction.recover(store)
        assert b"old" == store.paths.trashed(NAME).read_bytes()

    assert [] == eviction.recover(store)
    assert not store.paths.trashed(NAME).exists()
    assert b"new" == (store.root / NAME).read_bytes()
    assert store.paths.used_marker(NAME).exists()  # it is the new file's


def test_strangers_in_the_trash_are_left_alone(store: Store, tmp_path: Path) -> None:
    (store.paths.trash / "notes.txt").write_text("x")
    (store.paths.trash / stem_of_version("a link")).symlink_to(tmp_path)
    (store.paths.trash / stem_of_version("a directory")).mkdir()
    before = sorted(os.listdir(store.paths.trash))

    assert [] == eviction.recover(store)

    assert before == sorted(os.listdir(store.paths.trash))
    assert [] == [name for name in os.listdir(store.root) if name != ".underlay"]


def test_a_cache_without_a_trash_has_nothing_to_recover(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    store.paths.trash.rmdir()

    assert [] == eviction.recover(store)


# ----------------------------------------------------------------------------------------------------------------- dead ingests


def dead_ingest(store: Store) -> CachedFile:
    stage(store, os.urandom(MIB))
    (file,) = listing.dead_ingests(store)
    return file


def test_a_dead_ingest_goes_with_all_that_it_has(store: Store) -> None:
    file = dead_ingest(store)

    assert MIB == eviction.remove_dead_ingest(store, file)

    assert not staging_of(store).directory.exists()


def test_an_ingest_that_somebody_took_up_again_stays(store: Store) -> None:
    file = dead_ingest(store)

    with locks.exclusive(store.paths.ingest_lock(ref_key(REF.canonical)), timeout=1):
        assert None is eviction.remove_dead_ingest(store, file)

    assert staging_of(store).download.exists()
