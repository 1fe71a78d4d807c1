"""Nova's image backends over our core, where no Nova is: what is called back, what is made, and what is left when it fails.

Beside the real Nova: tests/components/nova/test_image_backends.py.
"""

import errno
import importlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import corpus
from children import Child, start, tell
from installed import install_backend
from machine import GIB, MIB, NOBODY, Machine
from pruning import DAY, nova_host
from underlay.errors import (
    DiskExists,
    DiskTooSmall,
    DiskUnrecorded,
    ExtraMissing,
    InvalidForm,
    InvalidName,
    NotAnImage,
    NotCached,
    UnderlayError,
    UnsafeImage,
    Unsupported,
    VirtualSizeRefused,
)
from underlay.files import ATTRIBUTE
from underlay.host.parts import Parts
from underlay.model import Event
from underlay.openstack.nova import Backend, Flat, Image, Lvm, Qcow2, Rbd, templates
from underlay.openstack.nova.around import Around
from underlay.testing.fakedisks import FakeBackend
from underlay.testing.fakes import FakeImage, FakeSource, Recorder

pytestmark = pytest.mark.component("qemu-img")

UUID = "7a3f1d4e-0001-4c1c-9e50-1d2f00000001"
NAME = "f" * 40
INSTANCE = SimpleNamespace(uuid=UUID, name="instance-00000001")
LOCATION = "fake://storage/image"
MAPPING = {"bus": "virtio", "type": "disk", "dev": "vda"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A host whose configuration the classes find."""
    return configured(Machine.make(tmp_path, options="force_raw_images = true"), monkeypatch)


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One that keeps images as they are."""
    return configured(Machine.make(tmp_path, options="force_raw_images = false"), monkeypatch)


def configured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("UNDERLAY_CONFIG", os.fspath(machine.config))
    return machine


@dataclass
class Fetch:
    """A callback that writes what it is told, and remembers how it was called."""

    content: bytes = b"\0" * MIB
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, *args: object, target: str, **kwargs: object) -> None:
        self.calls.append({"args": args, "target": Path(target), **kwargs})
        Path(target).write_bytes(self.content)


def image(name: str = "disk", image_type: str | None = None, **how: Any) -> Image:
    return Backend(use_cow=True).by_name(INSTANCE, name, image_type, **how)


def cached(machine: Machine) -> set[str]:
    """What is in the cache, and in staging."""
    staged = machine.base / ".underlay/tmp"
    return {path.name for path in machine.base.iterdir()} - {".underlay"} | set(os.listdir(staged) if staged.exists() else ())


def disks(machine: Machine) -> set[str]:
    return {os.fspath(path.relative_to(machine.instances)) for path in machine.instances.rglob("*")}


def info(path: Path) -> dict[str, Any]:
    json = importlib.import_module("json")
    told = subprocess.run(["qemu-img", "info", "--output=json", path], check=True, capture_output=True).stdout
    return dict(json.loads(told))


# ---------------------------------------------------------------------------------------------------------------- the types


def test_types_are_known_by_nova_s_names(machine: Machine) -> None:
    backend = Backend(use_cow=True)
    assert (Flat, Flat, Qcow2, Lvm, Rbd) == tuple(map(backend.backend, ("raw", "flat", "qcow2", "lvm", "rbd")))
    assert [Qcow2, Flat, Qcow2] == [backend.backend("default"), Backend(use_cow=False).backend("default"), backend.backend()]


def test_an_image_in_a_volume_group_is_called_by_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(Machine.make(tmp_path, extra='[disks.lvm]\nvolume_group = "group"'), monkeypatch)
    one = Backend(use_cow=True).by_name(INSTANCE, "disk", "lvm", MAPPING)
    assert (f"/dev/group/{UUID}_disk", "block", "raw") == (one.path, one.source_type, one.driver_format)
    assert (True, None, MAPPING) == (one.is_block_dev, one.disk_info_path, one.disk_info_mapping)


@pytest.mark.parametrize("unknown", ["qcow3", "Qcow2", "../flat", "none"])
def test_an_unknown_type_is_a_runtime_error_that_lists_the_known_ones(machine: Machine, unknown: str) -> None:
    for ask in (Backend(use_cow=True).backend, lambda name: image("disk", name)):
        with pytest.raises(RuntimeError, match=rf"Unknown image_type={unknown}; there are default, flat, .*qcow2.*raw, rbd"):
            ask(unknown)


def test_an_image_is_an_instance_of_its_type_and_of_no_other(machine: Machine) -> None:
    assert isinstance(image(), Image)
    assert isinstance(image(), Qcow2)  # type: ignore[arg-type]
    assert not isinstance(image(), Flat)  # type: ignore[arg-type]
    assert not isinstance("disk", Qcow2)  # type: ignore[arg-type]


def test_types_say_what_their_disks_are_like(machine: Machine) -> None:
    told = [
        (kind.SUPPORTS_CLONE, kind.SUPPORTS_LUKS, kind.is_shared_block_storage(), kind.is_file_in_instance_path())
        for kind in (Flat, Qcow2, Rbd)
    ]
    assert [(False, False, False, True), (False, False, False, True), (True, False, True, False)] == told


