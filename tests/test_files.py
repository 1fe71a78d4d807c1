"""Files that survive: creation, replacement, renames, copies with their holes, attributes, and which space a path draws on."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from children import NOBODY, start, tell, told
from underlay import files, filesystems
from underlay.errors import CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed

Mounted = Callable[..., Path]

BLOCK = 1 << 16
KINDS = [pytest.param(kind, marks=pytest.mark.component("root", kind)) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "ramfs")]


@pytest.fixture
def any_file_system(request: pytest.FixtureRequest, mounted: Mounted) -> Path:
    return mounted(request.param)


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, InsufficientSpace),
        (errno.EDQUOT, InsufficientSpace),
        (errno.EROFS, CacheNotWritable),
        (errno.EACCES, CacheNotWritable),
        (errno.EPERM, CacheNotWritable),
        (errno.ENOENT, CacheMissing),
        (errno.ENOTDIR, CacheMissing),
        (errno.EIO, StorageFailed),
    ],
)
def test_a_storage_error_is_the_one_that_says_what_to_do(tmp_path: Path, number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, files.translated(tmp_path, needed=5):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_full_file_system_is_reported_with_what_was_needed_and_what_is_free(tmp_path: Path) -> None:
    with pytest.raises(InsufficientSpace) as caught, files.translated(tmp_path, needed=5):
        raise OSError(errno.ENOSPC, "full")
    assert 5 == caught.value.needed
    assert caught.value.free > 0


def test_what_is_free_is_told_of_the_place_of_a_file_that_does_not_exist(tmp_path: Path) -> None:
    error = files.storage_error(OSError(errno.ENOSPC, "full"), tmp_path / "missing/file")
    assert isinstance(error, InsufficientSpace)
    assert error.free > 0


def test_an_error_of_a_descriptor_is_told_of_its_path(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=str(tmp_path)), files.translated(tmp_path):
        raise OSError(errno.EIO, "failed", 7)


# ---------------------------------------------------------------------------------------------------------------- creation


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
@pytest.mark.usefixtures("umask_077")
def test_a_file_has_the_wanted_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    fd = files.create(tmp_path / "file", mode)
    os.close(fd)
    assert mode == (tmp_path / "file").stat().st_mode & 0o7777


def test_a_created_file_can_be_written_and_read_and_is_not_inherited(tmp_path: Path) -> None:
    fd = files.create(tmp_path / "file", 0o600)
    try:
        os.write(fd, b"content")
        assert b"content" == os.pread(fd, 100, 0)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    assert b"content" == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink"])
def test_creation_never_takes_a_name_that_is_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "taken"
    _make(path, kind)
    before = path.lstat()
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(FileExistsError):
        files.create(path, 0o600)
    assert before == path.lstat()
    assert [path.name] == [name for name in os.listdir(tmp_path) if not name.startswith("target")]
    assert len(descriptors) >= len(os.listdir("/proc/self/fd"))


def test_creation_in_a_missing_directory_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.create(tmp_path / "missing" / "file", 0o600)
    assert str(tmp_path / "missing") == str(caught.value.filename)


@pytest.mark.component("root")
@pytest.mark.usefixtures("umask_077")
def test_what_root_makes_belongs_to_the_directorys_owner_and_group(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 5678)
    os.close(files.create(tmp_path / "file", 0o644))
    files.make_directory(tmp_path / "directory", 0o2775)
    files.write_durably(tmp_path / "record", b"record", mode=0o644)
    with (tmp_path / "tool's").open("w") as made_by_a_tool:
        files.adopt(made_by_a_tool.fileno(), tmp_path, 0o640)
    for name, mode in (("file", 0o644), ("directory", 0o2775), ("record", 0o644), ("tool's", 0o640)):
        status = (tmp_path / name).stat()
        assert (name, 1234, 5678, mode) == (name, status.st_uid, status.st_gid, status.st_mode & 0o7777)


def create_as_a_member(directory: str) -> None:
    os.close(files.create(Path(directory) / "file", 0o664))
    files.make_directory(Path(directory) / "directory", 0o2775)
    tell("made")


@pytest.mark.component("root")
@pytest.mark.parametrize("setgid", [0o2000, 0])
def test_what_a_member_of_the_group_makes_belongs_to_the_group(open_directory: Path, setgid: int) -> None:
    directory = open_directory / "shared"
    directory.mkdir()
    os.chown(directory, 0, 4321)
    directory.chmod(0o775 | setgid)
    with start(create_as_a_member, directory, user=NOBODY, groups=[4321], umask=0o077) as member:
        assert "made" == member.hear()
    for name, mode in (("file", 0o664), ("directory", 0o2775)):
        status = (directory / name).stat()
        assert (name, NOBODY, 4321, mode) == (name, status.st_uid, status.st_gid, status.st_mode & 0o7777)


@pytest.mark.component("root")
def test_who_is_no_member_of_the_group_makes_files_all_the_same(open_directory: Path) -> None:
    directory = open_directory / "anybody's"
    directory.mkdir()
    directory.chmod(0o777)
    with start(create_as_a_member, directory, user=NOBODY) as stranger:
        assert "made" == stranger.hear()
    assert (NOBODY, NOBODY) == ((directory / "file").stat().st_uid, (directory / "file").stat().st_gid)


@pytest.mark.component("root", "mqueue")
@pytest.mark.usefixtures("umask_077")
def test_a_file_system_without_unnamed_files_has_files_created_by_name(tmp_path: Path) -> None:
    directory = tmp_path / "queues"
    directory.mkdir()
    with _mount("mqueue", "mqueue", directory):
        with pytest.raises(OSError):
            os.open(directory, os.O_RDWR | os.O_TMPFILE, 0o600)
        path = directory / f"underlay-{os.getpid()}"  # all mounts of this kind show the same queues
        os.close(files.create(path, 0o664))
        try:
            assert 0o664 == path.stat().st_mode & 0o7777
            with pytest.raises(FileExistsError):
                files.create(path, 0o664)
        finally:
            path.unlink()


def test_a_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    assert files.make_directory(tmp_path / "directory", 0o755)
    (tmp_path / "directory").chmod(0o700)
    assert not files.make_directory(tmp_path / "directory", 0o755)
    assert 0o700 == (tmp_path / "directory").stat().st_mode & 0o7777


@pytest.mark.component("root")
def test_a_directory_of_ours_gets_what_a_crash_kept_from_it(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 5678)
    (tmp_path / "directory").mkdir(mode=0o700)
    os.chown(tmp_path / "directory", 1234, 0)
    assert not files.keep_directory(tmp_path / "directory", 0o2775)
    status = (tmp_path / "directory").stat()
    assert (1234, 5678, 0o2775) == (status.st_uid, status.st_gid, status.st_mode & 0o7777)
    assert files.keep_directory(tmp_path / "other", 0o2775)


def keep_as_a_stranger(directory: str) -> None:
    tell(str(files.keep_directory(Path(directory), 0o2775)))


@pytest.mark.component("root")
def test_another_users_directory_is_left_as_it_is(open_directory: Path) -> None:
    (open_directory / "directory").mkdir(mode=0o755)
    with start(keep_as_a_stranger, open_directory / "directory", user=NOBODY) as stranger:
        assert "False" == stranger.hear()
    assert 0o755 == (open_directory / "directory").stat().st_mode & 0o7777


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink"])
def test_what_is_no_directory_is_not_kept_as_one(tmp_path: Path, kind: str) -> None:
    _make(tmp_path / "name", kind)
    with pytest.raises(NotADirectoryError):
        files.keep_directory(tmp_path / "name", 0o755)


# -------------------------------------------------------------------------------------------------------------- replacement


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    for write in (files.write_durably, files.write_in_place_of):
        write(tmp_path / "record", b"a longer first content", mode=0o644)
        write(tmp_path / "record", b"second", mode=0o600)
        assert b"second" == (tmp_path / "record").read_bytes()
        assert 0o600 == (tmp_path / "record").stat().st_mode & 0o7777
        assert ["record"] == os.listdir(tmp_path)


def test_what_a_crash_left_beside_a_record_is_replaced_with_it(tmp_path: Path) -> None:
    (tmp_path / ".record.new").write_bytes(b"half of a rec")
    files.write_durably(tmp_path / "record", b"record", mode=0o644)
    assert ["record"] == os.listdir(tmp_path)
    assert b"record" == (tmp_path / "record").read_bytes()


@pytest.mark.component("root", "tmpfs")
@pytest.mark.parametrize("write", [files.write_durably, files.write_in_place_of])
def test_a_record_that_does_not_fit_leaves_the_old_one_and_nothing_else(mounted: Mounted, write: Callable[..., None]) -> None:
    directory = mounted("tmpfs", 1 << 20)
    write(directory / "record", b"old", mode=0o644)
    with pytest.raises(OSError) as caught:  # the kernel takes a first part of it and refuses the rest
        write(directory / "record", bytes(2 << 20), mode=0o644)
    assert errno.ENOSPC == caught.value.errno
    assert ["record"] == os.listdir(directory)
    assert b"old" == (directory / "record").read_bytes()


def test_a_tree_is_removed_and_one_that_is_gone_is_a_success(tmp_path: Path) -> None:
    directory = tmp_path / "tree"
    directory.mkdir()
    for name in ("one", "two"):
        (directory / name).touch()
    (directory / "link").symlink_to(tmp_path)
    files.remove_tree(directory)
    files.remove_tree(directory)
    assert [] == os.listdir(tmp_path)


def test_a_tree_goes_with_its_directories_and_not_with_what_its_links_lead_to(tmp_path: Path) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tree / "one/two").mkdir(parents=True)
    (tree / "one/two/file").touch()
    (tree / "one/link").symlink_to(elsewhere)
    files.remove_tree(tree, nested=True)
    assert ["elsewhere"] == os.listdir(tmp_path)
    assert ["kept"] == os.listdir(elsewhere)


def test_a_tree_with_directories_is_somebody_else_s_unless_it_is_to_have_them(tmp_path: Path) -> None:
    (tmp_path / "tree/one").mkdir(parents=True)
    (tmp_path / "tree/one/file").touch()
    with pytest.raises(OSError, match="one is a directory of somebody else's"):
        files.remove_tree(tmp_path / "tree")
    assert (tmp_path / "tree/one/file").exists()


@pytest.mark.component("tmpfs")
def test_what_is_mounted_in_a_tree_stays(tmp_path: Path) -> None:
    mounted = tmp_path / "tree/one/mounted"
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        (mounted / "file").touch()
        with pytest.raises(OSError, match="mounted is a directory of somebody else's"):
            files.remove_tree(tmp_path / "tree", nested=True)
        assert (mounted / "file").exists()
    finally:
        subprocess.run(["umount", mounted], check=True)


# ------------------------------------------------------------------------------------------------------------------ renames


def test_a_rename_takes_a_free_name(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    files.rename_no_replace(tmp_path / "source", tmp_path / "target")
    assert ["target"] == os.listdir(tmp_path)
    assert b"content" == (tmp_path / "target").read_bytes()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink", "fifo"])
def test_a_rename_replaces_nothing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "source").write_bytes(b"content")
    _make(tmp_path / "taken", kind)
    before = (tmp_path / "taken").lstat()
    with pytest.raises(FileExistsError):
        files.rename_no_replace(tmp_path / "source", tmp_path / "taken")
    assert before == (tmp_path / "taken").lstat()
    assert b"content" == (tmp_path / "source").read_bytes()


def test_a_rename_of_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.rename_no_replace(tmp_path / "source", tmp_path / "target")


def test_of_many_renames_to_one_name_one_succeeds(tmp_path: Path) -> None:
    def rename(number: int) -> bool:
        (tmp_path / f"source-{number}").write_text(str(number))
        try:
            files.rename_no_replace(tmp_path / f"source-{number}", tmp_path / "target")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(rename, range(16)))
    assert 1 == won.count(True)
    assert str(won.index(True)) == (tmp_path / "target").read_text()


def rename_and_say(source: str, target: str) -> None:
    try:
        files.rename_no_replace(Path(source), Path(target))
    except OSError as error:
        tell(errno.errorcode[error.errno or 0])
    else:
        tell("renamed")
    told()


@pytest.mark.component("strace")
@pytest.mark.parametrize("answer", ["ENOSYS", "EINVAL"])
def test_without_renameat2_a_rename_links_and_unlinks(tmp_path: Path, answer: str) -> None:
    (tmp_path / "source").write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"other")
    log = tmp_path / "log"
    strace = [
        "strace",
        "-qq",
        "-o",
        os.fspath(log),
        "-e",
        "trace=renameat2,linkat,unlink",
        "-e",
        f"inject=renameat2:error={answer}",
    ]
    with start(rename_and_say, tmp_path / "source", tmp_path / "target", wrapper=strace) as child:
        assert "renamed" == child.hear()
    with start(rename_and_say, tmp_path / "other", tmp_path / "target", wrapper=strace) as child:
        assert "EEXIST" == child.hear()
    assert b"content" == (tmp_path / "target").read_bytes()
    assert 1 == (tmp_path / "target").stat().st_nlink
    assert b"other" == (tmp_path / "other").read_bytes()
    assert not (tmp_path / "source").exists()
    assert "INJECTED" in log.read_text()


@pytest.mark.component("strace")
def test_a_rename_that_the_file_system_refuses_is_not_tried_in_another_way(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    strace = ["strace", "-qq", "-o", os.devnull, "-e", "inject=renameat2:error=ENOSPC"]
    with start(rename_and_say, tmp_path / "source", tmp_path / "target", wrapper=strace) as child:
        assert "ENOSPC" == child.hear()
    assert ["source"] == os.listdir(tmp_path)


@pytest.mark.component("fuse2fs")
def test_a_file_system_that_knows_no_such_rename_is_served_too(mounted: Mounted) -> None:
    directory = mounted("fuse2fs", 16 << 20)
    for name in ("one", "two"):
        fd = files.create(directory / name, 0o644)
        os.write(fd, name.encode())
        os.close(fd)
    files.rename_no_replace(directory / "one", directory / "target")
    with pytest.raises(FileExistsError):
        files.rename_no_replace(directory / "two", directory / "target")
    assert {"target", "two"} == set(os.listdir(directory)) - {"lost+found"}
    assert b"one" == (directory / "target").read_bytes()


@pytest.mark.component("fuse2fs")
def test_where_no_such_rename_is_known_a_directory_replaces_neither_a_file_nor_a_directory(mounted: Mounted) -> None:
    directory = mounted("fuse2fs", 16 << 20)
    for name in ("one", "two"):
        (directory / name).mkdir()
        (directory / name / name).touch()
    (directory / "file").touch()
    files.rename_no_replace(directory / "one", directory / "target")
    for taken in ("target", "file"):
        with pytest.raises(FileExistsError):
            files.rename_no_replace(directory / "two", directory / taken)
    assert {"target", "two", "file"} == set(os.listdir(directory)) - {"lost+found"}
    assert ["one"] == os.listdir(directory / "target")


def test_a_directory_of_ours_is_removed_and_what_a_symlink_leads_to_is_not(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "link").symlink_to("theirs")

    files.remove_tree(tmp_path / "ours")
    files.remove_tree(tmp_path / "absent")
    with pytest.raises(OSError, match="link"):
        files.remove_tree(tmp_path / "link")

    assert {"theirs", "link"} == set(os.listdir(tmp_path))
    assert ["file"] == os.listdir(tmp_path / "theirs")


# -------------------------------------------------------------------------------------------------------------- attributes


def test_an_attribute_is_kept_and_goes_along_with_a_rename_and_a_hard_link(tmp_path: Path) -> None:
    fd = files.create(tmp_path / "file", 0o644)
    assert files.read_attribute(fd) is None
    assert files.write_attribute(fd, b"first, and longer")
    assert files.write_attribute(fd, b"record")
    assert b"record" == files.read_attribute(fd)
    os.close(fd)
    os.link(tmp_path / "file", tmp_path / "link")
    os.rename(tmp_path / "file", tmp_path / "renamed")
    assert b"record" == files.read_attribute(tmp_path / "link") == files.read_attribute(tmp_path / "renamed")


def test_an_attribute_is_not_read_through_a_symlink(tmp_path: Path) -> None:
    fd = files.create(tmp_path / "file", 0o644)
    files.write_attribute(fd, b"record")
    os.close(fd)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.read_attribute(tmp_path / "link") is None


def test_an_attribute_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_attribute(tmp_path / "missing")


@pytest.mark.parametrize(
    ("any_file_system", "kept"),
    [
        pytest.param(kind, kind != "ramfs", marks=pytest.mark.component("root", kind))
        for kind in ("ext4", "xfs", "btrfs", "ramfs")
    ],
    indirect=["any_file_system"],
)
def test_whether_a_file_system_keeps_attributes_is_told_without_writing(any_file_system: Path, kept: bool) -> None:  # noqa: FBT001
    assert kept == files.keeps_attributes(any_file_system)
    fd = files.create(any_file_system / "file", 0o644)
    assert kept == files.write_attribute(fd, b"record")
    assert (b"record" if kept else None) == files.read_attribute(fd)
    os.close(fd)


# ------------------------------------------------------------------------------------------------------------------ copying

# Where a file has data, in blocks of 64 KiB, and of how many blocks it is: with a hole in the middle, at the end, at the
# beginning; nothing but a hole; no hole; nothing at all.
LAYOUTS = {
    "middle": ((0, 3), 4, 0),
    "end": ((0,), 16, 0),
    "beginning": ((15,), 16, 0),
    "hole": ((), 16, 0),
    "whole": ((0, 1, 2, 3), 4, 0),
    "empty": ((), 0, 0),
    "uneven": ((0, 5), 5, 12345),
}


def _sparse(path: Path, layout: str) -> bytes:
    blocks, length, rest = LAYOUTS[layout]
    size = length * BLOCK + rest
    with path.open("wb") as file:
        file.truncate(size)
        for block in blocks:
            file.seek(block * BLOCK)
            file.write(os.urandom(min(BLOCK, size - block * BLOCK)))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.read_bytes()


@contextmanager
def _pair(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    source_fd, target_fd = os.open(source, os.O_RDONLY), files.create(target, 0o644)
    try:
        yield source_fd, target_fd
        os.fsync(target_fd)
    finally:
        os.close(source_fd)
        os.close(target_fd)


def _allocated(path: Path) -> int:
    return files.allocated_bytes(path.stat())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_has_the_bytes_and_the_holes(tmp_path: Path, layout: str) -> None:
    content = _sparse(tmp_path / "source", layout)
    with _pair(tmp_path / "source", tmp_path / "target") as (source, target):
        files.copy_sparse(source, target, len(content))
    assert content == (tmp_path / "target").read_bytes()
    assert _allocated(tmp_path / "source") == _allocated(tmp_path / "target")


@pytest.mark.parametrize("any_file_system", KINDS, indirect=True)
def test_a_copy_keeps_holes_on_every_file_system(any_file_system: Path) -> None:
    content = _sparse(any_file_system / "source", "middle")
    with _pair(any_file_system / "source", any_file_system / "target") as (source, target):
        files.copy_sparse(source, target, len(content))
    assert content == (any_file_system / "target").read_bytes()
    assert _allocated(any_file_system / "source") == _allocated(any_file_system / "target")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(first, second, marks=pytest.mark.component("root", first, second))
        for first, second in (("tmpfs", "ext4"), ("ext4", "xfs"), ("xfs", "btrfs"), ("btrfs", "tmpfs"), ("xfs", "xfs"))
    ],
)
def test_a_copy_to_another_file_system_keeps_holes(mounted: Mounted, first: str, second: str) -> None:
    source_path, target_path = mounted(first) / "source", mounted(second) / "target"
    content = _sparse(source_path, "middle")
    with _pair(source_path, target_path) as (source, target):
        files.copy_sparse(source, target, len(content))
    assert content == target_path.read_bytes()
    assert _allocated(target_path) <= 2 * BLOCK + 4096


@pytest.mark.parametrize(
    ("any_file_system", "shares"),
    [
        pytest.param(kind, kind in ("xfs", "btrfs"), marks=pytest.mark.component("root", kind))
        for kind in ("ext4", "xfs", "btrfs", "tmpfs")
    ],
    indirect=["any_file_system"],
)
def test_blocks_are_shared_where_the_file_system_can(any_file_system: Path, shares: bool) -> None:  # noqa: FBT001
    size = 32 << 20
    (any_file_system / "source").write_bytes(os.urandom(size))
    os.sync()
    before = filesystems.free_bytes(any_file_system)
    with _pair(any_file_system / "source", any_file_system / "target") as (source, target):
        files.copy_sparse(source, target, size)
    os.sync()
    assert shares == (before - filesystems.free_bytes(any_file_system) < size // 2)
    assert (any_file_system / "source").read_bytes() == (any_file_system / "target").read_bytes()


@pytest.mark.parametrize("any_file_system", KINDS, indirect=True)
def test_only_the_wanted_beginning_is_copied(any_file_system: Path) -> None:
    content = _sparse(any_file_system / "source", "beginning")
    for size in (BLOCK, 15 * BLOCK + 5):  # a size within the first hole, a size within the data behind it
        (any_file_system / "target").unlink(missing_ok=True)
        with _pair(any_file_system / "source", any_file_system / "target") as (source, target):
            files.copy_sparse(source, target, size)
        assert content[:size] == (any_file_system / "target").read_bytes()


def test_a_source_that_is_shorter_than_said_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(BLOCK - 1) + b"x")
    with pytest.raises(OSError) as caught, _pair(tmp_path / "source", tmp_path / "target") as (source, target):
        files.copy_sparse(source, target, 2 * BLOCK)
    assert errno.EIO == caught.value.errno


def copy_and_say(source_path: str, target_path: str) -> None:
    with _pair(Path(source_path), Path(target_path)) as (source, target):
        files.copy_sparse(source, target, os.fstat(source).st_size)
    tell("copied")
    told()


@pytest.mark.component("strace")
@pytest.mark.parametrize(
    "injected",
    [
        ["copy_file_range:error=EXDEV"],
        ["copy_file_range:error=EINVAL"],
        ["copy_file_range:retval=0"],  # what FUSE and procfs answer for a file that they cannot copy from
        ["copy_file_range:error=EOPNOTSUPP", "sendfile:error=EINVAL"],
    ],
    ids=" ".join,
)
def test_a_copy_falls_back_to_what_works(tmp_path: Path, injected: list[str]) -> None:
    content = _sparse(tmp_path / "source", "uneven")
    log = tmp_path / "log"
    faults = [option for fault in injected for option in ("-e", f"inject={fault}")]
    strace = ["strace", "-qq", "-o", os.fspath(log), "-e", "trace=copy_file_range,sendfile", *faults]
    with start(copy_and_say, tmp_path / "source", tmp_path / "target", wrapper=strace) as child:
        assert "copied" == child.hear()
    assert content == (tmp_path / "target").read_bytes()
    assert _allocated(tmp_path / "source") == _allocated(tmp_path / "target")
    assert all(f"{fault.split(':')[0]}(" in log.read_text() for fault in injected)
    assert "INJECTED" in log.read_text()


@pytest.mark.component("root", "fuse2fs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_holes_cannot_be_found_zeros_are_left_out(mounted: Mounted, tmp_path: Path, layout: str) -> None:
    directory = mounted("fuse2fs", 32 << 20)
    content = _sparse(directory / "source", layout)
    with (directory / "source").open("rb") as file:
        assert ([(0, len(content))] if content else []) == list(files.data_extents(file.fileno(), len(content)))
    with _pair(directory / "source", tmp_path / "target") as (source, target):
        files.copy_sparse(source, target, len(content))
    assert content == (tmp_path / "target").read_bytes()
    assert _allocated(tmp_path / "target") <= _allocated(directory / "source") + 4096


def copy_and_fail(source_path: str, target_path: str) -> None:
    try:
        with _pair(Path(source_path), Path(target_path)) as (source, target):
            files.copy_sparse(source, target, os.fstat(source).st_size)
    except OSError as error:
        tell(errno.errorcode[error.errno or 0])
    told()


@pytest.mark.component("strace")
@pytest.mark.parametrize("answer", ["EIO", "ENOSPC"])
def test_a_copy_that_fails_is_not_tried_in_another_way(tmp_path: Path, answer: str) -> None:
    _sparse(tmp_path / "source", "middle")
    strace = ["strace", "-qq", "-o", os.devnull, "-e", f"inject=copy_file_range:error={answer}"]
    with start(copy_and_fail, tmp_path / "source", tmp_path / "target", wrapper=strace) as child:
        assert answer == child.hear()


def test_the_data_of_a_file_is_found_between_its_holes(tmp_path: Path) -> None:
    _sparse(tmp_path / "file", "middle")
    with (tmp_path / "file").open("rb") as file:
        found = list(files.data_extents(file.fileno(), 4 * BLOCK))
        assert [(0, BLOCK), (3 * BLOCK, 4 * BLOCK)] == found
        assert [(0, BLOCK)] == list(files.data_extents(file.fileno(), 2 * BLOCK))
        assert [(0, 7)] == list(files.data_extents(file.fileno(), 7))


# ------------------------------------------------------------------------------------------------------------------- costs


def test_a_hole_occupies_nothing(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 30)
    assert 0 == _allocated(tmp_path / "file")


# --------------------------------------------------------------------------------------------------------- plain files only


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("symlink", errno.ELOOP),
        ("dangling symlink", errno.ELOOP),
        ("directory", errno.EINVAL),
        ("fifo", errno.EINVAL),
        ("socket", errno.ENXIO),
        ("nothing", errno.ENOENT),
    ],
)
def test_only_a_plain_file_is_opened(short_directory: Path, kind: str, number: int) -> None:
    path = short_directory / "name"
    _make(path, kind)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        files.open_regular(path)
    assert number == caught.value.errno
    assert descriptors >= len(os.listdir("/proc/self/fd"))


def lease_for_a_moment(path: str) -> None:
    """Holds a lease, as a look at who has the file open does, and gives it up when somebody wants the file."""
    fd = os.open(path, os.O_RDWR)
    broken = []
    signal.signal(signal.SIGUSR1, lambda *_: broken.append(fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)))
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGUSR1)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    tell("leased")
    while not broken:
        time.sleep(0.01)
    tell("broken")


def test_a_file_that_somebody_looks_at_by_a_lease_is_opened_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with start(lease_for_a_moment, path) as other:
        assert "leased" == other.hear()
        fd = files.open_regular(path)
        assert b"content" == os.pread(fd, 100, 0)
        os.close(fd)
        assert "broken" == other.hear()


# --------------------------------------------------------------------------------------------------------------- for tests


def _make(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_bytes(b"something else")
        case "directory":
            path.mkdir()
        case "symlink":
            (path.parent / "target").touch()
            path.symlink_to("target")
        case "dangling symlink":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.fspath(path))
        case "nothing":
            pass
        case _:
            raise AssertionError(kind)


@contextmanager
def _mount(kind: str, source: str, target: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *(() if kind == "none" else ("-t", kind)), *options, source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


# -------------------------------------------------------------------------------------------------------------- reading it all


@pytest.fixture
def in_short_answers() -> Iterator[int]:
    """A file that answers each read with less than a page, as the kernel's own do (seq_file)."""
    fd = os.open("/proc/kallsyms", os.O_RDONLY)
    try:
        assert len(os.pread(fd, BLOCK, 0)) < BLOCK
        yield fd
    finally:
        os.close(fd)


