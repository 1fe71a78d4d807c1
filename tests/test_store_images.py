"""Base images in one cache: what is found and what is refused, publication, holding, and the record of use."""

import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from children import NOBODY, start, tell, told
from storing import MIB, REF, laid_out, name_of, published, record_of, snapshot, stage, staging_of
from underlay import locks
from underlay.attributes import decode_image_record, encode_record
from underlay.config import parse_config
from underlay.errors import (
    CacheMissing,
    CacheNotWritable,
    FormatMismatch,
    ImageConflict,
    InvalidName,
    LockLost,
    LockTimeout,
    NotAnImage,
    NotCached,
    UnderlayError,
    UnsafeImage,
)
from underlay.files import ATTRIBUTE, read_attribute
from underlay.host import Host
from underlay.model import BaseImage, Digest
from underlay.naming import CacheKind
from underlay.refs import parse_ref
from underlay.store import Store, images
from underlay.values import replace

NAME = "0123456789abcdef0123456789abcdef01234567"  # as Nova names a raw image
LONG = 60.0
OLD = 1_000_000_000  # seconds since the epoch: long ago


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache")


@pytest.fixture
def masters(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "masters", kind=CacheKind.MASTERS, force_raw=False)


def _qcow2(path: Path, *options: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "8M"], check=True)


def _age(path: Path) -> None:
    os.utime(path, (OLD, OLD))


def _hold(store: Store, name: str) -> BaseImage:
    with images.held(store, name) as hold:
        return hold.image


# -------------------------------------------------------------------------------------------------------------------- find


def test_what_is_not_there_is_not_found(store: Store) -> None:
    assert images.find(store, NAME) is None


def test_a_published_image_is_found_as_its_record_says(store: Store) -> None:
    image = published(store, b"content" * 1000)
    found = images.find(store, image.name)
    assert image == found
    assert found is not None
    assert found.record is not None
    assert (REF.canonical, 7000, "raw", 7000) == (found.ref, found.size, found.format, found.virtual_size)
    assert b"content" * 1000 == found.path.read_bytes()


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "directory", "fifo", "socket"])
def test_what_is_no_plain_file_is_no_image(short_directory: Path, kind: str) -> None:
    store = laid_out(short_directory)
    image = published(store, b"content")
    path = store.root / NAME
    _make(path, kind, target=image.path)
    before = snapshot(store.root)
    for look in (images.find, _hold):
        with pytest.raises(NotAnImage, match=NAME):
            look(store, NAME)
    found, problems = images.images(store)
    assert [image.name] == [other.name for other in found]
    assert [("not-an-image", path)] == [(problem.code, problem.path) for problem in problems]
    assert before == snapshot(store.root)


def _make(path: Path, kind: str, *, target: Path) -> None:
    match kind:
        case "symlink":
            path.symlink_to(target)
        case "dangling symlink":
            path.symlink_to("nowhere")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.fspath(path))
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize("name", ["../escape", ".underlay", "", "a/b", "a\0b", "a\nb", "-rf"])
def test_a_name_that_could_leave_the_directory_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidName):
        images.find(store, name)


def test_an_image_that_nova_fetched_is_found_without_a_record(store: Store) -> None:
    (store.root / NAME).write_bytes(bytes(MIB))
    _age(store.root / NAME)
    found = images.find(store, NAME)
    assert found is not None
    assert found.record is None
    assert ("raw", MIB, MIB, 4096 * 256) == (found.format, found.size, found.virtual_size, found.allocated)
    assert datetime.fromtimestamp(OLD, UTC) == found.last_used


@pytest.mark.component("qemu-img")
def test_an_unrecorded_image_that_is_not_raw_is_refused_where_images_are_kept_raw(store: Store) -> None:
    _qcow2(store.root / NAME)
    with pytest.raises(FormatMismatch, match="raw images only"):
        images.find(store, NAME)
    found = images.find(replace(store, force_raw=False), NAME)
    assert found is not None
    assert ("qcow2", 8 * MIB) == (found.format, found.virtual_size)


@pytest.mark.component("qemu-img")
def test_a_staged_file_of_which_nothing_is_known_is_published_as_it_is_and_replaces_nothing(store: Store) -> None:
    name = "b" * 40
    staged = stage(store, b"one" * 1024)
    os.setxattr(staged, ATTRIBUTE, b"whatever it says of itself")
    content = images.inspect_staged(store, staged, name)
    assert (staged, "raw", 3072, None) == (content.path, content.format, content.virtual_size, content.record)
    image = images.publish_unrecorded(store, staged, name)
    assert (None, store.root / name, False) == (image.record, image.path, staged.exists())
    assert read_attribute(image.path) is None

    other = stage(store, b"two" * 1024)
    assert image.size == images.publish_unrecorded(store, other, name).size
    assert (b"one" * 1024, True) == (image.path.read_bytes(), other.exists())