@pytest.mark.parametrize("image_type", ["qcow2", "raw"])
def test_an_image_that_is_not_there_says_where_it_would_be(machine: Machine, image_type: str) -> None:
    one = image("disk", image_type, disk_info_mapping=MAPPING)
    directory = machine.instances / UUID
    assert (str(directory / "disk"), "file", image_type) == (one.path, one.source_type, one.driver_format)
    assert (False, False, None, None) == (one.is_block_dev, one.preallocate, one.driver_io, one.discard_mode)
    assert (str(directory / "disk.info"), str(machine.instances / "locks")) == (one.disk_info_path, one.lock_path)
    assert (MAPPING, False, False) == (one.disk_info_mapping, one.SUPPORTS_CLONE, one.SUPPORTS_LUKS)
    assert (False, False, True) == (one.exists(), one.is_shared_block_storage(), one.is_file_in_instance_path())
    assert set() == disks(machine)


def test_an_image_of_a_ceph_is_called_as_qemu_s_tools_call_it(machine: Machine) -> None:
    one = image("disk", "rbd")
    assert (f"rbd:rbd/{UUID}_disk", "block", "rbd") == (one.path, one.source_type, one.driver_format)
    assert (True, False, None) == (one.SUPPORTS_CLONE, one.is_block_dev, one.disk_info_path)
    by_path = Backend(use_cow=True).by_libvirt_path(INSTANCE, f"rbd/{UUID}_disk.eph0", "rbd")
    assert f"rbd:rbd/{UUID}_disk.eph0" == by_path.path


@pytest.mark.parametrize("path", ["nothing", "rbd/other_disk", f"rbd/{UUID}", f"rbd/{UUID}_", "", f"{UUID}_../x"])
def test_a_path_of_libvirt_s_that_is_no_disk_of_the_instance_is_refused(machine: Machine, path: str) -> None:
    with pytest.raises(InvalidName):
        Backend(use_cow=True).by_libvirt_path(INSTANCE, path, "rbd")


def test_a_disk_is_found_by_the_path_that_libvirt_has(machine: Machine) -> None:
    path = machine.instances / UUID / "disk.rescue"
    one = Backend(use_cow=True).by_libvirt_path(INSTANCE, os.fspath(path), "qcow2")
    one.cache(Fetch(), NAME)
    assert "qcow2" == info(path)["format"]
    assert Backend(use_cow=True).by_name(INSTANCE, os.fspath(path)).exists()


@pytest.mark.parametrize("name", ["", "../disk", "disk/../../x", "disk.\n", "/etc/passwd\0"])
def test_a_disk_that_cannot_be_called_so_is_refused(machine: Machine, name: str) -> None:
    with pytest.raises((InvalidName, ValueError)):
        image(name)


def test_the_disk_of_another_instance_is_refused(machine: Machine) -> None:
    with pytest.raises(InvalidName, match="another instance"):
        image(os.fspath(machine.instances / "other/disk"))


# --------------------------------------------------------------------------------------------------------------- the callback


def test_a_callback_writes_to_staging_and_the_whole_file_is_published_without_a_record(machine: Machine) -> None:
    seen: list[set[str]] = []

    def fetch(target: str) -> None:
        Path(target).write_bytes(b"a" * MIB)
        seen.append({path.name for path in machine.base.iterdir()})
        assert Path(target).is_relative_to(machine.base / ".underlay/tmp")

    image().cache(fetch, NAME, 2 * MIB)
    assert [{".underlay"}] == seen
    assert {NAME} == cached(machine)
    assert b"a" * MIB == (machine.base / NAME).read_bytes()
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(machine.base / NAME, ATTRIBUTE)
    assert 0o644 == (machine.base / NAME).stat().st_mode & 0o777
    told = info(machine.instances / UUID / "disk")
    assert ("qcow2", 2 * MIB, str(machine.base / NAME), "raw") == (
        told["format"],
        told["virtual-size"],
        told["backing-filename"],
        told["backing-filename-format"],
    )


def test_a_callback_is_given_what_nova_gives_it(machine: Machine) -> None:
    fetch = Fetch()
    image().cache(fetch_func=fetch, filename=NAME, size=None, context="request", image_id="id", trusted_certs=None, safe=True)
    [call] = fetch.calls
    assert {"args", "target", "context", "image_id", "trusted_certs"} == call.keys()
    assert ((), "request", "id", None) == (call["args"], call["context"], call["image_id"], call["trusted_certs"])


def test_positional_arguments_go_to_the_callback(machine: Machine) -> None:
    fetch = Fetch()
    image().cache(fetch, NAME, None, "one", 2)
    assert ("one", 2) == fetch.calls[0]["args"]


def test_what_is_there_is_not_fetched_again(machine: Machine) -> None:
    fetch = Fetch()
    for name in ("disk", "disk", "disk.rescue"):
        image(name).cache(fetch, NAME, 2 * MIB)
    assert 1 == len(fetch.calls)


def test_many_at_once_fetch_an_image_once(machine: Machine) -> None:
    fetch, begun = Fetch(), threading.Barrier(8)

    def make(number: int) -> None:
        def slowly(target: str) -> None:
            time.sleep(0.1)
            fetch(target=target)

        begun.wait(60)
        image(f"disk.{number // 2}").cache(slowly, NAME, 2 * MIB)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))
    assert 1 == len(fetch.calls)
    assert {f"disk.{number}" for number in range(4)} | {"disk.info"} == set(os.listdir(machine.instances / UUID))


