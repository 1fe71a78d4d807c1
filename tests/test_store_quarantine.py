"""A damaged image is never served by any name, stays where it is, and the same bytes may take its place."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storing import laid_out, name_of, published, record_of, stage
from underlay.errors import CacheMissing, ImageConflict, ImageDamaged, StorageFailed
from underlay.model import Damage
from underlay.naming import CacheKind
from underlay.store import Store, eviction, images, locking, quarantine

DAMAGE = Damage(code="content-differs", detail="its digest is another", found_at=datetime(2026, 3, 1, 12, tzinfo=UTC))
CONTENT, OTHER = b"what is published" * 100, b"what is damaged!!" * 100


@pytest.fixture(params=list(CacheKind))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache", kind=request.param)


def condemned(store: Store, *, version: str = "1") -> str:
    image = published(store, CONTENT, version=version)
    quarantine.put(store, image.name, inode=image.path.stat().st_ino, damage=DAMAGE)
    return image.name


def test_it_is_found_by_nobody_but_who_looks_for_such(store: Store) -> None:
    name = condemned(store)

    with pytest.raises(ImageDamaged, match=r"damaged, as a scrub found at 2026-03-01 12:00 UTC: its digest is another"):
        images.find(store, name)
    with pytest.raises(ImageDamaged), images.held(store, name):
        pass
    assert images.find_unchanged(store, name) is None
    found, problems = images.images(store)
    assert ([], ["image-damaged"]) == (found, [problem.code for problem in problems])
    seen = images.look(store, name)
    assert seen is not None
    assert DAMAGE == seen.damage
    assert [name] == [image.name for image in images.everything(store)]


def test_it_stays_where_it_is_for_who_needs_it(store: Store) -> None:
    name = condemned(store)
    assert CONTENT == (store.root / name).read_bytes()
    assert frozenset({name}) == quarantine.names(store)


def test_its_note_may_be_read_by_everybody_and_written_by_its_owner(store: Store) -> None:
    name = condemned(store)
    assert (0o100644, 0o040755) == (
        store.paths.quarantined(name).stat().st_mode,
        store.paths.quarantine.stat().st_mode,
    )


def test_the_same_bytes_take_its_place_and_are_served(store: Store) -> None:
    name = condemned(store)
    before = (store.root / name).stat().st_ino
    with (store.root / name).open("rb") as held_open:
        image = published(store, CONTENT)
        assert before == os.fstat(held_open.fileno()).st_ino  # who has it open goes on reading it

    assert (name, None) == (image.name, image.damage)
    assert before != image.path.stat().st_ino
    assert frozenset() == quarantine.names(store)
    found = images.find(store, name)
    assert found is not None
    assert CONTENT == found.path.read_bytes()


def test_other_bytes_never_take_the_place_of_a_base(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    name = condemned(store)
    staged = stage(store, OTHER)
    record = record_of(staged)
    assert name == name_of(store, record)

    with pytest.raises(ImageConflict):
        images.publish(store, staged, name, record)

    assert CONTENT == (store.root / name).read_bytes()
    with pytest.raises(ImageDamaged):
        images.find(store, name)


def test_another_version_of_a_master_takes_its_place(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", kind=CacheKind.MASTERS)
    name = condemned(store)

    image = published(store, OTHER, version="2")

    assert (name, OTHER) == (image.name, image.path.read_bytes())
    assert frozenset() == quarantine.names(store)


def test_a_damaged_file_without_a_record_is_replaced_by_nothing_in_a_base_cache(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache")
    name = condemned(store)
    os.removexattr(store.root / name, "user.underlay")
    with pytest.raises(ImageConflict):
        published(store, CONTENT)
    seen = images.look(store, name)
    assert seen is not None
    assert ("raw", None, DAMAGE) == (seen.format, seen.record, seen.damage)


def test_a_truncated_one_is_shown_all_the_same(store: Store) -> None:
    name = condemned(store)
    os.truncate(store.root / name, 10)
    seen = images.look(store, name)
    assert seen is not None
    assert (10, DAMAGE) == (seen.size, seen.damage)


def test_a_note_means_its_own_file_only(store: Store) -> None:
    image = published(store, CONTENT)
    quarantine.put(store, image.name, inode=image.path.stat().st_ino + 1, damage=DAMAGE)
    assert image == images.find(store, image.name)


def test_the_note_of_a_file_that_is_gone_is_no_obstacle_to_a_new_one(store: Store) -> None:
    name = condemned(store)
    (store.root / name).unlink()  # by somebody who knows nothing of notes
    staged = stage(store, CONTENT)  # which comes to have the number of the inode that is noted
    quarantine.put(store, name, inode=staged.stat().st_ino, damage=DAMAGE)
    put = images.publish_over if store.kind is CacheKind.MASTERS else images.publish
    image = put(store, staged, name, record_of(staged))
    assert image == images.find(store, name)
    assert frozenset() == quarantine.names(store)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"layout":2,"inode":1,"code":"a","detail":"b","found_at":"2026-01-01T00:00:00Z"}']
)
def test_a_note_that_cannot_be_read_means_whatever_has_the_name(store: Store, content: bytes) -> None:
    name = condemned(store)
    store.paths.quarantined(name).write_bytes(content)
    with pytest.raises(ImageDamaged, match="the note of it"):
        images.find(store, name)


def test_a_link_in_the_place_of_a_note_is_not_followed_and_nothing_is_served(store: Store, tmp_path: Path) -> None:
    name = condemned(store)
    store.paths.quarantined(name).unlink()
    store.paths.quarantined(name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageFailed, match="Too many levels of symbolic links"):
        images.find(store, name)


def test_a_note_is_lifted_once_and_again(store: Store) -> None:
    name = condemned(store)
    quarantine.lift(store, name)
    quarantine.lift(store, name)
    assert images.find(store, name) is not None


def test_what_goes_takes_its_notes_along(store: Store) -> None:
    name = condemned(store)
    with locking.exclusive(store, name):
        eviction.trash(store, name)
        eviction.destroy(store, name)
    assert frozenset() == quarantine.names(store)


def test_what_comes_back_from_the_trash_is_damaged_still(store: Store) -> None:
    name = condemned(store)
    with locking.exclusive(store, name):
        eviction.trash(store, name)
        eviction.put_back(store, name)
    with pytest.raises(ImageDamaged):
        images.find(store, name)


def test_a_note_that_cannot_be_written_is_an_error(store: Store) -> None:
    image = published(store, CONTENT)
    store.paths.quarantine.write_bytes(b"")  # a file where the directory should be
    with pytest.raises(CacheMissing, match="Not a directory"):
        quarantine.put(store, image.name, inode=1, damage=DAMAGE)