def test_many_publish_a_name_without_a_record_and_one_of_their_files_has_it(store: Store) -> None:
    store = replace(store, lock_timeout=LONG)
    refs = [parse_ref(f"https://images.example/{number}") for number in range(8)]
    staged = [stage(store, bytes([number + 1]) * 4096, ref=ref) for number, ref in enumerate(refs)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: images.publish_unrecorded(store, path, "c" * 40), staged))
    assert 7 == sum(path.exists() for path in staged)
    assert 1 == len({image.path.read_bytes() for image in found})


def link_as_soon_as_used(source: str, target: str, marker: str) -> None:
    """In a process of its own: give a file a name at the moment at which its use is marked, without a lock."""
    while told() == "go":
        tell("ready")
        while not os.path.lexists(marker):
            pass
        with suppress(FileExistsError):
            os.link(source, target)
        tell("done")


def test_who_publishes_a_name_that_somebody_without_a_lock_takes_at_that_moment_gets_that_image(
    tmp_path: Path, store: Store
) -> None:
    name, other = "e" * 40, tmp_path / "other"
    other.write_bytes(b"theirs" * 1024)
    marker, won = store.paths.used_marker(name), 0
    with start(link_as_soon_as_used, os.fspath(other), os.fspath(store.root / name), os.fspath(marker)) as child:
        for _ in range(100):
            staged = stage(store, b"ours" * 1024)
            marker.unlink(missing_ok=True)
            child.say("go")
            assert "ready" == child.hear()
            image = images.publish_unrecorded(store, staged, name)
            assert "done" == child.hear()
            won += staged.exists()
            assert image.path.read_bytes() == (other.read_bytes() if staged.exists() else b"ours" * 1024)
            image.path.unlink()
            staged.unlink(missing_ok=True)
    assert won


def test_a_staged_file_that_has_another_name_can_be_changed_by_it_and_is_refused(store: Store, tmp_path: Path) -> None:
    staged = stage(store, b"one" * 1024)
    os.link(staged, tmp_path / "another")
    with pytest.raises(NotAnImage, match="another name elsewhere"):
        images.inspect_staged(store, staged, "d" * 40)


def test_an_unrecorded_image_that_names_another_file_is_refused(tmp_path: Path, store: Store) -> None:
    (tmp_path / "secret").write_bytes(bytes(8 * MIB))
    _qcow2(store.root / NAME, "-b", os.fspath(tmp_path / "secret"), "-F", "raw")
    with pytest.raises(UnsafeImage) as caught:
        images.find(replace(store, force_raw=False), NAME)
    assert "backing-file" == caught.value.rule


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize(("suffix", "is_qcow2"), [("raw", True), ("qcow2", False), ("vmdk", True)])
def test_an_unrecorded_image_whose_content_contradicts_its_name_is_refused(
    tmp_path: Path,
    suffix: str,
    is_qcow2: bool,  # noqa: FBT001
) -> None:
    store = laid_out(tmp_path / "cache", force_raw=False)
    path = store.root / f"{NAME}.{suffix}"
    if is_qcow2:
        _qcow2(path)
    else:
        path.write_bytes(bytes(MIB))
    with pytest.raises(FormatMismatch, match=suffix):
        images.find(store, path.name)


@pytest.mark.component("qemu-img")
def test_a_converted_master_that_is_not_raw_is_refused(masters: Store) -> None:
    path = masters.root / "6fb4ba4e-1cf8-4f0e-9b0a-2f3c1a2b3c4d.converted"
    _qcow2(path)
    with pytest.raises(FormatMismatch):
        images.find(masters, path.name)


def test_a_cache_without_validation_takes_any_content_for_what_it_is(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "cache", validation=False)
    (store.root / NAME).write_bytes(b"# Disk DescriptorFile\nversion=1\n")
    found = images.find(store, NAME)
    assert found is not None
    assert "raw" == found.format


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        b"{}",
        b"\xff\xff",
        b'{"layout": 1}',
        b'{"layout":2,"version_id":"x","ref":"x","format":"raw","size":7,"virtual_size":7,"digests":[],"stored":"x",'
        b'"as_served":true,"fetched_at":"2026-01-02T00:00:00Z","underlay":"9"}',
        b'{"layout":1,"instance":"i","name":"disk","backend":"flat","format":"raw","base":"b","cache":"/","version_id":null}',
    ],
)
def test_an_image_whose_attribute_is_no_record_of_ours_is_unrecorded(store: Store, value: bytes) -> None:
    image = published(store, b"content")
    os.setxattr(image.path, ATTRIBUTE, value)
    found = images.find(store, image.name)
    assert found is not None
    assert found.record is None
    assert "raw" == found.format