class Remover(Recorder):
    """Removes an image as soon as it is published, so many times: a manager of Nova's that takes no lock of ours."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__()
        self.path, self.left = path, times

    def event(self, event: Event) -> None:
        super().event(event)
        if event.code == "published" and self.left:
            self.left -= 1
            self.path.unlink()


@pytest.mark.parametrize("times", [1, 2])
def test_an_image_that_somebody_removes_before_the_disk_is_made_is_made_again(machine: Machine, times: int) -> None:
    found, fetch = Around.load(), Fetch()
    parts = Parts(found.config, Remover(machine.base / NAME, times))
    one = Image(Around(parts), parts.backend("qcow2"), INSTANCE, "disk")
    one.cache(fetch, NAME, 2 * MIB)
    assert times + 1 == len(fetch.calls)
    corpus.qemu_img("convert", "-f", "qcow2", "-O", "raw", one.path, machine.root / "read")


def test_an_image_that_is_removed_again_and_again_is_given_up(machine: Machine) -> None:
    parts = Parts(Around.load().config, Remover(machine.base / NAME, 100))
    with pytest.raises(NotCached):
        Image(Around(parts), parts.backend("qcow2"), INSTANCE, "disk").cache(Fetch(), NAME)
    assert set() == disks(machine)


def test_a_base_image_that_is_gone_is_fetched_for_a_disk_that_is_there(machine: Machine) -> None:
    fetch = Fetch(corpus.noise(MIB))
    image().cache(fetch, NAME)
    (machine.base / NAME).unlink()
    image().cache(fetch, NAME)
    assert 2 == len(fetch.calls)
    assert fetch.content == (machine.base / NAME).read_bytes()


@pytest.mark.parametrize("size", [4 * MIB, 8 * MIB, None])
def test_a_disk_that_is_there_stays_when_nothing_is_made_for_its_base_image(machine: Machine, size: int | None) -> None:
    image().cache(Fetch(corpus.noise(MIB)), NAME, 8 * MIB)
    disk = machine.instances / UUID / "disk"
    before = disk.read_bytes()
    (machine.base / NAME).unlink()
    with pytest.raises(NotCached, match="nothing was made for the image"):
        image().cache(lambda target: None, NAME, size)
    assert before == disk.read_bytes()


@pytest.mark.parametrize("filename", [NAME, "swap_1"])
def test_of_two_who_make_one_disk_that_stands_alone_one_does(machine: Machine, filename: str) -> None:
    fetch, begun = Fetch(), threading.Barrier(2)

    def slowly(target: str) -> None:
        time.sleep(0.1)
        fetch(target=target)

    def make(number: int) -> None:
        one = image("disk.swap", "raw")
        begun.wait(60)
        one.create_image(slowly, str(machine.base / filename), 2 * MIB)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, range(2)))
    assert 1 == len(fetch.calls)
    assert 2 * MIB == image("disk.swap", "raw").get_disk_size(str(machine.instances / UUID / "disk.swap"))


def test_nobody_waits_for_the_swap_of_another_disk(machine: Machine) -> None:
    both = threading.Barrier(2)  # which only two that are in the callback at once get through

    def mkswap(target: str) -> None:
        both.wait(30)
        Path(target).write_bytes(b"s" * MIB)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: image(name, "raw").cache(mkswap, "swap_1", MIB), ("disk.swap", "disk.swap1")))
    assert set() == cached(machine)


@pytest.mark.parametrize("image_type", ["qcow2", "raw"])
@pytest.mark.parametrize("filename", [NAME, "swap_1"])
def test_a_callback_that_fails_leaves_nothing_and_its_error_is_its_own(
    machine: Machine, image_type: str, filename: str
) -> None:
    class Failed(Exception):
        pass

    def fetch(target: str) -> None:
        Path(target).write_bytes(b"half")
        Path(target + ".part").write_bytes(b"more")
        raise Failed

    with pytest.raises(Failed):
        image("disk.swap", image_type).cache(fetch, filename, MIB)
    assert (set(), set()) == (cached(machine), disks(machine))


@pytest.mark.parametrize("image_type", ["qcow2", "raw"])
@pytest.mark.parametrize("filename", [NAME, "ephemeral_1_0706d66"])
def test_a_callback_that_writes_nothing_is_an_error(machine: Machine, image_type: str, filename: str) -> None:
    with pytest.raises(NotCached, match="nothing was made"):
        image("disk.eph0", image_type).cache(lambda target: None, filename)
    with pytest.raises(UnsafeImage, match="rule empty"):
        image("disk.eph0", image_type).cache(lambda target: Path(target).touch(), filename)
    assert (set(), set()) == (cached(machine), disks(machine))


def lying(kind: str, directory: Path) -> bytes:
    """An image that names a file of the host."""
    secret = directory / "secret"
    secret.write_bytes(b"s" * MIB)
    path = directory / "lying"
    if kind == "backing":
        corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path, "1M")
    elif kind == "data-file":
        corpus.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", path, "1M")
    else:
        corpus.qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "1M")
    return path.read_bytes()


@pytest.mark.parametrize("image_type", ["qcow2", "raw"])
@pytest.mark.parametrize("kind", ["backing", "data-file", "vmdk"])
@pytest.mark.parametrize("options", ["force_raw_images = true", "force_raw_images = false"])
def test_an_image_that_names_a_file_of_the_host_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_type: str, kind: str, options: str
) -> None:
    (tmp_path / "machine").mkdir()
    machine = configured(Machine.make(tmp_path / "machine", options=options), monkeypatch)
    with pytest.raises(UnsafeImage):
        image("disk", image_type).cache(Fetch(lying(kind, tmp_path)), NAME, MIB, safe=True)
    assert (set(), set()) == (cached(machine), disks(machine))


MAKERS: dict[str, Callable[[Path], None]] = {
    "directory": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "fifo": os.mkfifo,
    "another-s-file": lambda path: os.link(path.parents[3] / "kept", path),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_a_file_of_its_own_is_refused(machine: Machine, kind: str) -> None:
    (machine.base / "kept").write_bytes(b"k" * 512)
    with pytest.raises(NotAnImage):
        image().cache(lambda target: MAKERS[kind](Path(target)), NAME)
    assert ({"kept"}, set()) == (cached(machine), disks(machine))


def test_a_record_that_a_callback_gives_its_file_vouches_for_nothing(machine: Machine, tmp_path: Path) -> None:
    content = lying("backing", tmp_path)

    def fetch(target: str) -> None:
        Path(target).write_bytes(content)
        os.setxattr(target, ATTRIBUTE, b'{"layout":1,"format":"raw"}')

    with pytest.raises(UnsafeImage):
        image().cache(fetch, NAME)
    content = b"r" * 512
    image().cache(fetch, NAME)
    assert ATTRIBUTE not in os.listxattr(machine.base / NAME)


@pytest.mark.parametrize("as_qcow2", [False, True])
def test_an_image_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_qcow2: bool) -> None:  # noqa: FBT001
    (tmp_path / "machine").mkdir()
    machine = configured(Machine.make(tmp_path / "machine", options='virtual_size_limit = "4MiB"'), monkeypatch)
    huge = corpus.create(tmp_path / "huge", "qcow2", GIB).read_bytes() if as_qcow2 else bytes(5 * MIB)
    with pytest.raises(VirtualSizeRefused):
        image().cache(Fetch(huge), NAME)
    assert (set(), set()) == (cached(machine), disks(machine))


def fetch_until_killed(*_: str) -> None:
    """In a process of its own: a callback that does not come to an end."""

    def fetch(target: str) -> None:
        Path(target).write_bytes(b"half")
        tell("half")
        time.sleep(60)

    image().cache(fetch, NAME)


def test_a_process_that_is_killed_in_a_callback_leaves_nothing_that_anybody_takes_for_an_image(machine: Machine) -> None:
    with start(fetch_until_killed) as child:
        wait_for_half(child)
        os.kill(child.pid, signal.SIGKILL)
        child.process.wait(60)
    assert not (machine.base / NAME).exists()
    assert set() == disks(machine)
    fetch = Fetch(b"w" * MIB)
    image().cache(fetch, NAME)
    assert {NAME} == cached(machine)
    assert fetch.content == (machine.base / NAME).read_bytes()


def wait_for_half(child: Child) -> None:
    assert "half" == child.hear()


def test_while_one_process_fetches_another_waits_for_it(machine: Machine) -> None:
    fetch = Fetch()
    with start(fetch_until_killed) as child:
        wait_for_half(child)
        waiting = threading.Thread(target=lambda: image().cache(fetch, NAME))
        waiting.start()
        waiting.join(0.3)
        assert [] == fetch.calls
        os.kill(child.pid, signal.SIGKILL)
        waiting.join(60)
    assert 1 == len(fetch.calls)


def make_disks(config: str) -> None:
    """In a process of its own, as another user: everything that a compute service does with disks."""
    os.environ["UNDERLAY_CONFIG"] = config
    for name, image_type in (("disk", "qcow2"), ("disk.flat", "raw")):
        one = image(name, image_type)
        one.cache(Fetch(), NAME, 2 * MIB)
        one.cache(Fetch(), NAME, 4 * MIB)
        one.snapshot_extract(f"{one.path}-snapshot", "qcow2")
        tell(str(one.get_disk_size(one.path)))


@pytest.mark.component("root")
def test_a_user_who_is_not_root_makes_and_grows_disks(open_directory: Path) -> None:
    machine = Machine.make(open_directory)
    for path in (machine.base, machine.instances):
        os.chown(path, NOBODY, NOBODY)
    with start(make_disks, machine.config, user=NOBODY, umask=0o077) as child:
        assert [str(4 * MIB)] * 2 == [child.hear(), child.hear()]
    assert {0o644} == {path.stat().st_mode & 0o777 for path in (machine.base / NAME, machine.instances / UUID / "disk")}


def copier(other: Path, how: str) -> Callable[..., None]:
    """Nova's callback: copies by one path for both hosts, as scp or as rsync does."""

    def copy_from_host(target: str) -> None:
        content = (other / Path(target).name).read_bytes()
        if how == "rsync":
            beside = Path(target).with_name(".beside")
            beside.write_bytes(content)
            beside.rename(target)
        else:
            Path(target).write_bytes(content)

    return copy_from_host


