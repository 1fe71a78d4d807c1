"""Who has a file open: asked of the kernel where it knows, of all processes where it does not, and never guessed."""

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import corpus
from children import NOBODY, PATIENCE, start, tell, told
from machine import Machine
from probing import MIB, ORIGINAL, inventory, put, uses
from underlay.errors import CacheMissing
from underlay.usage import openfiles
from underlay.usage.openfiles import OpenFilesProbe, is_open, opened

Mounted = Callable[..., Path]

KINDS = [
    pytest.param(kind, marks=pytest.mark.component("root", kind))
    for kind in ("ext4", "xfs", "btrfs", "tmpfs", "ramfs", "overlay", "fuse2fs")
]


@pytest.fixture
def directory(request: pytest.FixtureRequest, mounted: Mounted, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of a kind."""
    if request.param != "overlay":
        yield mounted(request.param)
        return
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for path in (lower, upper, work, merged):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    yield merged
    subprocess.run(["umount", merged], check=True)


def hold_open(path: str, flags: str) -> None:
    fd = os.open(path, int(flags))
    tell("open")
    told()
    os.close(fd)
    tell("closed")
    told()


# ----------------------------------------------------------------------------------------------------- one file, all kinds


@pytest.mark.parametrize("directory", KINDS, indirect=True)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_file_that_a_process_has_open_is_open_on_every_file_system(directory: Path, flags: int) -> None:
    path = directory / "file"
    path.write_bytes(b"content")
    before = is_open(path)
    with start(hold_open, path, flags) as child:
        assert "open" == child.hear()
        assert True is is_open(path)
        assert {path: True} == opened([path])
        child.say()
        assert "closed" == child.hear()
        assert before is is_open(path)
    assert before is False or (before is None and "fuse2fs" in directory.name)


@pytest.mark.component("root", "fuse2fs")
def test_on_a_file_system_of_a_program_nothing_proves_a_file_closed(mounted: Mounted) -> None:
    path = mounted("fuse2fs", 32 << 20) / "file"
    path.touch()
    assert None is is_open(path)


@contextmanager
def read_by_qemu(path: Path, directory: Path) -> Iterator[None]:
    """QEMU has the file open as a base image: to read, for somebody, without whom it takes no locks."""
    pid_file = directory / "pid"
    node = json.dumps({"driver": "file", "node-name": "n", "filename": str(path), "read-only": True, "locking": "on"})
    server = f"addr.type=unix,addr.path={directory}/socket"
    export = ["--nbd-server", server, "--export", "type=nbd,id=e,node-name=n,name=base"]
    with subprocess.Popen(["qemu-storage-daemon", "--blockdev", node, *export, "--pidfile", pid_file]) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not pid_file.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.mark.component("leases", "qemu-storage-daemon")
def test_a_base_that_qemu_reads_is_open(tmp_path: Path, short_directory: Path) -> None:
    path = corpus.raw(tmp_path / "base", MIB)
    with read_by_qemu(path, short_directory):
        assert True is is_open(path)
    assert False is is_open(path)


@pytest.mark.component("root", "qemu-storage-daemon")
def test_qemus_own_locks_show_a_base_to_who_can_see_nothing_else(open_directory: Path) -> None:
    path = corpus.raw(open_directory / "base", MIB)
    path.chmod(0o644)
    with read_by_qemu(path, open_directory), start(ask, path, user=NOBODY) as child:
        assert "True" == child.hear()
    with start(ask, path, user=NOBODY) as child:
        assert "None" == child.hear()


@contextmanager
def looped(path: Path) -> Iterator[None]:
    device = subprocess.run(["losetup", "-r", "-f", "--show", path], check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.parametrize("directory", [each for each in KINDS if each.values[0] in ("ext4", "tmpfs", "overlay")], indirect=True)
def test_a_file_behind_a_loop_device_is_open(directory: Path) -> None:
    path = corpus.raw(directory / "file", MIB)
    with looped(path):
        assert True is is_open(path)


@pytest.mark.component("root")
@pytest.mark.parametrize("directory", [each for each in KINDS if each.values[0] in ("tmpfs", "overlay")], indirect=True)
def test_a_process_in_another_mount_namespace_is_seen(directory: Path, tmp_path: Path) -> None:
    path = directory / "file"
    path.touch()
    script = (
        f"import os, sys; fd = os.open({str(path)!r}, os.O_RDONLY); os.system('umount -l {directory}');"
        "print('open', flush=True); sys.stdin.readline()"
    )
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert b"open\n" == process.stdout.readline()
            assert True is is_open(path)
        finally:
            process.stdin.close()
            process.wait(30)


def map_only(path: str) -> None:
    """Has a file in its memory that it has closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    fd = os.open(path, os.O_RDONLY)
    assert libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0)) not in (None, -1)
    os.close(fd)
    tell("mapped")
    told()