@pytest.mark.component("qemu-img")
def test_an_image_whose_attribute_is_garbage_passes_the_same_rules_as_a_stranger(tmp_path: Path, store: Store) -> None:
    image = published(store, b"content")
    _qcow2(tmp_path / "qcow2")
    image.path.write_bytes((tmp_path / "qcow2").read_bytes())
    os.setxattr(image.path, ATTRIBUTE, b"garbage")
    with pytest.raises(FormatMismatch):
        images.find(store, image.name)


@pytest.mark.parametrize("size", [0, 6, 8, MIB])
def test_an_image_that_changed_its_size_after_publication_is_refused(store: Store, size: int) -> None:
    image = published(store, b"content")
    os.truncate(image.path, size)
    for look in (images.find, _hold):
        with pytest.raises(UnsafeImage) as caught:
            look(store, image.name)
        assert "changed" == caught.value.rule
    found, problems = images.images(store)
    assert ([], ["unsafe-image"]) == (found, [problem.code for problem in problems])


# ------------------------------------------------------------------------------------------------------------------ listing


def test_images_are_listed_by_name_and_nothing_else_is(store: Store) -> None:
    published_one = published(store, b"content")
    strangers = ("compute_nodes", f"{NAME}.part", f"{NAME}.converted", ".hidden", "README", NAME[:-1], NAME.upper(), "swap_")
    for name in strangers:
        (store.root / name).write_bytes(b"x")
    (store.root / "instances").mkdir()
    ours = [NAME, f"{NAME}_20", f"{NAME}_sm", "swap_512", "ephemeral_10_abc1234"]
    for name in ours:
        (store.root / name).write_bytes(bytes(512))
    found, problems = images.images(store)
    assert sorted([published_one.name, *ours]) == [image.name for image in found]
    assert [] == problems


def test_one_bad_image_does_not_hide_the_others(store: Store) -> None:
    good = published(store, b"content")
    (store.root / f"{NAME}_20").symlink_to("nowhere")
    (store.root / NAME).write_bytes(b"# Disk DescriptorFile\nversion=1\n")
    (store.root / "ephemeral_1_a:b+c'd").write_bytes(bytes(512))  # Nova's grammar, but no name that we take: a stranger
    found, problems = images.images(store)
    assert [good.name] == [image.name for image in found]
    assert {NAME: "unsafe-image", f"{NAME}_20": "not-an-image"} == {problem.path.name: problem.code for problem in problems}


def test_the_images_of_a_missing_directory_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(CacheMissing):
        images.images(Store(root=tmp_path / "missing", kind=CacheKind.BASE))


# -------------------------------------------------------------------------------------------------------------- publication


def test_a_published_image_has_its_bytes_its_record_and_its_mode(store: Store) -> None:
    content = os.urandom(MIB)
    staged = stage(store, content)
    inode = staged.stat().st_ino
    record = record_of(staged)
    image = images.publish(store, staged, name_of(store, record), record)
    assert content == image.path.read_bytes()
    assert inode == image.path.stat().st_ino
    assert 0o644 == image.path.stat().st_mode & 0o7777
    assert record == decode_image_record(read_attribute(image.path)) == image.record
    assert not staged.exists()
    assert store.paths.used_marker(image.name).exists()


@pytest.mark.component("root")
@pytest.mark.usefixtures("umask_077")
def test_what_a_tool_made_belongs_to_the_directorys_owner_and_group_too(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 1234, 5678)
    store = laid_out(tmp_path / "cache")
    staged = stage(store, b"content")
    staged.unlink()
    subprocess.run(["cp", "/etc/hostname", staged], check=True)
    record = record_of(staged)
    image = images.publish(store, staged, name_of(store, record), record)
    for path in (image.path, store.paths.used_marker(image.name), store.paths.image_lock(image.name)):
        mode = 0o644 if path == image.path else 0o664
        assert (1234, 5678, mode) == (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777)


def test_an_equal_image_that_is_there_is_returned(store: Store) -> None:
    first = published(store, b"content")
    staged = stage(store, b"content")
    record = record_of(staged)
    before = snapshot(store.root)
    again = images.publish(store, staged, first.name, record)
    assert first.record == again.record
    assert _but(staged, before) == _but(staged, snapshot(store.root))
    assert b"content" == staged.read_bytes()


def test_an_equal_image_that_nova_fetched_is_returned(store: Store) -> None:
    (store.root / NAME).write_bytes(b"content")
    staged = stage(store, b"content")
    inode = (store.root / NAME).stat().st_ino
    image = images.publish(store, staged, NAME, record_of(staged))
    assert image.record is None
    assert inode == image.path.stat().st_ino