@pytest.mark.parametrize("how", ["scp", "rsync"])
@pytest.mark.parametrize("image_type", ["qcow2", "raw"])
def test_a_copy_from_another_host_is_told_the_image_s_own_path(
    machine: Machine, tmp_path: Path, how: str, image_type: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAME).write_bytes(corpus.noise(MIB))
    image("disk", image_type).cache(fetch_func=copier(tmp_path / "other", how), filename=NAME, size=2 * MIB)
    assert {NAME} == cached(machine)
    assert not (machine.base / NAME).is_symlink()
    assert corpus.noise(MIB) == (machine.base / NAME).read_bytes()
    (tmp_path / "other" / ("0" * 40)).write_bytes(lying("backing", tmp_path))
    with pytest.raises(UnsafeImage):
        image("disk.other", image_type).cache(fetch_func=copier(tmp_path / "other", how), filename="0" * 40)
    assert {NAME} == cached(machine)


def copy_again_and_again(root: str) -> None:
    """In a process of its own: copies of an image from another host that come to nothing, one after the other."""
    store = Around.load().store
    path = Path(root) / "elsewhere"
    tell("begun")
    while True:
        with templates.named(store, NAME, store.paths.tmp / path.name):
            pass


def test_who_looks_for_an_image_whose_copying_begins_or_ends_just_then_finds_none(machine: Machine) -> None:
    store = Around.load().store
    store.prepare()
    with start(copy_again_and_again, os.fspath(machine.root)) as child:
        assert "begun" == child.hear()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert templates.find(store, NAME) is None
        child.process.kill()


