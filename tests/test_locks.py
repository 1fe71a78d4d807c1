"""Locks between processes and threads, and beside a Nova; whether a disk is open elsewhere."""

import ctypes
import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from children import NOBODY, start, tell, told
from underlay import locks
from underlay.errors import LockLost, LockTimeout

Take = Callable[..., AbstractContextManager[locks.Lock]]

SOON = 0.05  # seconds that we wait for a lock which is not free
LONG = 60.0  # seconds that we wait for one which will be


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "lock"


# ------------------------------------------------------------------------------------------------------------- in children


def hold_as_nova_does(path: str) -> None:
    """As fasteners takes oslo's external locks: open for appending, lockf, and no word about the file's removal."""
    with open(path, "a", encoding="ascii") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        tell("held")
        told()
        fcntl.lockf(file, fcntl.LOCK_UN)
        tell("released")
        told()


def try_as_nova_does(path: str) -> None:
    with open(path, "a+", encoding="ascii") as file:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            try:
                fcntl.lockf(file, kind | fcntl.LOCK_NB)
            except OSError as error:
                tell(errno.errorcode[error.errno or 0])
            else:
                tell("held")
                fcntl.lockf(file, fcntl.LOCK_UN)


def hold(path: str) -> None:
    with locks.exclusive(Path(path), timeout=LONG):
        tell("held")
        told()
    tell("released")
    told()


def hold_and_fork(path: str) -> None:
    """Holds a lock, and has a child that lives on whatever happens to us; says the child's id and what it inherited."""
    with locks.exclusive(Path(path), timeout=LONG) as lock:
        child = os.fork()
        if child == 0:
            inherited = [name for name in _open_files() if name == path]
            try:
                lock.confirm()
            except LockLost:
                tell(f"{os.getpid()} {inherited}")
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # it shall not keep the parent's pipe open
            time.sleep(600)
            os._exit(0)
        told()
    tell("released")
    told()


def fork_and_leave(path: str) -> None:
    """A forked child leaves its parent's frame by an exception, through the context manager."""
    reused = -1
    try:
        with locks.exclusive(Path(path), timeout=LONG) as lock:
            child = os.fork()
            if child == 0:
                reused = os.open(os.devnull, os.O_RDONLY)  # has the number of the descriptor that was dropped
                raise SystemExit
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            lock.confirm()
            tell(f"{status} {locks.is_held(Path(path))}")
            told()
    except SystemExit:
        os.fstat(reused)
        os._exit(0)
    finally:
        os._exit(1)


def hold_and_fork_unseen(path: str) -> None:
    """Forks as a C library does, so that no hook of Python's runs in the child and it keeps what it inherits."""
    libc = ctypes.CDLL(None)
    with locks.exclusive(Path(path), timeout=LONG):
        child = libc.fork()
        if child == 0:
            libc.sleep(600)
            libc._exit(0)
        tell(str(child))
        told()
    tell("released")
    told()