@pytest.mark.parametrize(
    "there", ["another version", "the same version in other bytes", "unrecorded", "unrecorded of the same size"]
)
def test_a_different_image_that_is_there_is_a_conflict_and_nothing_changes(store: Store, there: str) -> None:
    if there == "another version":
        name = published(store, b"content", version="1").name
    elif there == "the same version in other bytes":
        name = published(store, b"CONTENT", version="2").name
    else:
        name = NAME
        (store.root / name).write_bytes(b"other" if there == "unrecorded" else b"CONTENT")
    _age(store.root / name)
    staged = stage(store, b"content")
    record = record_of(staged, version="2")
    before = snapshot(store.root)
    with pytest.raises(ImageConflict, match=name):
        images.publish(store, staged, name, record)
    assert _but(staged, before) == _but(staged, snapshot(store.root))
    assert b"content" == staged.read_bytes()


def _but(staged: Path, found: dict[str, tuple[int, int, int, bytes]]) -> dict[str, tuple[int, int, int, bytes]]:
    """Without the staged file, which has got its record and its mode and stays where it was."""
    return {name: entry for name, entry in found.items() if not os.fspath(staged).endswith(name)}


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "directory", "fifo"])
def test_an_image_is_not_published_onto_what_is_no_plain_file(tmp_path: Path, store: Store, kind: str) -> None:
    (tmp_path / "elsewhere").write_bytes(b"elsewhere")
    _make(store.root / NAME, kind, target=tmp_path / "elsewhere")
    staged = stage(store, b"content")
    record = record_of(staged)
    for put in (images.publish, images.publish_over):
        with pytest.raises(NotAnImage):
            put(store, staged, NAME, record)
    assert b"elsewhere" == (tmp_path / "elsewhere").read_bytes()
    assert b"content" == staged.read_bytes()
    assert not store.paths.used_marker(NAME).exists()


def test_of_many_that_publish_equal_images_at_once_all_get_the_one(store: Store) -> None:
    store = replace(store, lock_timeout=LONG)
    refs = [parse_ref(f"https://images.example/{number}.raw") for number in range(8)]
    staged = [stage(store, b"content" * 9999, ref=ref) for ref in refs]
    record = record_of(staged[0])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: images.publish(store, path, NAME, record), staged))
    assert {record} == {image.record for image in found}
    assert [False] == [path.exists() for path in staged if not path.exists()]
    assert b"content" * 9999 == (store.root / NAME).read_bytes()


def test_of_many_that_publish_different_images_at_once_one_wins(store: Store) -> None:
    store = replace(store, lock_timeout=LONG)
    refs = [parse_ref(f"https://images.example/{number}.raw") for number in range(8)]
    staged = [stage(store, str(number).encode() * 5000, ref=ref) for number, ref in enumerate(refs)]
    records = [record_of(path, version=str(number)) for number, path in enumerate(staged)]

    def attempt(number: int) -> BaseImage | None:
        try:
            return images.publish(store, staged[number], NAME, records[number])
        except ImageConflict:
            return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, range(8)))
    winners = [number for number, image in enumerate(found) if image is not None]
    assert 1 == len(winners)
    assert str(winners[0]).encode() * 5000 == (store.root / NAME).read_bytes()
    assert records[winners[0]] == decode_image_record(read_attribute(store.root / NAME))


def test_a_record_that_is_too_large_for_an_attribute_is_refused_before_publication(store: Store) -> None:
    staged = stage(store, b"content")
    record = record_of(staged, version="x" * 3000)
    with pytest.raises(UnderlayError, match="does not fit"):
        images.publish(store, staged, NAME, record)
    assert not (store.root / NAME).exists()


@pytest.mark.component("strace")
def test_an_image_is_durable_with_its_record_before_it_is_seen_and_its_name_after(tmp_path: Path, store: Store) -> None:
    staged = stage(store, b"content")
    log = tmp_path / "log"
    strace = ["strace", "-qq", "-y", "-o", os.fspath(log), "-e", "trace=fsetxattr,fsync,renameat2"]
    with start(publish_in_a_child, store.root, staged, wrapper=strace) as child:
        assert "published" == child.hear()
        child.say("end")
        child.end()
    calls = [line.partition(")")[0] for line in log.read_text().splitlines()]
    order = [(line.partition("(")[0], line.rpartition("<")[2].partition(">")[0]) for line in calls]
    renamed = next(number for number, (call, _) in enumerate(order) if call == "renameat2")
    assert [("fsetxattr", os.fspath(staged)), ("fsync", os.fspath(staged))] == order[:2]
    assert [("fsync", os.fspath(store.root)), ("fsync", os.fspath(staged.parent))] == order[renamed + 1 :]