def copy_until_killed(*_: str) -> None:
    def copy_from_host(target: str) -> None:
        Path(target).write_bytes(b"half")
        tell("half")
        time.sleep(60)

    image().cache(copy_from_host, NAME)


def test_a_copy_that_fails_or_is_killed_leaves_no_link(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image().cache(copier(tmp_path / "nowhere", "scp"), NAME)
    assert (set(), set()) == (cached(machine), disks(machine))
    fetch = Fetch()
    with start(copy_until_killed) as child:
        wait_for_half(child)
        waiting = threading.Thread(target=lambda: image().cache(fetch, NAME))
        waiting.start()
        waiting.join(0.2)
        assert [] == fetch.calls
        os.kill(child.pid, signal.SIGKILL)
        waiting.join(60)
    assert ({NAME}, False, 1) == (cached(machine), (machine.base / NAME).is_symlink(), len(fetch.calls))


@pytest.mark.parametrize("filename", ["../x", "a/b", "", ".hidden", "x\ny", "-"])
def test_a_name_that_leads_out_of_the_cache_is_refused(machine: Machine, filename: str) -> None:
    fetch = Fetch()
    with pytest.raises((InvalidName, NotAnImage)):
        image().cache(fetch, filename)
    assert [] == fetch.calls


def test_the_directory_of_the_cache_is_made_as_nova_makes_it(machine: Machine) -> None:
    machine.base.rmdir()
    image().cache(Fetch(), NAME)
    assert {NAME} == cached(machine)


# ------------------------------------------------------------------------------------------------------------------ the disks


def test_an_image_that_is_larger_than_the_disk_may_be_stays_in_the_cache_and_there_is_no_disk(machine: Machine) -> None:
    for image_type in ("qcow2", "raw"):
        with pytest.raises(DiskTooSmall) as refusal:
            image("disk", image_type).cache(Fetch(bytes(2 * MIB)), NAME, MIB)
        assert (MIB, 2 * MIB) == (refusal.value.size, refusal.value.virtual_size)
    assert ({NAME}, set()) == (cached(machine), disks(machine))


@pytest.mark.parametrize("size", [None, 0])
def test_without_a_size_the_disk_has_the_image_s(machine: Machine, size: int | None) -> None:
    for name, image_type in (("disk", "qcow2"), ("disk.other", "raw")):
        one = image(name, image_type)
        one.cache(Fetch(bytes(3 * MIB)), NAME, size)
        assert 3 * MIB == one.get_disk_size(one.path)


def test_an_image_of_another_format_is_converted_where_the_cache_keeps_raw_images(machine: Machine, tmp_path: Path) -> None:
    content = corpus.small(tmp_path / "image.qcow2", "qcow2")
    image().cache(Fetch(content.read_bytes()), NAME)
    assert "raw" == info(machine.base / NAME)["format"]
    assert corpus.to_raw(content, tmp_path / "raw", "qcow2").read_bytes() == (machine.base / NAME).read_bytes()
    assert {NAME} == cached(machine)


def test_an_image_of_another_format_is_kept_where_the_cache_keeps_them_and_has_a_raw_form_for_flat_disks(
    keeping: Machine, tmp_path: Path
) -> None:
    content = corpus.small(tmp_path / "image.qcow2", "qcow2")
    fetch = Fetch(content.read_bytes())
    image().cache(fetch, NAME)
    told = info(keeping.instances / UUID / "disk")
    assert (str(keeping.base / NAME), "qcow2") == (told["backing-filename"], told["backing-filename-format"])
    image("disk.flat", "flat").cache(fetch, NAME)
    assert 1 == len(fetch.calls)
    assert {NAME, f"{NAME}.raw"} == cached(keeping)
    raw = corpus.to_raw(content, tmp_path / "raw", "qcow2").read_bytes()
    assert raw == (keeping.instances / UUID / "disk.flat").read_bytes() == (keeping.base / f"{NAME}.raw").read_bytes()


def test_a_ploop_disk_is_a_directory_with_what_the_image_has(machine: Machine, tmp_path: Path) -> None:
    one, content = image("disk", "ploop"), corpus.noise(MIB)
    one.cache(Fetch(content), NAME, 2 * MIB)
    one.cache(Fetch(), NAME, 4 * MIB)
    assert (True, 4 * MIB) == (Path(one.path).is_dir(), one.get_disk_size(one.path))
    assert ("file", "ploop", None, False) == (
        one.source_type,
        one.driver_format,
        one.disk_info_path,
        one.is_file_in_instance_path(),
    )
    one.snapshot_extract(str(tmp_path / "snapshot"), "raw")
    assert content == (tmp_path / "snapshot").read_bytes()[:MIB]


def test_a_swap_is_shared_by_overlays_and_made_for_each_flat_disk_alone(machine: Machine) -> None:
    def mkswap(target: str, swap_mb: int, context: object) -> None:
        with open(target, "wb") as file:
            file.truncate(swap_mb * MIB)
        subprocess.run(["/sbin/mkswap", target], check=True, capture_output=True)

    flat = image("disk.swap", "raw")
    flat.cache(fetch_func=mkswap, context=None, filename="swap_4", size=4 * MIB, swap_mb=4, safe=True)
    assert set() == cached(machine)
    assert {UUID, f"{UUID}/disk.swap", f"{UUID}/disk.info"} == disks(machine)
    assert b"SWAPSPACE2" == Path(flat.path).read_bytes()[4086:4096]
    image("disk.swap1").cache(fetch_func=mkswap, context=None, filename="swap_4", size=4 * MIB, swap_mb=4, safe=True)
    assert {"swap_4"} == cached(machine)
    assert "raw" == flat.driver_format


@pytest.mark.parametrize("kind", ["ext4", "vfat"])
def test_an_ephemeral_is_made_by_nova_s_callback(machine: Machine, kind: str) -> None:
    def mkfs(target: str, ephemeral_size: int, specified_fs: str) -> None:
        with open(target, "wb") as file:
            file.truncate(64 * MIB)
        subprocess.run([f"/sbin/mkfs.{specified_fs}", target], check=True, capture_output=True)

    name = "ephemeral_1_0706d66"
    for disk, image_type in (("disk.eph0", "qcow2"), ("disk.eph1", "raw")):
        one = image(disk, image_type)
        one.cache(fetch_func=mkfs, filename=name, size=128 * MIB, ephemeral_size=1, specified_fs=kind, safe=True)
        assert 128 * MIB == one.get_disk_size(one.path)
    assert {name} == cached(machine)


def test_a_kernel_is_a_raw_file_beside_the_disks(machine: Machine) -> None:
    content = bytearray(corpus.noise(MIB))
    content[510:512], content[0x202:0x206] = b"\x55\xaa", b"HdrS"  # a bzImage's signatures
    (machine.instances / UUID).mkdir()  # which Nova's driver makes first
    kernel = image("kernel", "raw")
    kernel.cache(fetch_func=Fetch(bytes(content)), context=None, filename=NAME, image_id="id")
    assert bytes(content) == Path(kernel.path).read_bytes()
    assert (str(machine.instances / UUID / "kernel"), "raw") == (kernel.path, kernel.driver_format)


@pytest.mark.parametrize("size", [1, 511, 513, MIB + 100])
def test_a_kernel_has_every_byte_that_was_fetched_and_no_more(machine: Machine, size: int) -> None:
    content = corpus.noise(MIB + 512)[:size]
    (machine.instances / UUID).mkdir()
    kernel = image("kernel", "raw")
    for _ in range(2):
        kernel.cache(fetch_func=Fetch(content), context=None, filename=NAME, image_id="id")
    assert content == Path(kernel.path).read_bytes()


@pytest.mark.component("leases")
def test_a_kernel_whose_instance_is_gone_keeps_no_base_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = configured(nova_host(tmp_path), monkeypatch)
    directory, bases = machine.instances / UUID, [machine.base / NAME, machine.base / ("e" * 40)]
    directory.mkdir()
    for name, base in zip(("kernel", "ramdisk"), bases, strict=True):
        image(name, "raw").cache(fetch_func=Fetch(), filename=base.name)
    shutil.rmtree(directory)  # as Nova's driver does
    at = time.time() - 10 * DAY
    for base in bases:
        for path in (base, machine.base / ".underlay/used" / base.name):
            os.utime(path, (at, at))
    told = machine.call("prune", "--json").json
    assert ["no-inventory"] == [problem["code"] for problem in told["problems"]]
    assert {str(base) for base in bases} == set(told["removed"])


@pytest.mark.parametrize("image_type", ["qcow2", "raw"])
def test_a_larger_size_grows_a_disk_that_is_there_and_a_smaller_one_does_nothing(machine: Machine, image_type: str) -> None:
    one, fetch = image("disk", image_type), Fetch()
    for size in (2 * MIB, 8 * MIB, 3 * MIB):
        one.cache(fetch, NAME, size)
    assert 8 * MIB == one.get_disk_size(one.path)
    one.resize_image(9 * MIB)
    assert 9 * MIB == one.get_disk_size(one.path)
    assert 1 == len(fetch.calls)


@pytest.mark.component("mkfs.ext4")
def test_the_file_system_of_a_raw_disk_grows_with_it(machine: Machine, tmp_path: Path) -> None:
    path = corpus.raw(tmp_path / "fs", 64 * MIB)
    subprocess.run(["/sbin/mkfs.ext4", "-q", path], check=True)
    one = image("disk", "raw")
    one.cache(Fetch(path.read_bytes()), NAME, 128 * MIB)
    assert 128 * MIB == size_of_ext(Path(one.path))
    one.cache(Fetch(), NAME, 160 * MIB)
    assert 160 * MIB == size_of_ext(Path(one.path))


def size_of_ext(path: Path) -> int:
    superblock = path.read_bytes()[1024:2048]
    blocks, log = struct.unpack_from("<I", superblock, 4)[0], struct.unpack_from("<I", superblock, 24)[0]
    return int(blocks << (10 + log))


def test_a_raw_disk_in_which_a_guest_has_written_a_qcow2_header_stays_raw(machine: Machine, tmp_path: Path) -> None:
    one = image("disk", "raw")
    one.cache(Fetch(bytes(2 * MIB)), NAME)
    with open(one.path, "r+b") as disk:
        disk.write(lying("backing", tmp_path)[: 64 << 10])
    again = image("disk", "raw")
    assert "raw" == again.driver_format
    again.resize_image(4 * MIB)
    assert 4 * MIB == os.stat(one.path).st_size == again.get_disk_size(one.path)


def test_a_disk_without_a_record_is_what_its_type_says_and_an_overlay_only_on_the_cache(
    machine: Machine, tmp_path: Path
) -> None:
    directory = machine.instances / UUID
    directory.mkdir()
    image("disk.other").cache(Fetch(corpus.noise(MIB)), NAME)
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", machine.base / NAME, "-F", "raw", directory / "disk", "1M")
    one = image()
    one.cache(Fetch(), NAME, 4 * MIB)
    assert 4 * MIB == one.get_disk_size(one.path)
    one.snapshot_extract(os.fspath(tmp_path / "snapshot"), "raw")
    assert (machine.base / NAME).read_bytes() == (tmp_path / "snapshot").read_bytes()[:MIB]
    (directory / "disk").write_bytes(lying("backing", tmp_path))
    (directory / "disk.info").unlink()
    with pytest.raises(DiskUnrecorded):
        image().resize_image(8 * MIB)
    with pytest.raises(DiskUnrecorded):
        image().snapshot_extract(str(tmp_path / "other"), "raw")
    assert not (directory / "disk.info").exists()


def test_a_json_name_is_no_path_into_the_cache(machine: Machine) -> None:
    """QEMU reads something else by it than what its last directory seems to be."""
    directory = machine.instances / UUID
    directory.mkdir()
    (machine.base / NAME).write_bytes(bytes(MIB))
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{"/.." * 40}{machine.base}/{NAME}"}}}}'
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", directory / "disk", "1M")
    with pytest.raises(DiskUnrecorded):
        image().resize_image(8 * MIB)
    assert not (directory / "disk.info").exists()


def test_a_base_image_is_looked_up_by_its_path_and_nothing_else_is(machine: Machine) -> None:
    one = image()
    one.cache(Fetch(), NAME)
    assert MIB == one.get_disk_size(os.fspath(machine.base / NAME))
    with pytest.raises(NotCached):
        one.get_disk_size(os.fspath(machine.base / ("0" * 40)))
    with pytest.raises(InvalidName, match="it is not in"):
        one.get_disk_size("/etc/passwd")


def test_the_size_of_a_base_image_is_verified_as_nova_does(machine: Machine) -> None:
    one, base = image(), os.fspath(machine.base / NAME)
    one.cache(Fetch(), NAME)
    for size, base_size in ((None, 5), (MIB, 0), (2 * MIB, 0), (5, 5), (0, 0)):
        one.verify_base_size(base, size, base_size)
    for size, base_size in ((MIB - 1, 0), (4, 5), (0, 5)):
        with pytest.raises(DiskTooSmall):
            one.verify_base_size(base, size, base_size)


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
def test_a_disk_on_a_resized_copy_of_an_older_nova_gets_it_back(keeping: Machine, tmp_path: Path, base_format: str) -> None:
    content = corpus.small(tmp_path / "image", base_format).read_bytes()
    (keeping.instances / UUID).mkdir()
    disk = keeping.instances / UUID / "disk"
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", keeping.base / f"{NAME}_1", "-F", base_format, disk, "1G")
    (disk.parent / "disk.info").write_text(f'{{"{disk}": "qcow2"}}')
    image().cache(Fetch(content), NAME, GIB)
    assert {NAME, f"{NAME}_1"} == cached(keeping)
    resized = info(keeping.base / f"{NAME}_1")
    assert (base_format, GIB) == (resized["format"], resized["virtual-size"])
    corpus.qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, tmp_path / "read")


