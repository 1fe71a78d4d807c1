"""Images from this host's files: which of them are allowed, what describes them, and that a change never goes unseen."""

import hashlib
import itertools
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from underlay.config import parse_config
from underlay.contracts import ByteStream, ClonableStream
from underlay.errors import ImageNotFound, NotAuthorized, SourceChanged, SourceError, SourceRefused
from underlay.extents import own_bytes
from underlay.host import Host
from underlay.model import ImageRef
from underlay.refs import parse_ref
from underlay.sources.file import FileSource


def ref_of(path: Path | str) -> ImageRef:
    return parse_ref(f"file://{path}")


def allowing(*paths: Path) -> FileSource:
    return FileSource(allowed_paths=paths)


def contents(stream: ByteStream, *, piece: int = 4096) -> bytes:
    buffer, found = memoryview(bytearray(piece)), b""
    while length := stream.readinto(buffer):
        found += buffer[:length]
    return found


def fetched(source: FileSource, ref: ImageRef, *, offset: int = 0) -> bytes:
    with source.open(source.describe(ref), offset=offset) as stream:
        return contents(stream)


# ----------------------------------------------------------------------------------------------------------------- the bytes


def test_a_file_is_described_by_its_size_and_served_whole(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(os.urandom(10_000))
    source = allowing(tmp_path)
    version = source.describe(ref_of(file))
    assert (10_000, None, ()) == (version.size, version.id, version.digests)
    assert file.read_bytes() == fetched(source, ref_of(file))


def test_bytes_are_served_from_an_offset_on(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(bytes(range(256)) * 64)
    assert file.read_bytes()[5000:] == fetched(allowing(tmp_path), ref_of(file), offset=5000)
    assert b"" == fetched(allowing(tmp_path), ref_of(file), offset=file.stat().st_size)


def test_an_empty_file_is_served_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    source = allowing(tmp_path)
    assert 0 == source.describe(ref_of(tmp_path / "empty")).size
    assert b"" == fetched(source, ref_of(tmp_path / "empty"))


def test_a_ref_with_percent_signs_names_the_file_with_the_characters(tmp_path: Path) -> None:
    file = tmp_path / "ein Bild #1 100%?.img"
    file.write_bytes(b"content")
    ref = parse_ref(f"file://{tmp_path}/ein%20Bild%20%231%20100%25%3F.img")
    assert b"content" == fetched(allowing(tmp_path), ref)
    assert ref.canonical == f"file://{tmp_path}/ein%20Bild%20%231%20100%25%3F.img"


def test_a_version_is_named_by_the_ref_and_the_digest_and_never_by_the_ref_alone(tmp_path: Path) -> None:
    source, ref = allowing(tmp_path), ref_of(tmp_path / "image")
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert f"file://{tmp_path}/image#sha256:{sha256}" == source.version_id(ref, sha256)
    assert source.fixed_id(ref) is None


# ------------------------------------------------------------------------------------------------------------ what is allowed


def refused(source: FileSource, ref: ImageRef) -> SourceError:
    with pytest.raises(SourceRefused) as caught:
        source.describe(ref)
    return caught.value


def test_nothing_is_allowed_unless_the_configuration_says_so(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    error = refused(FileSource(), ref_of(tmp_path / "image"))
    assert "outside the allowed paths" in error.message
    assert error.hint is not None
    assert "allowed_paths" in error.hint


def test_a_file_outside_the_allowed_paths_is_refused_even_when_their_names_begin_alike(tmp_path: Path) -> None:
    for name in ("images", "images-secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").write_bytes(b"content")
    source = allowing(tmp_path / "images")
    assert b"content" == fetched(source, ref_of(tmp_path / "images" / "image"))
    refused(source, ref_of(tmp_path / "images-secret" / "image"))


def test_a_symlink_is_followed_to_a_file_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "image-1").write_bytes(b"content")
    (tmp_path / "latest").symlink_to("image-1")
    assert b"content" == fetched(allowing(tmp_path), ref_of(tmp_path / "latest"))


def test_a_symlink_out_of_the_allowed_paths_is_refused(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (allowed / "image").symlink_to(tmp_path / "secret")
    (allowed / "directory").symlink_to(tmp_path)
    for path in (allowed / "image", allowed / "directory" / "secret"):
        assert "secret" not in refused(allowing(allowed), ref_of(path)).message.removeprefix(f"file://{path}")


def test_an_allowed_path_may_itself_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "disk2").mkdir()
    (tmp_path / "disk2" / "image").write_bytes(b"content")
    (tmp_path / "images").symlink_to("disk2")
    assert b"content" == fetched(allowing(tmp_path / "images"), ref_of(tmp_path / "images" / "image"))


def test_what_is_not_allowed_is_refused_alike_whether_it_exists_or_not(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    there, absent = (refused(FileSource(), ref_of(tmp_path / name)).message for name in ("there", "absent"))
    assert there.replace("/there ", "/absent ") == absent


def test_a_path_that_is_not_allowed_is_not_even_opened(tmp_path: Path) -> None:
    """Opening alone can set a device going; here it would let a FIFO's writer through."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: os.close(os.open(fifo, os.O_WRONLY)))
    writer.start()
    try:
        refused(FileSource(), ref_of(fifo))
        writer.join(0.3)
        assert writer.is_alive()
    finally:
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        writer.join()


@pytest.mark.parametrize("path", ["/etc/hostname", "/etc/none", "/boot/vmlinuz", "/run/none", "/dev/shm/none", "/dev/zero"])
def test_a_wide_allowed_path_does_not_reach_into_the_systems_directories(path: str) -> None:
    assert "outside the allowed paths" in refused(allowing(Path("/")), ref_of(path)).message


def test_a_systems_directory_is_allowed_by_its_own_name() -> None:
    assert Path("/etc/passwd").read_bytes() == fetched(allowing(Path("/"), Path("/etc")), ref_of("/etc/passwd"))


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/version", "/sys/kernel/uevent_seqnum"])
def test_the_kernels_files_are_no_images_whatever_is_allowed(path: str) -> None:
    refused(allowing(Path("/"), Path("/proc"), Path("/sys"), Path(path)), ref_of(path))


@pytest.mark.component("root")
@pytest.mark.parametrize(("kind", "name"), [("proc", "version"), ("sysfs", "kernel/uevent_seqnum")])
def test_the_kernels_files_are_no_images_wherever_they_are_mounted(tmp_path: Path, kind: str, name: str) -> None:
    subprocess.run(["mount", "-t", kind, kind, tmp_path], check=True)
    try:
        assert (tmp_path / name).read_bytes()
        assert "not a plain file" in refused(allowing(tmp_path), ref_of(tmp_path / name)).message
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_symlink_into_a_systems_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").symlink_to("chain")
    (tmp_path / "chain").symlink_to("/etc/passwd")
    (tmp_path / "process").symlink_to("/proc/self")
    refused(allowing(Path("/")), ref_of(tmp_path / "image"))
    refused(allowing(Path("/")), ref_of(tmp_path / "process/environ"))


def test_what_a_cache_keeps_for_itself_is_no_image(tmp_path: Path) -> None:
    (tmp_path / ".underlay" / "tmp").mkdir(parents=True)
    (tmp_path / ".underlay" / "tmp" / "download").write_bytes(b"half of it")
    (tmp_path / "link").symlink_to(".underlay/tmp/download")
    refused(allowing(tmp_path), ref_of(tmp_path / ".underlay" / "tmp" / "download"))
    refused(allowing(tmp_path), ref_of(tmp_path / "link"))


def test_a_path_that_is_swapped_meanwhile_never_leads_out_of_the_allowed_ones(tmp_path: Path) -> None:
    for name in ("allowed", "secret"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "image").write_bytes(name.encode())
    swapped, ended = tmp_path / "allowed" / "swapped", threading.Event()
    swapped.symlink_to("inside")

    def swap() -> None:
        targets = itertools.cycle([f"{tmp_path}/secret/inside", "inside"])
        while not ended.is_set():
            (tmp_path / "next").symlink_to(next(targets))
            (tmp_path / "next").rename(swapped)

    swapping = threading.Thread(target=swap)
    swapping.start()
    source, deadline = allowing(tmp_path / "allowed"), time.monotonic() + 20
    outcomes: set[bytes] = set()
    try:
        while (len(outcomes) < 2 or time.monotonic() < deadline - 19) and time.monotonic() < deadline:
            try:
                outcomes.add(fetched(source, ref_of(swapped / "image")))
            except (SourceRefused, SourceChanged):
                outcomes.add(b"refused")
    finally:
        ended.set()
        swapping.join()
    assert {b"allowed", b"refused"} == outcomes


# ---------------------------------------------------------------------------------------------------------- what is no image


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("gone")
    for name in ("gone", "dangling", "file/below"):
        with pytest.raises(ImageNotFound, match="does not exist"):
            allowing(tmp_path).describe(ref_of(tmp_path / name))


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    assert "not a plain file" in refused(allowing(tmp_path), ref_of(tmp_path / "directory")).message


def test_a_fifo_is_no_image_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    started = time.monotonic()
    assert "not a plain file" in refused(allowing(tmp_path), ref_of(tmp_path / "fifo")).message
    assert time.monotonic() - started < 5


def test_what_is_no_plain_file_is_not_even_opened(tmp_path: Path) -> None:
    """Its writer goes on waiting for a reader."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    writer = threading.Thread(target=lambda: os.close(os.open(tmp_path / "fifo", os.O_WRONLY)))
    writer.start()
    try:
        refused(allowing(tmp_path), ref_of(tmp_path / "fifo"))
        writer.join(0.3)
        assert writer.is_alive()
    finally:
        os.close(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))
        writer.join()


@pytest.mark.component("root")
def test_a_device_in_an_allowed_directory_is_no_image(tmp_path: Path) -> None:
    os.mknod(tmp_path / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    assert "not a plain file" in refused(allowing(tmp_path), ref_of(tmp_path / "zero")).message


def test_a_socket_is_no_image(short_directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(short_directory / "socket"))
        assert "not a plain file" in refused(allowing(short_directory), ref_of(short_directory / "socket")).message


def test_a_device_is_no_image() -> None:
    assert "not a plain file" in refused(allowing(Path("/dev")), ref_of("/dev/zero")).message


def test_a_loop_of_symlinks_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "not a plain file" in refused(allowing(tmp_path), ref_of(tmp_path / "a")).message


def describe_and_tell(path: str) -> None:
    try:
        allowing(Path("/")).describe(ref_of(path))
    except NotAuthorized as error:
        tell(error.message)


@pytest.mark.component("root")
def test_a_file_that_we_may_not_read_is_not_authorised(short_directory: Path) -> None:
    short_directory.chmod(0o755)
    (short_directory / "image").write_bytes(b"content")
    (short_directory / "image").chmod(0o600)
    with start(describe_and_tell, short_directory / "image", user=NOBODY) as child:
        assert f"file://{short_directory}/image may not be read" == child.hear()
        child.end()


# ------------------------------------------------------------------------------------------------------- what changes meanwhile


def test_the_same_file_has_the_same_validator_each_time(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"content")
    source = allowing(tmp_path)
    assert source.describe(ref_of(tmp_path / "image")) == source.describe(ref_of(tmp_path / "image"))


def test_a_rewrite_of_the_same_length_right_after_the_description_has_another_validator(tmp_path: Path) -> None:
    """A clock that moves in steps gives two writes of one step the same time, so a file that is too young is waited for."""
    file, source = tmp_path / "image", allowing(tmp_path)
    for _ in range(50):
        file.write_bytes(b"content")
        before = source.describe(ref_of(file)).validator
        with file.open("r+b") as rewritten:
            rewritten.write(b"CONTENT")
        assert before != source.describe(ref_of(file)).validator


def test_a_file_that_was_replaced_after_its_description_is_refused(tmp_path: Path) -> None:
    file, source = tmp_path / "image", allowing(tmp_path)
    file.write_bytes(b"content")
    version = source.describe(ref_of(file))
    (tmp_path / "new").write_bytes(b"CONTENT")
    (tmp_path / "new").rename(file)
    with pytest.raises(SourceChanged), source.open(version):
        raise AssertionError("it was opened")


def test_a_file_that_vanished_after_its_description_is_not_found(tmp_path: Path) -> None:
    file, source = tmp_path / "image", allowing(tmp_path)
    file.write_bytes(b"content")
    version = source.describe(ref_of(file))
    file.unlink()
    with pytest.raises(ImageNotFound), source.open(version):
        raise AssertionError("it was opened")


@pytest.mark.parametrize("change", ["rewritten", "longer", "shorter", "removed"])
def test_a_file_that_changes_while_it_is_read_is_refused_at_the_end_at_the_latest(tmp_path: Path, change: str) -> None:
    file, source = tmp_path / "image", allowing(tmp_path)
    file.write_bytes(bytes(20_000))
    with source.open(source.describe(ref_of(file))) as stream:
        assert 8192 == stream.readinto(memoryview(bytearray(8192)))
        with file.open("r+b") as changed:
            if change == "rewritten":
                changed.write(b"x")
            changed.truncate({"longer": 30_000, "shorter": 10_000}.get(change, 20_000))
        if change == "removed":
            file.unlink()
        with pytest.raises(SourceChanged, match="changed while it was fetched"):
            contents(stream)


def test_no_byte_beyond_the_described_size_is_ever_given(tmp_path: Path) -> None:
    file, source = tmp_path / "image", allowing(tmp_path)
    file.write_bytes(b"a" * 5000)
    with source.open(source.describe(ref_of(file))) as stream:
        with file.open("ab") as longer:
            longer.write(b"b" * 5000)
        buffer = memoryview(bytearray(20_000))
        assert 5000 == stream.readinto(buffer)
        with pytest.raises(SourceChanged):
            stream.readinto(buffer)


# ------------------------------------------------------------------------------------------------------------ shared blocks

SHARING = [pytest.param(kind, marks=pytest.mark.component("root", kind)) for kind in ("xfs", "btrfs")]


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", SHARING)
def test_a_file_shares_its_blocks_and_no_later_change(mounted: Callable[..., Path], kind: str) -> None:
    directory = mounted(kind)
    file, content = directory / "image", os.urandom(1 << 20)
    file.write_bytes(content)
    source = allowing(directory)
    with source.open(source.describe(ref_of(file))) as stream, new_file(directory / "kept") as target:
        assert isinstance(stream, ClonableStream)
        assert stream.clone_into(target)
        os.fsync(target)
        assert 0 == own_bytes(target)
    with file.open("r+b") as changed:
        changed.write(bytes(4096))
    assert content == (directory / "kept").read_bytes()
    assert 1 == file.stat().st_nlink
    assert file.stat().st_ino != (directory / "kept").stat().st_ino


@pytest.mark.parametrize("kind", SHARING)
def test_a_file_that_changed_is_not_shared_as_what_it_was(mounted: Callable[..., Path], kind: str) -> None:
    directory = mounted(kind)
    (directory / "image").write_bytes(bytes(1 << 20))
    source = allowing(directory)
    with source.open(source.describe(ref_of(directory / "image"))) as stream, new_file(directory / "kept") as target:
        (directory / "image").write_bytes(b"other")
        with pytest.raises(SourceChanged):
            stream.clone_into(target)


@pytest.mark.parametrize("kind", SHARING)
def test_only_a_whole_file_is_shared_and_only_on_its_own_file_system(
    mounted: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    directory = mounted(kind)
    (directory / "image").write_bytes(b"content")
    source = allowing(directory)
    version = source.describe(ref_of(directory / "image"))
    with source.open(version, offset=1) as stream, new_file(directory / "kept") as target:
        assert not stream.clone_into(target)
        assert b"ontent" == contents(stream)
    with source.open(version) as stream, new_file(tmp_path / "kept") as target:
        assert not stream.clone_into(target)
        assert 0 == os.fstat(target).st_size
        assert b"content" == contents(stream)


def test_an_image_is_never_the_file_that_it_came_from(tmp_path: Path) -> None:
    for directory in ("base", "instances"):
        (tmp_path / directory).mkdir()
    file, content = tmp_path / "image", os.urandom(100_000)
    file.write_bytes(content)
    text = f'[instances]\npath = "{tmp_path}/instances"\n[caches.base]\nkind = "base"\npath = "{tmp_path}/base"\n'
    host = Host.open(parse_config(text, origin=tmp_path / "underlay.toml"), sources={"file": allowing(tmp_path)})
    image = host.ensure(f"file://{file}")
    assert (1, False) == (file.stat().st_nlink, file.samefile(image.path))
    file.write_bytes(b"other")
    assert content == image.path.read_bytes()