# --------------------------------------------------------------------------------------------------------------- beside Nova


def nova_holds(path: str, image: str) -> None:
    """A Nova that fetches an image: it holds its lock, writes the file when told to, and releases."""
    with open(path, "a", encoding="ascii") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        tell("held")
        if told() == "write":
            Path(image).write_bytes(b"content")
        fcntl.lockf(file, fcntl.LOCK_UN)
    tell("released")
    told()


def nova_tries(path: str) -> None:
    with open(path, "a", encoding="ascii") as file:
        for _ in range(2):
            told()
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                tell(errno.errorcode[error.errno or 0])
            else:
                tell("held")
                fcntl.lockf(file, fcntl.LOCK_UN)


def publish_in_a_child(root: str, staged: str, *nova_locks: str) -> None:
    store = Store(
        root=Path(root),
        kind=CacheKind.BASE,
        lock_timeout=LONG,
        nova_locks=Path(nova_locks[0]) if nova_locks else None,
    )
    image = images.publish(store, Path(staged), NAME, record_of(Path(staged)))
    tell("published" if image.record else "returned")
    told()


@pytest.fixture
def beside_nova(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "instances/_base", nova_locks=tmp_path / "instances/locks")


def _nova_lock(store: Store, name: str = NAME) -> Path:
    assert store.nova_locks is not None
    return store.nova_locks / f"nova-{name}"


def test_novas_lock_directory_and_lock_are_as_nova_makes_them(beside_nova: Store) -> None:
    image = published(beside_nova, b"content")
    assert beside_nova.nova_locks is not None
    assert 0o755 == beside_nova.nova_locks.stat().st_mode & 0o7777
    assert [f"nova-{image.name}"] == os.listdir(beside_nova.nova_locks)


def test_publication_waits_for_a_nova(beside_nova: Store) -> None:
    (beside_nova.root.parent / "locks").mkdir()
    staged = stage(beside_nova, b"content")
    record = record_of(staged)
    with start(nova_holds, _nova_lock(beside_nova), beside_nova.root / NAME) as nova, ThreadPoolExecutor(1) as pool:
        assert "held" == nova.hear()
        with pytest.raises(LockTimeout, match="nova-"):
            images.publish(beside_nova, staged, NAME, record)
        assert not (beside_nova.root / NAME).exists()
        waiting = pool.submit(images.publish, replace(beside_nova, lock_timeout=LONG), staged, NAME, record)
        time.sleep(0.2)
        assert not waiting.done()
        nova.say("release")
        assert record == waiting.result(LONG).record


def test_an_image_that_nova_fetched_while_we_waited_is_returned(beside_nova: Store) -> None:
    (beside_nova.root.parent / "locks").mkdir()
    staged = stage(beside_nova, b"content")
    record = record_of(staged)
    with start(nova_holds, _nova_lock(beside_nova), beside_nova.root / NAME) as nova, ThreadPoolExecutor(1) as pool:
        assert "held" == nova.hear()
        waiting = pool.submit(images.publish, replace(beside_nova, lock_timeout=LONG), staged, NAME, record)
        nova.say("write")
        assert waiting.result(LONG).record is None
    assert b"content" == staged.read_bytes()


@pytest.mark.component("strace")
def test_a_publisher_whose_lock_file_nova_removed_takes_the_new_one_and_looks_again(beside_nova: Store) -> None:
    staged = stage(beside_nova, b"content")
    marker = beside_nova.paths.used_marker(NAME)
    # Stopped when it marks the use: it holds both locks then, and has not looked at the lock file again.
    stopped = ["strace", "-qq", "-o", os.devnull, "-P", os.fspath(marker), "-e", "inject=utimensat:signal=SIGSTOP:when=1"]
    arguments = (beside_nova.root, staged, beside_nova.nova_locks)
    lock = _nova_lock(beside_nova)
    with start(publish_in_a_child, *arguments, wrapper=stopped) as publisher, ThreadPoolExecutor(1) as pool:
        while not (lock.exists() and locks.is_held(lock)):
            assert publisher.process.poll() is None
        pid = publisher.stopped()
        lock.unlink()
        with start(nova_holds, lock, beside_nova.root / NAME) as nova:
            assert "held" == nova.hear()
            os.kill(pid, signal.SIGCONT)
            answer = pool.submit(publisher.hear)
            time.sleep(0.5)
            assert not answer.done()
            assert not (beside_nova.root / NAME).exists()
            nova.say("write")
            assert "returned" == answer.result(LONG)
    assert b"content" == staged.read_bytes()