@pytest.mark.parametrize(
    ("out_format", "found"), [("raw", "raw"), ("iso", "raw"), ("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vdi", "vdi")]
)
@pytest.mark.parametrize("image_type", ["qcow2", "raw"])
def test_what_the_guest_sees_is_extracted(
    machine: Machine, tmp_path: Path, image_type: str, out_format: str, found: str
) -> None:
    one, content = image("disk", image_type), corpus.noise(MIB)
    one.cache(Fetch(content), NAME)
    target = tmp_path / "snapshot"
    one.snapshot_extract(os.fspath(target), out_format)
    assert found == info(target)["format"]
    assert content == corpus.to_raw(target, tmp_path / "read", found).read_bytes()
    assert "backing-filename" not in info(target)
    assert ["snapshot"] == [name for name in os.listdir(tmp_path) if "snapshot" in name or "underlay-" in name]
    before = target.read_bytes()
    with pytest.raises(DiskExists):
        one.snapshot_extract(os.fspath(target), out_format)
    assert before == target.read_bytes()


def test_a_disk_is_not_extracted_in_a_format_that_nothing_reads(machine: Machine, tmp_path: Path) -> None:
    one = image()
    one.cache(Fetch(), NAME)
    for out_format in ("vhd2", "", "../raw"):
        with pytest.raises(InvalidForm):
            one.snapshot_extract(os.fspath(tmp_path / "snapshot"), out_format)
    assert not (tmp_path / "snapshot").exists()