def test_a_read_goes_on_after_a_short_answer(in_short_answers: int) -> None:
    with open("/proc/kallsyms", "rb") as file:
        expected = file.read(2 * BLOCK)[BLOCK + 7 :]
    buffer = bytearray(len(expected))

    assert len(expected) == files.read_full(in_short_answers, memoryview(buffer), BLOCK + 7)
    assert expected == buffer == files.read_padded(in_short_answers, len(expected), BLOCK + 7)


def test_only_behind_the_end_of_a_file_is_there_padding(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        assert b"tent\0\0" == files.read_padded(file.fileno(), 6, 3)
        assert bytes(4) == files.read_padded(file.fileno(), 4, 7)
        assert 4 == files.read_full(file.fileno(), memoryview(bytearray(6)), 3)


_RENAME = """
import sys
from pathlib import Path
from underlay.files import rename_no_replace
try:
    rename_no_replace(Path(sys.argv[1]), Path(sys.argv[2]))
except FileExistsError as error:
    sys.exit(17 if error.filename in (sys.argv[1], sys.argv[2]) else 1)
"""


@pytest.mark.component("strace")
@pytest.mark.parametrize("target", ["nothing", "empty directory", "full directory", "file", "symlink"])
def test_a_directory_replaces_nothing_where_there_is_no_rename_that_refuses_to(tmp_path: Path, target: str) -> None:
    source, path = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    match target:
        case "empty directory" | "full directory":
            path.mkdir()
            if target == "full directory":
                (path / "file").touch()
        case "file":
            path.touch()
        case "symlink":
            path.symlink_to("nowhere")
    before = os.lstat(path).st_ino if target != "nothing" else source.stat().st_ino
    strace = ["strace", "-qq", "-o", os.devnull, "-e", "trace=renameat2", "-e", "inject=renameat2:error=EINVAL"]

    ended = subprocess.run([*strace, sys.executable, "-c", _RENAME, source, path], check=False)

    assert ended.returncode == (0 if target == "nothing" else 17)
    assert before == os.lstat(path).st_ino
    assert source.exists() == (target != "nothing")