# ------------------------------------------------------------------------------------------------------------------ holding


def test_a_held_image_is_neither_published_nor_evicted_nor_taken_by_nova(beside_nova: Store) -> None:
    image = published(beside_nova, b"content")
    staged = stage(beside_nova, b"content")
    with start(nova_tries, _nova_lock(beside_nova, image.name)) as nova:
        with images.held(beside_nova, image.name) as hold:
            assert image.record == hold.image.record
            hold.confirm()
            with locks.try_exclusive(beside_nova.paths.image_lock(image.name)) as evictor:
                assert evictor is None
            with pytest.raises(LockTimeout):
                images.publish(beside_nova, staged, image.name, record_of(staged))
            nova.say()
            assert "EAGAIN" == nova.hear()
        nova.say()
        assert "held" == nova.hear()
    with locks.try_exclusive(beside_nova.paths.image_lock(image.name)) as evictor:
        assert evictor is not None


def test_an_image_is_held_by_many_at_once(beside_nova: Store) -> None:
    image = published(beside_nova, b"content")
    together = threading.Barrier(4, timeout=LONG)

    def hold(_: int) -> BaseImage:
        with images.held(beside_nova, image.name) as hold:
            together.wait()
            return hold.image

    with ThreadPoolExecutor(4) as pool:
        assert [image.record] * 4 == [held.record for held in pool.map(hold, range(4))]


def test_a_hold_whose_lock_file_nova_removed_is_lost(beside_nova: Store) -> None:
    image = published(beside_nova, b"content")
    with images.held(beside_nova, image.name) as hold:
        _nova_lock(beside_nova, image.name).unlink()
        with pytest.raises(LockLost):
            hold.confirm()


def test_a_hold_of_an_image_that_somebody_removed_without_our_lock_says_so(beside_nova: Store) -> None:
    image = published(beside_nova, b"content")
    with images.held(beside_nova, image.name) as hold:
        image.path.unlink()
        with pytest.raises(NotCached):
            hold.confirm()


def test_an_image_that_is_being_published_is_not_held(store: Store) -> None:
    image = published(store, b"content")
    with locks.exclusive(store.paths.image_lock(image.name), timeout=1), pytest.raises(LockTimeout):
        _hold(store, image.name)


def test_an_image_that_is_not_there_cannot_be_held(store: Store) -> None:
    with pytest.raises(NotCached, match=NAME):
        _hold(store, NAME)
    assert not locks.is_held(store.paths.image_lock(NAME))


# ------------------------------------------------------------------------------------------------------------------ masters


def test_a_master_of_another_version_is_replaced_and_hard_links_keep_the_old_bytes(tmp_path: Path, masters: Store) -> None:
    old = published(masters, b"old content", version="1")
    os.link(old.path, tmp_path / "delivered")
    new = published(masters, b"new content", version="2")
    assert old.name == new.name
    assert b"new content" == new.path.read_bytes()
    assert b"old content" == (tmp_path / "delivered").read_bytes()
    assert new.record is not None
    assert f"{REF.canonical}#2" == new.record.version_id
    assert old.record == decode_image_record(read_attribute(tmp_path / "delivered"))


def test_a_master_of_the_same_version_is_not_replaced(masters: Store) -> None:
    first = published(masters, b"content")
    inode = first.path.stat().st_ino
    again = published(masters, b"content")
    assert inode == again.path.stat().st_ino


def test_a_masters_time_is_recorded_and_its_use_does_not_change_it(masters: Store) -> None:
    staged = stage(masters, b"content")
    _age(staged)
    record = record_of(staged)
    image = images.publish_over(masters, staged, name_of(masters, record), record)
    images.mark_used(masters, image.name)
    assert image.record is not None
    assert OLD * 10**9 == image.record.mtime_ns == image.path.stat().st_mtime_ns


def test_a_master_that_was_written_after_its_publication_is_refused(masters: Store) -> None:
    image = published(masters, b"content")
    image.path.write_bytes(b"CONTENT")
    with pytest.raises(UnsafeImage) as caught:
        images.find(masters, image.name)
    assert "changed" == caught.value.rule


# ---------------------------------------------------------------------------------------------------------------------- use


def test_a_use_is_recorded_in_the_marker_and_in_a_base_images_time(store: Store) -> None:
    image = published(store, b"content")
    marker = store.paths.used_marker(image.name)
    _age(marker)
    _age(image.path)
    aged = images.find(store, image.name)
    assert aged is not None
    assert datetime.fromtimestamp(OLD, UTC) == aged.last_used
    before = time.time()
    images.mark_used(store, image.name)
    assert marker.stat().st_mtime >= before - 0.1
    assert image.path.stat().st_mtime >= before - 0.1
    assert 0 == marker.stat().st_size