def test_what_files_cannot_is_said_as_nova_s_driver_expects_it(machine: Machine) -> None:
    one = image()
    one.cache(Fetch(), NAME)
    with pytest.raises(NotImplementedError):
        one.flatten()
    with pytest.raises(NotImplementedError):
        one.direct_snapshot(None, "snapshot", "raw", "id", "base")
    with pytest.raises(Unsupported):
        one.clone(None, "id")
    one.create_snap("resize")
    one.remove_snap("resize", ignore_errors=True)
    one.rollback_to_snap("resize")
    one.import_file(INSTANCE, one.path, "disk.config")
    one.cleanup_direct_snapshot(None, also_destroy_volume=True, ignore_errors=True)


def test_nova_s_own_values_are_made_within_a_nova(machine: Machine) -> None:
    one = image(disk_info_mapping=MAPPING)
    for method, arguments in (("libvirt_info", ("none", {})), ("get_model", (None,)), ("libvirt_fs_info", ("/",))):
        with pytest.raises(ExtraMissing, match="Nova cannot be imported"):
            getattr(one, method)(*arguments)
    with pytest.raises(AttributeError, match="disk_info_mapping"):
        image().libvirt_info("none", {})


# ------------------------------------------------------------------------------------------------------ disks that are no files


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    install_backend(directory)
    return directory