@pytest.mark.parametrize("directory", [each for each in KINDS if each.values[0] in ("ext4", "tmpfs", "overlay")], indirect=True)
def test_a_file_that_is_in_a_processs_memory_is_open(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"content")
    with start(map_only, path) as child:
        assert "mapped" == child.hear()
        assert True is is_open(path)


# ------------------------------------------------------------------------------------------------------------ who may know


def ask(path: str) -> None:
    tell(repr(is_open(Path(path))))


@pytest.mark.component("root", "leases")
def test_who_is_not_the_owner_learns_that_a_file_is_open_never_that_it_is_closed(open_directory: Path) -> None:
    path = open_directory / "file"
    path.touch(mode=0o644)
    with start(ask, path, user=NOBODY) as child:
        assert "None" == child.hear()
    os.chown(path, NOBODY, NOBODY)
    with start(ask, path, user=NOBODY) as child:
        assert "False" == child.hear()
    with start(hold_open, path, os.O_RDONLY) as holder:
        assert "open" == holder.hear()
        with start(ask, path, user=NOBODY) as child:
            assert "True" == child.hear()


def test_a_look_through_all_processes_finds_who_has_a_file_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file"

    assert True is not openfiles._by_processes([path])[path]
    with start(hold_open, path, os.O_RDONLY) as child:
        assert "open" == child.hear()
        assert True is openfiles._by_processes([path])[path]
        child.say()
        assert "closed" == child.hear()
        assert True is not openfiles._by_processes([path])[path]


# ----------------------------------------------------------------------------------------------------------- several files


@pytest.mark.component("leases")
def test_several_files_are_told_of_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"file-{number}" for number in range(40)]
    for path in paths:
        path.touch()
    with ExitStack() as stack:
        held = set(paths[::7])
        for path in held:
            stack.enter_context(path.open("rb"))
        assert {path: path in held for path in paths} == opened(paths)


@pytest.mark.component("root", "tmpfs")
def test_the_processes_are_looked_through_once_for_all_files(mounted: Mounted) -> None:
    directory = mounted("tmpfs")
    paths = [directory / f"file-{number}" for number in range(300)]
    for path in paths:
        path.touch()
    with paths[3].open("rb"):
        found = opened(paths)
    assert [paths[3]] == [path for path, answer in found.items() if answer]
    assert {True, False} == set(found.values())


def test_what_is_gone_is_not_open(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert {gone: False} == opened([gone])
    with pytest.raises(CacheMissing):
        is_open(gone)


@pytest.mark.component("leases")
def test_who_has_a_file_open_for_a_moment_only_to_ask_as_we_do_is_no_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "asked-of", tmp_path / "read"]
    for path in paths:
        path.touch()
    asks = os.open(paths[0], os.O_RDONLY)
    pauses = []

    def closes_meanwhile(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 2:
            os.close(asks)

    monkeypatch.setattr(time, "sleep", closes_meanwhile)
    with paths[1].open("rb"):
        assert {paths[0]: False, paths[1]: True} == opened(paths)
    assert sum(pauses) < 0.05


@pytest.mark.component("leases")
def test_the_probe_tells_of_the_files_where_they_are_now(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    put(machine, ORIGINAL)
    trashed = tmp_path / "trash"
    (machine.base / ORIGINAL).rename(trashed)
    probe = OpenFilesProbe({(machine.base, ORIGINAL): trashed})
    assert {} == uses(probe.observe([inventory(machine)]))
    with trashed.open("rb"):
        assert {ORIGINAL: {"open"}} == uses(probe.observe([inventory(machine)]))


@pytest.mark.component("root", "fuse2fs")
def test_where_it_cannot_be_told_the_probe_says_so(tmp_path: Path, mounted: Mounted) -> None:
    machine = Machine.make(tmp_path)
    put(machine, ORIGINAL)
    path = mounted("fuse2fs", 32 << 20) / "file"
    path.touch()
    found = OpenFilesProbe({(machine.base, ORIGINAL): path}).observe([inventory(machine)])
    assert {ORIGINAL: {"open-unknown"}} == uses(found)
    assert [False] == [use.sure for use in found.uses]