@pytest.mark.parametrize(("marker_age", "image_age", "newest"), [(100, 200, 100), (200, 100, 100)])
def test_a_base_image_was_last_used_at_the_newer_of_its_two_times(
    store: Store, marker_age: int, image_age: int, newest: int
) -> None:
    image = published(store, b"content")
    os.utime(store.paths.used_marker(image.name), (OLD - marker_age, OLD - marker_age))
    os.utime(image.path, (OLD - image_age, OLD - image_age))
    found = images.find(store, image.name)
    assert found is not None
    assert datetime.fromtimestamp(OLD - newest, UTC) == found.last_used


def test_a_master_was_last_used_at_its_markers_time_whatever_its_own(masters: Store) -> None:
    image = published(masters, b"content")
    _age(masters.paths.used_marker(image.name))
    found = images.find(masters, image.name)
    assert found is not None
    assert datetime.fromtimestamp(OLD, UTC) == found.last_used
    masters.paths.used_marker(image.name).unlink()
    found = images.find(masters, image.name)
    assert found is not None
    assert datetime.fromtimestamp(image.path.stat().st_mtime, UTC) == found.last_used


def mark_and_say(root: str, name: str) -> None:
    store = Store(root=Path(root), kind=CacheKind.BASE)
    try:
        images.mark_used(store, name)
    except UnderlayError as error:
        tell(type(error).__name__)
    else:
        tell("marked")


@pytest.mark.component("root")
@pytest.mark.parametrize("marked_before", [True, False])
def test_a_member_of_the_group_records_a_use_of_an_image_that_it_may_not_touch(
    open_directory: Path,
    marked_before: bool,  # noqa: FBT001
) -> None:
    os.chown(open_directory, 0, 4321)
    store = laid_out(open_directory)
    image = published(store, b"content")
    _age(image.path)
    marker = store.paths.used_marker(image.name)
    _age(marker)
    if not marked_before:
        marker.unlink()
    with start(mark_and_say, store.root, image.name, user=NOBODY, groups=[4321], umask=0o077) as member:
        assert "marked" == member.hear()
    assert OLD == image.path.stat().st_mtime
    assert marker.stat().st_mtime > time.time() - 60
    assert (4321, 0o664) == (marker.stat().st_gid, marker.stat().st_mode & 0o7777)


@pytest.mark.component("root")
def test_a_use_that_cannot_be_recorded_is_an_error(open_directory: Path) -> None:
    store = laid_out(open_directory)
    image = published(store, b"content")
    with start(mark_and_say, store.root, image.name, user=NOBODY) as stranger:
        assert "CacheNotWritable" == stranger.hear()


@pytest.mark.component("root", "tmpfs")
def test_a_use_on_a_read_only_file_system_is_an_error(mounted: Callable[..., Path]) -> None:
    store = laid_out(mounted("tmpfs", 4 * MIB))
    image = published(store, b"content")
    subprocess.run(["mount", "-o", "remount,ro", store.root], check=True)
    assert images.find(store, image.name) is not None
    with pytest.raises(CacheNotWritable):
        images.mark_used(store, image.name)


# ------------------------------------------------------------------------------------------------------------------ digests


def _digest(algorithm: str, content: bytes) -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


def test_a_recorded_digest_is_known_without_reading_the_image(store: Store) -> None:
    image = published(store, b"content")
    image.path.write_bytes(b"CONTENT")
    assert _digest("sha256", b"content") == images.digest_of(store, image, "sha256")


def test_a_digest_of_another_kind_is_computed_from_bytes_that_are_as_served(store: Store) -> None:
    image = published(store, b"content")
    assert _digest("sha512", b"content") == images.digest_of(store, image, "sha512")


def test_a_converted_image_does_not_tell_the_digests_of_what_was_served(store: Store) -> None:
    staged = stage(store, b"content")
    record = record_of(staged, as_served=False)
    image = images.publish(store, staged, name_of(store, record), record)
    assert images.digest_of(store, image, "sha512") is None
    assert _digest("sha256", b"content") == images.digest_of(store, image, "sha256")


def test_a_learned_digest_is_recorded_once_and_leaves_the_bytes_alone(store: Store) -> None:
    staged = stage(store, b"content")
    record = record_of(staged, as_served=False)
    image = images.publish(store, staged, name_of(store, record), record)
    learned = _digest("sha512", b"what was served")
    for _ in range(2):
        images.learn_digest(store, image.name, learned, version_id=record.version_id)
    found = images.find(store, image.name)
    assert found is not None
    assert replace(record, digests=(*record.digests, str(learned))) == found.record
    assert learned == images.digest_of(store, found, "sha512")
    assert b"content" == image.path.read_bytes()