@pytest.fixture
def storage(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBackend]:
    """What a third party's backend, called ``fake``, keeps its disks in."""
    monkeypatch.syspath_prepend(site)
    found: FakeBackend = importlib.import_module("underlay_volumes").STORE
    yield found
    del sys.modules["underlay_volumes"]


def test_a_disk_in_another_s_storage_is_made_of_the_base_image_and_grown(machine: Machine, storage: FakeBackend) -> None:
    one, fetch = image("disk", "fake"), Fetch(corpus.noise(MIB))
    assert not one.exists()
    for size in (2 * MIB, 4 * MIB):
        one.cache(fetch, NAME, size)
    assert (4 * MIB, 1, {NAME}) == (one.get_disk_size("whatever"), len(fetch.calls), cached(machine))
    assert fetch.content == storage.guest_bytes(one._describe())[:MIB]
    (machine.base / NAME).unlink()  # which the disk needs no more
    image("disk", "fake").cache(fetch, NAME, 4 * MIB)
    assert 1 == len(fetch.calls)


def around(source: FakeSource) -> Around:
    return Around.load(sources={"fake": source})


def test_a_callback_may_clone_the_disk_and_write_nothing(machine: Machine, storage: FakeBackend) -> None:
    source = FakeSource({"fake:image": FakeImage(b"c" * MIB, locations=(LOCATION,))})
    storage.add_image(LOCATION, b"c" * MIB)
    one = Image(around(source), storage, INSTANCE, "disk")
    one.cache(lambda target: one.clone(None, "fake:image"), NAME, 2 * MIB)
    assert (2 * MIB, set()) == (one.get_disk_size(""), cached(machine))
    assert b"c" * MIB == storage.guest_bytes(one._describe())[:MIB]


def test_a_clone_of_an_image_that_is_too_large_does_not_stay(machine: Machine, storage: FakeBackend) -> None:
    source = FakeSource({"fake:image": FakeImage(b"c" * MIB, locations=(LOCATION,))})
    storage.add_image(LOCATION, b"c" * MIB)
    one = Image(around(source), storage, INSTANCE, "disk")
    with pytest.raises(DiskTooSmall):
        one.cache(lambda target: one.clone(None, "fake:image"), NAME, MIB // 2)
    assert not one.exists()


def test_what_cannot_be_cloned_is_unsupported_and_may_be_fetched(machine: Machine, storage: FakeBackend) -> None:
    one = Image(around(FakeSource({"fake:image": FakeImage(b"c" * MIB)})), storage, INSTANCE, "disk")
    with pytest.raises(Unsupported):
        one.clone(None, "fake:image")
    assert not one.exists()


def test_a_generated_disk_and_a_config_drive_go_into_the_storage_by_themselves(
    machine: Machine, storage: FakeBackend, tmp_path: Path
) -> None:
    swap = image("disk.swap", "fake")
    swap.cache(Fetch(b"s" * MIB), "swap_1", MIB)
    assert (b"s" * MIB, set()) == (storage.guest_bytes(swap._describe()), cached(machine))
    drive = image("disk.config", "fake")
    for content in (b"1" * 1024, b"2" * 2048):
        (tmp_path / "config").write_bytes(content)
        drive.import_file(INSTANCE, os.fspath(tmp_path / "config"), "disk.config")
        assert content == storage.guest_bytes(drive._describe())


def test_storage_that_fails_leaves_no_disk_and_no_record(machine: Machine, storage: FakeBackend) -> None:
    storage.capacity = MIB
    for name, filename in (("disk", NAME), ("disk.swap", "swap_2")):
        with pytest.raises(UnderlayError):
            image(name, "fake").cache(Fetch(bytes(2 * MIB)), filename)
    volumes = machine.base / ".underlay/volumes"
    assert [] == (os.listdir(volumes) if volumes.exists() else [])