def fork_while_threads_lock(path: str) -> None:
    """Forks 200 times while threads take and release locks; says which lock files any of the children inherited."""
    stop = threading.Event()

    def take(name: str) -> None:
        while not stop.is_set():
            with locks.exclusive(Path(name), timeout=LONG):
                pass

    threads = [threading.Thread(target=take, args=(f"{path}-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    inherited = 0
    for _ in range(200):
        child = os.fork()
        if child == 0:
            os._exit(1 if any(name.startswith(path) for name in _open_files()) else 0)
        inherited += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    stop.set()
    for thread in threads:
        thread.join()
    tell(f"inherited {inherited}")


def _open_files() -> list[str]:
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return names


def add_to_a_counter(lock: str, counter: str, times: str) -> None:
    for _ in range(int(times)):
        with locks.exclusive(Path(lock), timeout=LONG):
            Path(counter).write_text(str(int(Path(counter).read_text()) + 1))


def share_and_try_alone(path: str) -> None:
    with locks.shared(Path(path), timeout=SOON):
        tell("shared")
    try:
        with locks.exclusive(Path(path), timeout=SOON):
            tell("alone")
    except OSError as error:
        tell(errno.errorcode[error.errno or 0])


def keep_open(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    tell("open")
    told()
    os.close(fd)
    tell("closed")
    told()


def keep_a_lease(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    tell("leased")
    told()


def probe(path: str) -> None:
    tell(str(locks.opened_elsewhere(Path(path))))
    told()


# ------------------------------------------------------------------------------------------------------ who excludes whom


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (locks.exclusive, locks.exclusive, False),
        (locks.exclusive, locks.shared, False),
        (locks.shared, locks.exclusive, False),
        (locks.shared, locks.shared, True),
    ],
)
def test_only_sharers_hold_a_lock_together(lock_file: Path, first: Take, second: Take, together: bool) -> None:  # noqa: FBT001
    with first(lock_file, timeout=SOON):
        if together:
            with second(lock_file, timeout=SOON) as lock:
                lock.confirm()
        else:
            with pytest.raises(LockTimeout), second(lock_file, timeout=SOON):
                pass
    with second(lock_file, timeout=SOON):
        pass


def test_a_busy_lock_is_not_waited_for_when_only_tried(lock_file: Path) -> None:
    with locks.try_exclusive(lock_file) as lock:
        assert lock is not None
        with locks.try_exclusive(lock_file) as second:
            assert second is None
        assert locks.is_held(lock_file)
    assert not locks.is_held(lock_file)


def test_one_file_is_many_locks_by_their_numbers(lock_file: Path) -> None:
    last = (1 << 63) - 2
    with locks.try_exclusive(lock_file, number=0) as first, locks.try_exclusive(lock_file, number=last) as second:
        assert None not in (first, second)
        for number in (0, last):
            with locks.try_exclusive(lock_file, number=number) as taken:
                assert taken is None
        with locks.try_exclusive(lock_file, number=1) as free:
            assert free is not None
    with locks.try_exclusive(lock_file) as whole, locks.try_exclusive(lock_file, number=last) as taken:
        assert whole is not None
        assert taken is None
    assert 0 == lock_file.stat().st_size


def test_threads_of_one_process_exclude_each_other(lock_file: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(25):
            with locks.exclusive(lock_file, timeout=LONG):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0)
                inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [1] * 100 == most


def test_processes_exclude_each_other(tmp_path: Path, lock_file: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    with (
        start(add_to_a_counter, lock_file, counter, 100) as one,
        start(add_to_a_counter, lock_file, counter, 100) as two,
        start(add_to_a_counter, lock_file, counter, 100) as three,
    ):
        for child in (one, two, three):
            child.end()
    assert "300" == counter.read_text()


def test_a_nova_excludes_us(lock_file: Path) -> None:
    with start(hold_as_nova_does, lock_file) as nova:
        assert "held" == nova.hear()
        assert locks.is_held(lock_file)
        for take in (locks.exclusive, locks.shared):
            with pytest.raises(LockTimeout), take(lock_file, timeout=SOON):
                pass
        nova.say("release")
        assert "released" == nova.hear()
        with locks.exclusive(lock_file, timeout=SOON) as lock:
            lock.confirm()


def test_a_nova_that_releases_lets_a_waiter_in(lock_file: Path) -> None:
    with start(hold_as_nova_does, lock_file) as nova, ThreadPoolExecutor(1) as pool:
        assert "held" == nova.hear()

        def wait() -> bool:
            with locks.exclusive(lock_file, timeout=LONG):
                return True

        waiter = pool.submit(wait)
        time.sleep(3 * SOON)
        assert not waiter.done()
        nova.say("release")
        assert waiter.result(LONG)


@pytest.mark.parametrize(
    ("take", "answers"),
    [(locks.exclusive, ["EAGAIN", "EAGAIN"]), (locks.shared, ["EAGAIN", "held"])],
)
def test_we_exclude_a_nova(lock_file: Path, take: Take, answers: list[str]) -> None:
    with take(lock_file, timeout=SOON):
        with open(lock_file, "rb"):  # closing another descriptor of the file would drop a POSIX lock
            pass
        with start(try_as_nova_does, lock_file) as nova:
            assert answers == [nova.hear(), nova.hear()]
    with start(try_as_nova_does, lock_file) as nova:
        assert ["held", "held"] == [nova.hear(), nova.hear()]


def test_a_time_out_says_which_lock_and_may_be_tried_again(lock_file: Path) -> None:
    with locks.exclusive(lock_file, timeout=SOON):
        began = time.monotonic()
        with pytest.raises(LockTimeout, match=str(lock_file)) as caught, locks.exclusive(lock_file, timeout=0.2):
            pass
        waited = time.monotonic() - began
    assert caught.value.transient
    assert 0.2 <= waited < LONG / 2


def test_an_exception_releases_the_lock(lock_file: Path) -> None:
    with pytest.raises(ZeroDivisionError), locks.exclusive(lock_file, timeout=SOON):
        raise ZeroDivisionError
    assert not locks.is_held(lock_file)


def test_a_killed_holders_lock_is_free_at_once(lock_file: Path) -> None:
    with start(hold, lock_file) as holder:
        assert "held" == holder.hear()
        holder.kill()
        with locks.exclusive(lock_file, timeout=0):
            pass


# ----------------------------------------------------------------------------------------------------- removed lock files


def test_a_waiter_locks_the_new_file_when_the_old_one_is_removed(lock_file: Path) -> None:
    with start(hold_as_nova_does, lock_file) as nova, ThreadPoolExecutor(1) as pool:
        assert "held" == nova.hear()
        entered, leave = threading.Event(), threading.Event()

        def wait() -> None:
            with locks.exclusive(lock_file, timeout=LONG) as lock:
                lock.confirm()
                entered.set()
                leave.wait(LONG)

        waiter = pool.submit(wait)
        time.sleep(SOON)
        lock_file.unlink()  # as Nova's manager does when it has aged an image
        assert entered.wait(LONG)
        with locks.try_exclusive(lock_file) as third:
            assert third is None  # the newcomer and the waiter meet at the same file
        leave.set()
        waiter.result(LONG)


@pytest.mark.component("strace")
def test_a_lock_file_that_is_removed_between_our_open_and_our_lock_is_not_taken(lock_file: Path) -> None:
    lock_file.touch()
    stopped = ["strace", "-qq", "-o", os.devnull, "-P", os.fspath(lock_file), "-e", "inject=openat:signal=SIGSTOP:when=1"]
    with start(hold, lock_file, wrapper=stopped) as child, ThreadPoolExecutor(1) as pool:
        pid = _waits_with_open(lock_file, child.pid)
        lock_file.unlink()
        with locks.exclusive(lock_file, timeout=SOON):
            os.kill(pid, signal.SIGCONT)
            held = pool.submit(child.hear)
            time.sleep(5 * SOON)  # it locks what it has open, sees that this is not the lock file any more, and tries again
            assert not held.done()
        assert "held" == held.result(LONG)


def _waits_with_open(path: Path, tracer: int) -> int:
    """The traced process, once it has opened the file, which it was stopped for."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        for pid in Path(f"/proc/{tracer}/task/{tracer}/children").read_text(encoding="ascii").split():
            with suppress(OSError):  # a descriptor or the child was gone before we looked
                if os.fspath(path) in map(os.readlink, Path(f"/proc/{pid}/fd").iterdir()):
                    return int(pid)
    raise AssertionError(f"nobody opened {path}")


def test_a_lock_whose_file_is_there_is_confirmed(lock_file: Path) -> None:
    with locks.exclusive(lock_file, timeout=SOON) as lock:
        lock.confirm()


def test_a_lock_whose_file_was_removed_is_lost(lock_file: Path) -> None:
    with locks.exclusive(lock_file, timeout=SOON) as lock:
        lock_file.unlink()
        with pytest.raises(LockLost, match=str(lock_file)) as caught:
            lock.confirm()
    assert caught.value.transient


def test_a_lock_whose_file_was_replaced_is_lost(lock_file: Path) -> None:
    with locks.exclusive(lock_file, timeout=SOON) as lock:
        lock_file.unlink()
        with locks.exclusive(lock_file, timeout=SOON) as newer:
            newer.confirm()
            with pytest.raises(LockLost):
                lock.confirm()


def test_a_lock_file_outlives_its_lock(lock_file: Path) -> None:
    with locks.exclusive(lock_file, timeout=SOON):
        before = lock_file.stat().st_ino
    with locks.shared(lock_file, timeout=SOON), locks.try_exclusive(lock_file):
        pass
    assert before == lock_file.stat().st_ino


def test_a_symlink_in_a_lock_files_place_is_not_followed(tmp_path: Path, lock_file: Path) -> None:
    lock_file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError) as caught, locks.exclusive(lock_file, timeout=SOON):
        pass
    assert errno.ELOOP == caught.value.errno
    assert not (tmp_path / "elsewhere").exists()


# ------------------------------------------------------------------------------------------------------------------ forks


def test_a_forked_child_has_no_descriptor_of_the_lock_and_no_right_to_it(lock_file: Path) -> None:
    with start(hold_and_fork, lock_file) as parent:
        pid, _, inherited = parent.hear().partition(" ")
        os.kill(int(pid), signal.SIGKILL)
        assert "[]" == inherited
        assert locks.is_held(lock_file)


def test_a_release_frees_the_lock_though_a_forked_child_lives(lock_file: Path) -> None:
    with start(hold_and_fork, lock_file) as parent, _ended(int(parent.hear().split()[0])):
        with locks.try_exclusive(lock_file) as lock:
            assert lock is None
        parent.say("release")
        assert "released" == parent.hear()
        with locks.exclusive(lock_file, timeout=0):
            pass


def test_a_kill_frees_the_lock_though_a_forked_child_lives(lock_file: Path) -> None:
    with start(hold_and_fork, lock_file) as parent, _ended(int(parent.hear().split()[0])) as child:
        parent.kill()
        os.kill(child, 0)  # it lives
        with locks.exclusive(lock_file, timeout=0):
            pass


def test_a_forked_child_that_leaves_the_context_does_not_unlock_its_parent(lock_file: Path) -> None:
    with start(fork_and_leave, lock_file) as parent:
        assert "0 True" == parent.hear()
        assert locks.is_held(lock_file)


def test_a_release_frees_the_lock_though_a_child_kept_its_descriptor(lock_file: Path) -> None:
    with start(hold_and_fork_unseen, lock_file) as parent, _ended(int(parent.hear())):
        parent.say("release")
        assert "released" == parent.hear()
        with locks.exclusive(lock_file, timeout=0):
            pass


def test_a_child_that_is_forked_while_threads_lock_inherits_nothing(lock_file: Path) -> None:
    with start(fork_while_threads_lock, lock_file) as parent:
        assert "inherited 0" == parent.hear()


def test_a_program_that_we_run_inherits_nothing(lock_file: Path) -> None:
    with locks.exclusive(lock_file, timeout=SOON):
        listing = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, check=True, text=True)
    assert os.fspath(lock_file) not in listing.stdout


@contextmanager
def _ended(pid: int) -> Iterator[int]:
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)


# --------------------------------------------------------------------------------------------------------- owners and modes


@pytest.mark.usefixtures("umask_077")
def test_a_lock_file_is_its_groups_to_write_whatever_the_umask(lock_file: Path) -> None:
    with locks.exclusive(lock_file, timeout=SOON):
        assert 0o664 == lock_file.stat().st_mode & 0o7777


@pytest.mark.component("root")
def test_a_lock_file_has_its_directorys_owner_and_group(tmp_path: Path, lock_file: Path) -> None:
    os.chown(tmp_path, 1234, 5678)
    with locks.exclusive(lock_file, timeout=SOON):
        assert (1234, 5678) == (lock_file.stat().st_uid, lock_file.stat().st_gid)


@pytest.mark.component("root", "strace")
def test_a_lock_file_is_at_no_moment_one_that_others_may_not_open(tmp_path: Path, lock_file: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    slow = ["strace", "-qq", "-o", os.devnull, "-e", "inject=fchmod,fchown:delay_enter=200000"]
    seen: set[tuple[int, int, int]] = set()
    with start(hold, lock_file, umask=0o077, wrapper=slow) as child, ThreadPoolExecutor(1) as pool:
        held = pool.submit(child.hear)
        while not (held.done() and seen):
            if lock_file.exists():
                status = lock_file.stat()
                seen.add((status.st_uid, status.st_gid, status.st_mode & 0o777))
        assert "held" == held.result()
        child.say("release")
        assert "released" == child.hear()
        child.say("end")
        child.process.wait(LONG)
    assert {(NOBODY, NOBODY, 0o664)} == seen


@pytest.mark.component("root")
def test_who_may_only_read_a_lock_file_may_share_the_lock(open_directory: Path) -> None:
    path = open_directory / "lock"
    path.touch()
    path.chmod(0o644)
    with start(share_and_try_alone, path, user=NOBODY) as reader:
        assert ["shared", "EACCES"] == [reader.hear(), reader.hear()]


@pytest.mark.component("root", "tmpfs")
def test_a_lock_on_a_read_only_file_system_can_be_shared(mounted: Callable[..., Path]) -> None:
    directory = mounted("tmpfs", 1 << 20)
    path = directory / "lock"
    with locks.exclusive(path, timeout=SOON):
        pass
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    with locks.shared(path, timeout=SOON) as lock:
        lock.confirm()
    with pytest.raises(OSError) as caught, locks.exclusive(path, timeout=SOON):
        pass
    assert errno.EROFS == caught.value.errno


# ---------------------------------------------------------------------------------------------------------- looking at locks


def test_a_lock_file_that_is_not_there_is_not_held(lock_file: Path) -> None:
    assert not locks.is_held(lock_file)
    assert not lock_file.exists()


@pytest.mark.parametrize("take", [locks.exclusive, locks.shared])
def test_a_held_lock_is_seen_from_the_same_process(lock_file: Path, take: Take) -> None:
    with take(lock_file, timeout=SOON):
        assert locks.is_held(lock_file)
    assert not locks.is_held(lock_file)


def test_a_held_lock_is_seen_from_another_process(lock_file: Path) -> None:
    with start(hold, lock_file) as holder:
        assert "held" == holder.hear()
        assert locks.is_held(lock_file)
        holder.say("release")
        assert "released" == holder.hear()
        assert not locks.is_held(lock_file)


# ------------------------------------------------------------------------------------------------------- opened elsewhere


@pytest.fixture
def disk(open_directory: Path) -> Path:
    path = open_directory / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.component("leases")
def test_a_file_that_nobody_has_open_is_closed(disk: Path) -> None:
    assert locks.opened_elsewhere(disk) is False


@pytest.mark.component("leases")
def test_a_file_that_another_process_reads_is_open(disk: Path) -> None:
    with start(keep_open, disk) as reader:
        assert "open" == reader.hear()
        assert locks.opened_elsewhere(disk) is True
        reader.say("close")
        assert "closed" == reader.hear()
        assert locks.opened_elsewhere(disk) is False


def test_a_file_on_which_another_process_has_a_lease_is_open(disk: Path) -> None:
    with start(keep_a_lease, disk) as holder:
        assert "leased" == holder.hear()
        assert locks.opened_elsewhere(disk) is True


def test_a_file_that_is_not_there_cannot_be_asked_about(disk: Path) -> None:
    disk.unlink()
    with pytest.raises(FileNotFoundError):
        locks.opened_elsewhere(disk)


@pytest.mark.component("qemu-storage-daemon", "leases")
@pytest.mark.parametrize("writable", [True, False])
def test_a_disk_that_qemu_has_open_is_open(disk: Path, short_directory: Path, writable: bool) -> None:  # noqa: FBT001
    with _qemu(disk, short_directory, writable=writable):
        assert locks.opened_elsewhere(disk) is True
    assert locks.opened_elsewhere(disk) is False


@pytest.mark.component("root", "qemu-storage-daemon")
def test_a_disk_that_qemu_has_open_is_open_to_one_who_does_not_own_it(disk: Path, short_directory: Path) -> None:
    with _qemu(disk, short_directory, writable=True), start(probe, disk, user=NOBODY) as other:
        assert "True" == other.hear()


@pytest.mark.component("root")
def test_who_does_not_own_a_file_cannot_tell_whether_it_is_open(disk: Path) -> None:
    with start(probe, disk, user=NOBODY) as other:
        assert "None" == other.hear()


@pytest.mark.component("root", "overlay")
def test_a_lease_on_an_overlay_file_system_tells_nothing(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    layers = mounted("tmpfs", 1 << 20)
    parts = {name: layers / name for name in ("lowerdir", "upperdir", "workdir")}
    for part in parts.values():
        part.mkdir()
    (parts["lowerdir"] / "disk").write_bytes(b"disk")
    merged = tmp_path / "merged"
    merged.mkdir()
    options = ",".join(f"{name}={part}" for name, part in parts.items())
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        assert locks.opened_elsewhere(merged / "disk") is None
    finally:
        subprocess.run(["umount", merged], check=True)


@pytest.mark.component("strace", "leases")
def test_somebody_who_opens_the_file_while_we_look_does_not_kill_us(disk: Path) -> None:
    # The kernel sends the lease's holder a signal, and the default one ends a process that does not expect it.
    slow = ["strace", "-qq", "-o", os.devnull, "-P", os.fspath(disk), "-e", "inject=fcntl:delay_exit=300000"]
    with start(probe, disk, wrapper=slow) as prober, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(prober.hear)
        collided = False
        while not answer.done():
            try:
                os.close(os.open(disk, os.O_RDONLY | os.O_NONBLOCK))
            except BlockingIOError:
                collided = True
            time.sleep(0.005)
        assert collided
        assert answer.result() in ("True", "False")
        prober.say("end")
        assert 0 == prober.process.wait(LONG)


@contextmanager
def _qemu(disk: Path, directory: Path, *, writable: bool) -> Iterator[None]:
    """QEMU's block layer with the disk open, as a running guest has it, and nothing around it."""
    ready = directory / "pid"
    node = {"driver": "raw", "node-name": "disk", "read-only": not writable, "file": {"driver": "file", "filename": str(disk)}}
    server = {"addr": {"type": "unix", "path": str(directory / "nbd")}}
    export = {"type": "nbd", "id": "guest", "node-name": "disk", "writable": writable}
    argv = ["qemu-storage-daemon", "--blockdev", json.dumps(node), "--nbd-server", json.dumps(server)]
    with subprocess.Popen([*argv, "--export", json.dumps(export), "--pidfile", os.fspath(ready)]) as daemon:
        deadline = time.monotonic() + LONG
        while not (ready.exists() and ready.read_text()):
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield
        finally:
            daemon.kill()