def test_a_digest_of_another_version_is_not_learned(store: Store) -> None:
    image = published(store, b"content")
    images.learn_digest(store, image.name, _digest("sha512", b"other"), version_id="another")
    assert image == images.find(store, image.name)


def test_a_digest_of_nothing_is_not_learned(store: Store) -> None:
    with pytest.raises(NotCached):
        images.learn_digest(store, NAME, _digest("sha512", b"content"), version_id="1")


# ---------------------------------------------------------------------------------------------------- through the whole house


def _host(root: Path, *, kind: CacheKind = CacheKind.BASE) -> Host:
    (root / "cache").mkdir(exist_ok=True)
    text = f'[caches.one]\nkind = "{kind}"\npath = "{root}/cache"\n[sources.file]\nallowed_paths = ["{root}"]\n'
    return Host.open(parse_config(f'[instances]\npath = "{root}/instances"\n{text}', origin=root / "underlay.toml"))


@pytest.mark.component("root", "ramfs")
def test_a_file_system_without_attributes_serves_images_by_name(mounted: Callable[..., Path]) -> None:
    root = mounted("ramfs")
    content = os.urandom(MIB)
    (root / "image").write_bytes(content)
    host = _host(root)
    fetched = host.fetch(f"file://{root}/image")
    assert "fetched" == fetched.reason.code
    assert fetched.image.record is None
    assert ("raw", MIB) == (fetched.image.format, fetched.image.virtual_size)
    assert content == fetched.image.path.read_bytes()
    again = host.fetch(f"file://{root}/image", checksum=_digest("sha512", content))
    assert "revalidated" == again.reason.code
    assert fetched.image.path == again.image.path
    by_digest = host.fetch(f"file://{root}/image", checksum=_digest("sha256", content))
    assert "hit" == by_digest.reason.code
    with pytest.raises(UnderlayError, match="digest"):
        host.fetch(f"file://{root}/image", checksum=_digest("sha512", b"other"))
    assert [fetched.image.name] == [image.name for image in host.images()[0]]


def test_an_image_of_another_version_under_a_crafted_name_is_never_served(tmp_path: Path) -> None:
    host = _host(tmp_path)
    for name in ("wanted", "other"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    wanted = host.ensure(f"file://{tmp_path}/wanted")
    other = host.ensure(f"file://{tmp_path}/other")
    wanted.path.unlink()
    os.rename(other.path, wanted.path)  # with its record, which says what it is
    with pytest.raises(ImageConflict):
        host.ensure(f"file://{tmp_path}/wanted")
    assert b"other" * 100 == wanted.path.read_bytes()
    wanted.path.unlink()
    assert b"wanted" * 100 == host.ensure(f"file://{tmp_path}/wanted").path.read_bytes()


def test_a_crafted_record_does_not_make_a_file_another_version(tmp_path: Path) -> None:
    host = _host(tmp_path)
    (tmp_path / "wanted").write_bytes(b"wanted")
    wanted = host.ensure(f"file://{tmp_path}/wanted")
    assert wanted.record is not None
    os.setxattr(wanted.path, ATTRIBUTE, encode_record(replace(wanted.record, version_id=wanted.record.version_id + "0")))
    with pytest.raises(ImageConflict):
        host.ensure(f"file://{tmp_path}/wanted")


def test_an_image_that_was_truncated_is_not_served(tmp_path: Path) -> None:
    host = _host(tmp_path)
    (tmp_path / "image").write_bytes(bytes(MIB))
    image = host.ensure(f"file://{tmp_path}/image")
    os.truncate(image.path, MIB // 2)
    with pytest.raises(UnsafeImage):
        host.ensure(f"file://{tmp_path}/image")
    assert staging_of(host.parts.store_of(image), parse_ref(f"file://{tmp_path}/image")).directory.exists() is False


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize(("tool_format", "suffix"), [("vpc", "vpc"), ("vmdk", "vmdk"), ("vdi", "vdi"), ("vhdx", "vhdx")])
def test_an_unrecorded_image_has_the_virtual_size_that_qemu_tells(tmp_path: Path, tool_format: str, suffix: str) -> None:
    store = laid_out(tmp_path / "as-served", force_raw=False)
    path = store.root / f"{'a' * 40}.{suffix}"
    subprocess.run(["qemu-img", "create", "-q", "-f", tool_format, path, "64M"], check=True)
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output", "json", "-f", tool_format, path]))

    found = images.find(store, path.name)

    assert found is not None
    assert (tool_format, told["virtual-size"]) == (found.format, found.virtual_size)
