"""Disks of instances: where they may lie, what is recorded of them and when, who may touch them, what a failure leaves."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from children import NOBODY, start, tell, told
from machine import GIB, MIB, Machine
from underlay import instances, locks
from underlay.contracts import Observer
from underlay.disks.qcow2 import Qcow2Backend
from underlay.errors import (
    CacheMissing,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskTooSmall,
    DiskUnrecorded,
    InvalidName,
    LockLost,
    NotCached,
    UnderlayError,
    Unsupported,
)
from underlay.host import Host
from underlay.model import BaseImage, Digest, DiskSpec, Event, InstanceDisk, Progress
from underlay.testing.bootimage import write_qcow2
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


@pytest.fixture
def base(machine: Machine, host: Host) -> BaseImage:
    return host.ensure(machine.raw_image())


def left_in(machine: Machine) -> list[Path]:
    """Whatever there is of any disk: files, directories, roots."""
    roots = machine.base / ".underlay" / "disks"
    return sorted([*machine.instances.rglob("*"), *(path for path in roots.rglob("*") if path.is_symlink())])


# --------------------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    "name",
    ["../disk", "disk/x", "/etc/passwd", "", ".", "..", ".disk", "-disk", "disk\0", "disk\n", "dìsk", "disk " + "x", 129 * "d"],
)
def test_a_name_that_could_leave_its_directory_is_refused(host: Host, base: BaseImage, machine: Machine, name: str) -> None:
    for instance, disk in ((name, "disk"), ("web-1", name)):
        with pytest.raises(InvalidName):
            host.create_disk(instance, base, name=disk)
        for touch in (host.disk, host.remove_disk):
            with pytest.raises(InvalidName):
                touch(instance, name=disk)

    assert [] == left_in(machine)


@pytest.mark.parametrize("name", ["disk.info", "disk.info.tmp"])
def test_a_disk_is_never_called_as_novas_record_is(host: Host, base: BaseImage, machine: Machine, name: str) -> None:
    with pytest.raises(InvalidName, match="Nova"):
        host.create_disk("web-1", base, name=name)
    with pytest.raises(InvalidName, match="Nova"):
        host.create_disk("web-1", base, path=machine.root / name)

    assert [] == left_in(machine)


@pytest.mark.parametrize("name", ["root", "console.log", "Disk", "diskette"])
def test_below_the_instances_path_a_disk_is_called_as_nova_calls_disks(host: Host, base: BaseImage, name: str) -> None:
    with pytest.raises(InvalidName, match="no name for a disk"):
        host.create_disk("web-1", base, name=name)


@pytest.mark.parametrize("name", ["disk", "disk.local", "disk.eph0", "disk.swap", "disk.config", "disk.rescue"])
def test_novas_names_of_disks_are_good_names(host: Host, base: BaseImage, machine: Machine, name: str) -> None:
    assert machine.instances / "web-1" / name == host.create_disk("web-1", base, name=name, backend="flat").path


@pytest.mark.parametrize(
    "path",
    [
        "disk",
        "./disk",
        "/srv/../etc/disk",
        "//srv/disk",
        "/srv/.web.underlay",
        "/srv/...underlay",
        "/srv/a\0b",
        "/srv/a\nb",
        "/srv/a\udcffb",
        "/",
    ],
)
def test_a_disk_elsewhere_needs_a_plain_absolute_path(host: Host, base: BaseImage, path: str) -> None:
    with pytest.raises(InvalidName, match="no place for a disk"):
        host.create_disk("web-1", base, path=Path(path))


def test_a_path_that_is_too_long_for_a_disk_and_its_temporary_is_refused(host: Host, base: BaseImage, machine: Machine) -> None:
    longest = machine.root / (245 * "x")

    assert longest == host.create_disk("web-1", base, path=longest, backend="flat").path
    with pytest.raises(InvalidName, match="too long"):
        host.create_disk("web-2", base, path=machine.root / (246 * "x"))
    with pytest.raises(InvalidName, match="too long"):
        host.create_disk("web-2", base, path=Path("/" + "/".join(20 * [240 * "y"])))


def test_a_disk_never_goes_into_a_cache_or_its_locks(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, base="instances/base")
    host = machine.host()
    base = host.ensure(machine.raw_image())
    before = sorted(machine.base.iterdir())

    for instance, path in (
        ("base", None),
        ("locks", None),
        ("web-1", machine.base / "x"),
        ("web-1", machine.base / ".underlay/x"),
    ):
        with pytest.raises(InvalidName, match=r"no place for a disk|directory of another instance"):
            host.create_disk(instance, base, path=path)

    assert before == sorted(machine.base.iterdir())


def test_a_symlink_is_no_way_into_a_cache(host: Host, base: BaseImage, machine: Machine) -> None:
    (machine.root / "link").symlink_to(machine.base)

    with pytest.raises(InvalidName, match="no place for a disk"):
        host.create_disk("web-1", base, path=machine.root / "link" / "disk")


def test_a_disk_never_goes_into_another_instances_directory(host: Host, base: BaseImage, machine: Machine) -> None:
    (machine.instances / "web-2").mkdir()

    with pytest.raises(InvalidName, match="another instance than web-1"):
        host.create_disk("web-1", base, path=machine.instances / "web-2" / "disk")

    assert [machine.instances / "web-2"] == left_in(machine)


def test_without_the_instances_path_no_disk_is_made(host: Host, base: BaseImage, machine: Machine) -> None:
    machine.instances.rmdir()

    with pytest.raises(CacheMissing, match=str(machine.instances)):
        host.create_disk("web-1", base)

    assert not machine.instances.exists()


def test_without_its_directory_no_disk_is_made_elsewhere(host: Host, base: BaseImage, machine: Machine) -> None:
    with pytest.raises(CacheMissing, match="nowhere"):
        host.create_disk("web-1", base, path=machine.root / "nowhere" / "disk")

    assert [] == left_in(machine)


# -------------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("backend", ["flat", "qcow2"])
def test_a_disk_is_recorded_in_novas_words_beside_it(host: Host, base: BaseImage, machine: Machine, backend: str) -> None:
    first = host.create_disk("web-1", base, backend=backend)
    second = host.create_disk("web-1", base, backend="flat", name="disk.local")

    info = machine.instances / "web-1" / "disk.info"
    assert {str(first.path): first.format, str(second.path): "raw"} == json.loads(info.read_text())
    assert 0o644 == stat.S_IMODE(info.stat().st_mode)
    assert {"disk", "disk.info", "disk.local"} == set(os.listdir(machine.instances / "web-1"))


def test_a_disk_outside_the_instances_path_has_a_root_in_its_cache(host: Host, base: BaseImage, machine: Machine) -> None:
    (machine.root / "vms").mkdir()
    disk = host.create_disk("web-1", base, path=machine.root / "vms" / "root.img")

    (root,) = (machine.base / ".underlay" / "disks" / base.name).iterdir()
    assert disk.path == Path(os.readlink(root))
    assert [disk.path] == list((machine.root / "vms").iterdir())
    assert [disk] == host.disks()


@pytest.mark.parametrize("place", ["web-1/sub/disk", "web-1/root.img", "disk"])
def test_a_disk_below_the_instances_path_where_no_look_finds_it_has_a_root_too(
    host: Host, base: BaseImage, machine: Machine, place: str
) -> None:
    path = machine.instances / place
    path.parent.mkdir(parents=True, exist_ok=True)

    disk = host.create_disk("web-1", base, path=path)

    (root,) = (machine.base / ".underlay" / "disks" / base.name).iterdir()
    assert path == Path(os.readlink(root))
    assert [disk] == host.disks()


@pytest.mark.component("root", "ramfs")
def test_where_no_attribute_can_be_kept_novas_record_tells_the_format_elsewhere_too(
    host: Host, base: BaseImage, mounted: Callable[..., Path]
) -> None:
    place = mounted("ramfs")

    disk = host.create_disk("web-1", base, path=place / "root.img", size=GIB)

    assert ("qcow2", GIB, base.path) == (disk.format, disk.size, disk.base_path)
    assert disk == host.create_disk("web-1", base, path=place / "root.img", size=GIB)
    assert 2 * GIB == host.resize_disk("web-1", 2 * GIB, path=place / "root.img").size
    host.remove_disk("web-1", path=place / "root.img")
    assert [] == list(place.iterdir())


class Witness(Qcow2Backend, frozen=True, kw_only=True):
    """A backend that has a look around before it makes the disk."""

    look: Callable[[DiskSpec], None]

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        self.look(want)
        return Qcow2Backend.create(self, base, want)


def create_with(host: Host, backend: Witness, base: BaseImage, path: Path | None = None) -> InstanceDisk:
    want = instances.disk_spec(host.config, "web-1", "disk", path=path)
    return instances.create(host.config, backend, base, want, store=host.parts.store_of(base))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_use_is_recorded_before_the_disk_appears(host: Host, base: BaseImage, machine: Machine, *, elsewhere: bool) -> None:
    path = machine.root / "root.img" if elsewhere else None
    marker = machine.base / ".underlay" / "used" / base.name
    os.utime(marker, (1, 1))
    os.utime(base.path, (1, 1))
    seen: list[Path] = []

    def look(want: DiskSpec) -> None:
        assert not want.path.exists()
        assert marker.stat().st_mtime > 1
        assert base.path.stat().st_mtime > 1
        seen.extend(left_in(machine))

    disk = create_with(host, Witness(look=look), base, path)

    if elsewhere:
        assert [disk.path] == [Path(os.readlink(root)) for root in seen]
    else:
        assert [machine.instances / "web-1", machine.instances / "web-1" / "disk.info"] == seen


def test_while_a_disk_is_made_nobody_evicts_its_base_and_nobody_else_makes_it(host: Host, base: BaseImage) -> None:
    store = host.parts.store_of(base)

    def look(want: DiskSpec) -> None:
        with locks.try_exclusive(store.paths.image_lock(base.name)) as lock:
            assert lock is None
        with locks.shared(store.paths.image_lock(base.name), timeout=0):
            pass  # but others use it too
        with locks.try_exclusive(store.paths.disk_lock(want.path)) as lock:
            assert lock is None

    create_with(host, Witness(look=look), base)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), KeyboardInterrupt(), DiskTooSmall("x", size=1, virtual_size=2)]
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_disk_that_could_not_be_made_leaves_nothing(
    host: Host, base: BaseImage, machine: Machine, error: BaseException, *, elsewhere: bool
) -> None:
    def fail(want: DiskSpec) -> None:
        raise error

    with pytest.raises(BaseException):  # noqa: B017
        create_with(host, Witness(look=fail), base, machine.root / "root.img" if elsewhere else None)

    assert [] == left_in(machine)
    assert not (machine.root / "root.img").exists()


@pytest.mark.parametrize("backend", ["flat", "qcow2"])
def test_a_disk_below_the_least_that_the_source_allows_is_refused(machine: Machine, backend: str) -> None:
    content = Path(machine.raw_image(size=16 * MIB).removeprefix("file://")).read_bytes()
    source = FakeSource({"fake:guest": FakeImage(content, min_disk=32 * MIB)})
    host = Host.open(machine.config, sources={"fake": source})

    with pytest.raises(DiskTooSmall) as refused:
        host.create_disk("web-1", "fake:guest", backend=backend, size=32 * MIB - 512)

    error = refused.value
    assert (32 * MIB - 512, 16 * MIB, 32 * MIB) == (error.size, error.virtual_size, error.min_disk)
    assert "fake:guest's min_disk is 33554432 bytes" in error.message
    assert [] == left_in(machine)
    assert 32 * MIB == host.create_disk("web-1", "fake:guest", backend=backend, size=32 * MIB).size
    [image], _ = host.images()
    assert image.record is not None
    assert 32 * MIB == image.record.min_disk
    assert 16 * MIB == host.create_disk("web-2", image, backend=backend).size  # who asks for no size gets the image's own


@pytest.mark.parametrize("allowed_now", [32 * MIB, 24 * MIB])
def test_the_least_that_a_source_allows_outlives_a_killed_ingest(machine: Machine, allowed_now: int) -> None:
    write_qcow2(machine.root / "guest.qcow2", size=16 * MIB, message="of a test")
    # What qemu-img converts is kept until it has; a qcow2 image would be raw as soon as it is here.
    into_vdi = ["qemu-img", "convert", "-f", "qcow2", "-O", "vdi"]
    subprocess.run([*into_vdi, machine.root / "guest.qcow2", machine.root / "guest.vdi"], check=True)
    content = (machine.root / "guest.vdi").read_bytes()
    digest = Digest("sha256", hashlib.sha256(content).hexdigest())

    def host(min_disk: int, observer: Observer) -> Host:
        image = FakeImage(content, min_disk=min_disk, digests=(digest,))
        return Host.open(machine.config, observer=observer, sources={"fake": FakeSource({"fake:guest": image})})

    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            host(32 * MIB, KilledAt("download-durable")).ensure("fake:guest", raw=True)
        os._exit(1)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    recorder = Recorder()
    again = host(allowed_now, recorder)

    image = again.ensure("fake:guest", raw=True)

    assert "download-kept" in [event.code for event in recorder.events]
    assert image.record is not None
    assert allowed_now == image.record.min_disk
    with pytest.raises(DiskTooSmall, match=f"min_disk is {allowed_now} bytes"):
        again.create_disk("web-1", image, size=allowed_now - 512)


@dataclass(frozen=True, slots=True)
class KilledAt:
    """An observer with which the process dies at an event."""

    code: str

    def event(self, event: Event) -> None:
        if event.code == self.code:
            os.kill(os.getpid(), signal.SIGKILL)

    def progress(self, progress: Progress) -> None:
        """Nothing."""


def test_a_failure_leaves_what_was_there_before(host: Host, base: BaseImage, machine: Machine) -> None:
    other = host.create_disk("web-1", base, name="disk.local", backend="flat")
    (machine.instances / "empty").mkdir()
    before = left_in(machine)

    for instance in ("web-1", "empty"):
        with pytest.raises(DiskTooSmall):
            host.create_disk(instance, base, size=MIB)

    assert before == left_in(machine)
    assert {str(other.path): "raw"} == json.loads((machine.instances / "web-1" / "disk.info").read_text())


def test_next_to_a_record_of_novas_that_cannot_be_read_no_disk_is_made(host: Host, base: BaseImage, machine: Machine) -> None:
    (machine.instances / "web-1").mkdir()
    info = machine.instances / "web-1" / "disk.info"
    info.write_text("{")

    with pytest.raises(DiskUnrecorded, match=r"disk\.info cannot be read"):
        host.create_disk("web-1", base)

    assert [info.parent, info] == left_in(machine)
    assert "{" == info.read_text()


def test_a_base_that_was_removed_meanwhile_is_not_cached(host: Host, base: BaseImage, machine: Machine) -> None:
    base.path.unlink()

    with pytest.raises(NotCached):
        host.create_disk("web-1", base)

    assert [] == left_in(machine)


def test_a_digest_learnt_meanwhile_does_not_make_it_another_image(host: Host, base: BaseImage, machine: Machine) -> None:
    host.ensure(f"file://{machine.root}/image.raw", checksum="md5:" + md5_of(machine.root / "image.raw"))

    assert base.name == host.create_disk("web-1", base).base


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------------------- several at once


@pytest.mark.parametrize("backend", ["flat", "qcow2"])
def test_threads_that_ask_for_one_disk_at_once_all_get_it(host: Host, base: BaseImage, machine: Machine, backend: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        disks = list(pool.map(lambda _: host.create_disk("web-1", base, size=GIB, backend=backend), range(16)))

    assert 1 == len(set(disks))
    assert disks[0] == host.disk("web-1")
    assert {"disk", "disk.info"} == set(os.listdir(machine.instances / "web-1"))


def test_of_threads_that_ask_for_different_disks_of_one_name_one_wins_whole(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    machine = Machine.make(tmp_path, extra=f'[caches.second]\nkind = "base"\npath = "{tmp_path}/second"\n')
    host, ref = machine.host(), machine.raw_image()
    bases = [host.ensure(ref), host.ensure(ref, cache="second")]
    barrier = threading.Barrier(8)

    def make(number: int) -> InstanceDisk | DiskExists:
        barrier.wait()
        try:
            return host.create_disk("web-1", bases[number % 2], size=GIB * (1 + number // 4))
        except DiskExists as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(make, range(8)))

    made = {result for result in results if isinstance(result, InstanceDisk)}
    assert {host.disk("web-1")} == made
    assert 2 == sum(isinstance(result, InstanceDisk) for result in results)
    assert {"disk", "disk.info"} == set(os.listdir(machine.instances / "web-1"))
    assert {str(machine.instances / "web-1" / "disk"): "qcow2"} == json.loads(
        (machine.instances / "web-1" / "disk.info").read_text()
    )


def make_when_told(config: str, ref: str, size: str) -> None:
    host = Host.open(config)
    tell("ready")
    told()
    try:
        tell(f"made {host.create_disk('web-1', ref, size=size).path.stat().st_ino}")
    except UnderlayError as error:
        tell(error.code)


@pytest.mark.parametrize("sizes", [4 * ["1GiB"], ["1GiB", "2GiB", "1GiB", "2GiB"]])
def test_processes_that_ask_for_one_disk_at_once_get_it_or_are_told(machine: Machine, host: Host, sizes: list[str]) -> None:
    ref = machine.raw_image()
    host.ensure(ref)

    with ExitStack() as stack:
        children = [stack.enter_context(start(make_when_told, machine.config, ref, size)) for size in sizes]
        assert ["ready"] * 4 == [child.hear() for child in children]
        for child in children:
            child.say()
        answers = [child.hear() for child in children]

    disk = host.disk("web-1")
    expected = [
        f"made {disk.path.stat().st_ino}" if size == f"{(disk.size or 0) // GIB}GiB" else "disk-exists" for size in sizes
    ]
    assert expected == answers
    assert {"disk", "disk.info"} == set(os.listdir(machine.instances / "web-1"))


def test_a_failing_neighbour_does_not_take_the_directory_away(host: Host, base: BaseImage, machine: Machine) -> None:
    def make(number: int) -> None:
        size = MIB if number % 2 else GIB
        with suppress(DiskTooSmall):
            host.create_disk(f"web-{number // 4}", base, name=f"disk.{number % 4}", size=size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(48)))

    assert 24 == len(host.disks())
    for number in range(12):
        info = json.loads((machine.instances / f"web-{number}" / "disk.info").read_text())
        assert {str(machine.instances / f"web-{number}" / name) for name in ("disk.0", "disk.2")} == info.keys()


def test_disks_made_and_removed_at_once_keep_their_record_right(host: Host, base: BaseImage, machine: Machine) -> None:
    def work(number: int) -> None:
        host.create_disk("web-1", base, name=f"disk.{number}", backend="flat" if number % 3 else "qcow2")
        if number % 2:
            host.remove_disk("web-1", name=f"disk.{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(32)))

    info = json.loads((machine.instances / "web-1" / "disk.info").read_text())
    assert {str(disk.path): disk.format for disk in host.disks()} == info
    assert 16 == len(info)


# ---------------------------------------------------------------------------------------------------------------------- in use


def hold_open(path: str, flags: str) -> None:
    fd = os.open(path, int(flags))
    tell("open")
    told()
    os.close(fd)
    tell("closed")
    told()


def test_a_disk_of_a_file_that_does_not_stay_names_no_base(machine: Machine, host: Host, base: BaseImage) -> None:
    content = replace(base, cache=machine.root, name="passing")
    content.path.write_bytes(base.path.read_bytes())
    flat = host.parts.backend("flat")
    disk = instances.create_alone(host.config, flat, content, instances.disk_spec(host.config, "web-1", "disk.swap"))
    content.path.unlink()
    assert (None, None, "raw") == (disk.base, disk.base_path, disk.format)
    assert [disk] == host.disks()
    assert {"disk.info", "disk.swap"} == set(os.listdir(machine.instances / "web-1"))


def test_a_disk_of_a_file_that_does_not_stay_is_made_whole_or_not_at_all(machine: Machine, host: Host, base: BaseImage) -> None:
    missing, want = replace(base, cache=machine.root, name="missing"), instances.disk_spec(host.config, "web-1", "disk")
    with pytest.raises(CacheMissing):
        instances.create_alone(host.config, host.parts.backend("flat"), missing, want)
    with pytest.raises(Unsupported):
        instances.create_alone(host.config, host.parts.backend("qcow2"), base, want)
    assert [] == os.listdir(machine.instances)


@pytest.fixture(params=[os.O_RDONLY, os.O_RDWR], ids=["reading", "writing"])
def opened(request: pytest.FixtureRequest, host: Host, base: BaseImage) -> Iterator[InstanceDisk]:
    disk = host.create_disk("web-1", base, backend="flat")
    with start(hold_open, disk.path, request.param) as child:
        assert "open" == child.hear()
        yield disk


def test_a_disk_that_somebody_has_open_is_left_alone(opened: InstanceDisk, host: Host, machine: Machine) -> None:
    before = left_in(machine)

    with pytest.raises(DiskInUse, match=str(opened.path)):
        host.resize_disk("web-1", "2GiB")
    with pytest.raises(DiskInUse, match=str(opened.path)):
        host.remove_disk("web-1")

    assert before == left_in(machine)
    assert opened == host.disk("web-1")


def test_a_look_at_a_disk_is_waited_for(host: Host, base: BaseImage) -> None:
    host.create_disk("web-1", base, backend="flat")
    stop = threading.Event()

    def list_on() -> None:
        while not stop.is_set():
            host.disks()

    thread = threading.Thread(target=list_on)
    thread.start()
    try:
        for number in range(1, 11):
            assert 16 * MIB + number * 512 == host.resize_disk("web-1", 16 * MIB + number * 512).size
    finally:
        stop.set()
        thread.join()


@pytest.mark.component("root")
def test_where_it_cannot_be_told_whether_a_disk_is_open_it_counts_as_open(short_directory: Path) -> None:
    machine = Machine.make(short_directory)
    os.chown(machine.base, -1, NOBODY)  # whose group may lock
    disk = machine.host().create_disk("web-1", machine.raw_image(), backend="flat")
    for path in (short_directory, machine.instances, disk.path.parent, machine.base):
        path.chmod(0o777)
    disk.path.chmod(0o666)

    with start(remove_web_1, machine.config, "", user=NOBODY) as child:  # who owns no lease on another's file
        assert "disk-in-use" == child.hear()
    assert disk == machine.host().disk("web-1")

    with start(remove_web_1, machine.config, "closed", user=NOBODY) as child:  # and is believed when it knows
        assert str(disk.path) == child.hear()
    assert not disk.path.exists()


def test_a_disk_that_is_seen_to_be_open_is_left_alone_whatever_is_assumed(opened: InstanceDisk, host: Host) -> None:
    with pytest.raises(DiskInUse, match=str(opened.path)):
        host.remove_disk("web-1", assume_closed=True)
    with pytest.raises(DiskInUse, match=str(opened.path)):
        host.resize_disk("web-1", "2GiB", assume_closed=True)

    assert opened == host.disk("web-1")


def remove_web_1(config: str, assume: str) -> None:
    try:
        tell(str(Host.open(config).remove_disk("web-1", assume_closed=bool(assume)).path))
    except UnderlayError as error:
        tell(error.code)


# -------------------------------------------------------------------------------------------------------- growing and removing


def test_a_removed_disk_leaves_nothing_and_its_base_stays(host: Host, base: BaseImage, machine: Machine) -> None:
    disk = host.create_disk("web-1", base)

    assert disk == host.remove_disk("web-1")

    assert [] == left_in(machine)
    assert base.record == (host.find(base.name)[0]).record
    with pytest.raises(DiskNotFound):
        host.remove_disk("web-1")


def test_a_disk_removed_elsewhere_takes_its_root_along(host: Host, base: BaseImage, machine: Machine) -> None:
    disk = host.create_disk("web-1", base, path=machine.root / "root.img")

    host.remove_disk("web-1", path=disk.path)

    assert [] == left_in(machine)
    assert not disk.path.exists()


def test_an_instances_directory_with_something_else_in_it_stays(host: Host, base: BaseImage, machine: Machine) -> None:
    host.create_disk("web-1", base)
    log = machine.instances / "web-1" / "console.log"
    log.write_text("booting")

    host.remove_disk("web-1")

    assert [log.parent, log] == left_in(machine)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_left_of_a_disk_that_is_not_there_goes_with_the_next_removal(host: Host, machine: Machine, kind: str) -> None:
    directory = machine.instances / "web-1"
    directory.mkdir()
    left, other = directory / ".disk.underlay", directory / ".disk.local.underlay"
    if kind == "file":
        left.write_bytes(b"half a disk")
    else:
        left.mkdir()
        (left / "root.hds").write_bytes(b"half a disk")
    other.write_bytes(b"half of another")
    (directory / "disk.info").write_text(f'{{"{directory}/disk": "raw", "{directory}/disk.local": "raw"}}')

    with pytest.raises(DiskNotFound):
        host.remove_disk("web-1")

    assert {other.name, "disk.info"} == set(os.listdir(directory))
    assert {f"{directory}/disk.local": "raw"} == json.loads((directory / "disk.info").read_text())
    with pytest.raises(DiskNotFound):
        host.remove_disk("web-1", name="disk.local")
    assert not directory.exists()


@pytest.mark.parametrize("backend", ["qcow2", "ploop"])
@pytest.mark.parametrize("way", ["remove", "forget"])
def test_what_is_left_of_a_disk_elsewhere_goes_too_if_one_is_recorded_there(
    host: Host, base: BaseImage, machine: Machine, backend: str, way: str
) -> None:
    path, left = machine.root / "web", machine.root / ".web.underlay"
    left.write_bytes(b"nothing says whose this is")
    with pytest.raises(DiskNotFound):
        host.remove_disk("web-1", path=path)
    with pytest.raises(DiskNotFound):
        host.forget_disk(path)
    assert left.exists()
    left.unlink()
    host.create_disk("web-1", base, path=path, backend=backend)
    path.rename(left)  # as a remover that is killed leaves it

    if way == "remove":
        with pytest.raises(DiskNotFound):
            host.remove_disk("web-1", path=path)
        assert not os.path.lexists(left)
        assert "disk-missing" in machine.run("check", "--json").out  # its file system may come back, and the disk with it
    host.forget_disk(path)

    assert not os.path.lexists(left)
    assert "disk-missing" not in machine.run("check", "--json").out


@pytest.mark.component("root", "ramfs")
@pytest.mark.parametrize("backend", ["qcow2", "ploop"])
def test_a_disk_elsewhere_without_attributes_is_removed_and_forgotten(
    host: Host, base: BaseImage, machine: Machine, mounted: Callable[..., Path], backend: str
) -> None:
    path = mounted("ramfs") / "web"
    disk = host.create_disk("web-1", base, path=path, backend=backend)
    assert (path, backend) == (disk.path, disk.backend)

    assert path == host.disk("web-1", path=path).path
    host.remove_disk("web-1", path=path)

    assert [] == os.listdir(path.parent)
    with pytest.raises(DiskNotFound, match="no disk is recorded"):
        host.forget_disk(path)


def test_another_disks_record_stays(host: Host, base: BaseImage, machine: Machine) -> None:
    host.create_disk("web-1", base)
    other = host.create_disk("web-1", base, name="disk.local", backend="flat")

    host.remove_disk("web-1")

    assert {str(other.path): "raw"} == json.loads((machine.instances / "web-1" / "disk.info").read_text())
    assert [other] == host.disks()


def test_where_novas_record_cannot_be_read_nothing_is_removed(host: Host, base: BaseImage, machine: Machine) -> None:
    disk = host.create_disk("web-1", base)
    (machine.instances / "web-1" / "disk.info").write_text("{")

    with pytest.raises(DiskUnrecorded, match=r"disk\.info"):
        host.remove_disk("web-1")

    assert disk == host.disk("web-1")


def test_a_file_that_nothing_records_is_not_removed_by_its_path(host: Host, machine: Machine) -> None:
    mine = machine.root / "mine"
    mine.write_text("precious")

    for touch in (host.disk, host.remove_disk):
        with pytest.raises(DiskUnrecorded, match=str(mine)):
            touch("web-1", path=mine)
    with pytest.raises(DiskUnrecorded):
        host.resize_disk("web-1", "1GiB", path=mine)

    assert "precious" == mine.read_text()


def test_another_instances_disk_is_not_removed_by_its_path(host: Host, base: BaseImage, machine: Machine) -> None:
    disk = host.create_disk("web-1", base, path=machine.root / "root.img")

    with pytest.raises(DiskNotFound, match="not a disk of web-2"):
        host.remove_disk("web-2", path=disk.path)

    assert disk == host.disk("web-1", path=disk.path)


def test_a_disk_of_novas_on_a_base_of_another_place_can_be_removed(host: Host, machine: Machine) -> None:
    disk = nova_disk(machine, backing="/srv/old images/base of mine")

    assert disk == host.remove_disk("web-1").path

    assert [] == left_in(machine)


def nova_disk(machine: Machine, *, backing: str) -> Path:
    disk = machine.instances / "web-1" / "disk"
    disk.parent.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", disk, "1G"], check=True)
    (disk.parent / "disk.info").write_text(json.dumps({str(disk): "qcow2"}))
    return disk


# -------------------------------------------------------------------------------------------------------------------- listing


def test_every_disk_is_listed_once_by_path(host: Host, base: BaseImage, machine: Machine) -> None:
    made = [
        host.create_disk("web-2", base),
        host.create_disk("web-1", base, backend="flat"),
        host.create_disk("web-1", base, name="disk.local"),
        host.create_disk("web-3", base, path=machine.root / "root.img"),
    ]

    assert sorted(made, key=lambda disk: disk.path) == host.disks()


def test_what_only_looks_like_a_disk_is_not_listed(host: Host, machine: Machine) -> None:
    for name in ("_base/disk", "web-1/disk.info", "web-1/disk.info.tmp", "web-1/console.log", "web-1/.disk.underlay"):
        path = machine.instances / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (machine.instances / "web-1" / "disk").symlink_to("/etc/passwd")
    (machine.instances / "web-1" / "disk.d").mkdir()
    (machine.instances / "web-2").symlink_to("/etc")
    (machine.instances / "disk").touch()

    assert ["_base"] == [disk.instance for disk in host.disks()]


def test_the_cache_itself_is_no_instance(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, base="instances/_base")
    (machine.base / "disk").touch()

    assert [] == machine.host().disks()


def test_a_config_drive_is_no_disk_unless_it_was_made_as_one(host: Host, base: BaseImage, machine: Machine) -> None:
    made = host.create_disk("web-1", base, name="disk.config")
    (machine.instances / "web-2").mkdir()
    for name in ("disk.config", "disk.config.rescue"):
        (machine.instances / "web-2" / name).write_bytes(bytes(4096))

    assert [made] == host.disks()


def test_a_root_whose_disk_is_gone_is_not_listed(host: Host, base: BaseImage, machine: Machine) -> None:
    host.create_disk("web-1", base, path=machine.root / "root.img").path.unlink()

    assert [] == host.disks()


def test_one_disk_that_cannot_be_looked_at_hides_no_other(machine: Machine) -> None:
    recorder = Recorder()
    host = machine.host(recorder)
    base = host.ensure(machine.raw_image())
    good = host.create_disk("web-1", base)
    odd = host.create_disk("web-2", base, path=machine.root / "root.img")
    odd.path.unlink()
    odd.path.symlink_to("/etc/passwd")

    assert [good] == host.disks()

    event = recorder.wait_for_event("disk-exists", seconds=0)
    assert ("warning", str(odd.path)) == (event.level, event.fields["path"])


def test_a_record_of_novas_that_cannot_be_read_hides_no_disk(host: Host, base: BaseImage, machine: Machine) -> None:
    ours = host.create_disk("web-1", base)
    theirs = ours.path.with_name("disk.local")
    theirs.write_bytes(bytes(MIB))
    (machine.instances / "web-1" / "disk.info").write_text("{")

    assert [("qcow2", ours.path), (None, theirs)] == [(disk.format, disk.path) for disk in host.disks()]


@pytest.mark.component("root")
def test_a_user_who_may_not_read_them_still_lists_the_disks(short_directory: Path) -> None:
    machine = Machine.make(short_directory)
    host = machine.host()
    base = host.ensure(machine.raw_image())
    disks = [host.create_disk("web-1", base), host.create_disk("web-2", base), host.create_disk("web-3", base)]
    for path in (short_directory, machine.instances, machine.base):
        path.chmod(0o755)
    disks[1].path.parent.chmod(0o700)

    with start(list_disks, machine.config, user=NOBODY) as child:
        assert [["web-1", "qcow2", None], ["web-3", "qcow2", None]] == json.loads(child.hear())
        assert ["cache-not-writable"] == json.loads(child.hear())


def list_disks(config: str) -> None:
    recorder = Recorder()
    tell(json.dumps([[disk.instance, disk.format, disk.size] for disk in Host.open(config, observer=recorder).disks()]))
    tell(json.dumps(recorder.codes))


# ---------------------------------------------------------------------------------------------- a Nova that removes lock files


class NovaPassesBy(Qcow2Backend, frozen=True, kw_only=True):
    """A backend like any other, behind whose back a Nova removes its lock file and the base, as its manager may."""

    lock: Path

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        made = Qcow2Backend.create(self, base, want)
        self.lock.unlink()
        base.path.unlink()
        return made


def test_a_disk_whose_base_nova_took_away_meanwhile_is_not_handed_out(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, base="instances/_base")
    host = machine.host()
    base = host.ensure(machine.raw_image())
    store = host.parts.store_of(base)
    assert store.nova_locks is not None
    backend = NovaPassesBy(lock=store.nova_locks / f"nova-{base.name}")
    want = instances.disk_spec(host.config, "web-1", "disk")

    with pytest.raises(LockLost):
        instances.create(host.config, backend, base, want, store=store)

    assert not (machine.instances / "web-1").exists()


def test_a_disk_that_cannot_be_told_to_be_closed_is_removed_when_the_operator_says_that_it_is(
    host: Host, base: BaseImage
) -> None:
    disk = host.create_disk("web-1", base)
    with disk.path.open("rb"), pytest.raises(DiskInUse):  # what is seen to be open stays, whatever is said
        host.remove_disk("web-1", assume_closed=True)
    host.remove_disk("web-1", assume_closed=True)
    assert not disk.path.exists()
