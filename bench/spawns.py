"""Rows about instances on a libvirt of their own: spawned by our driver, against qemu-img, virsh define and virsh start."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.components import component
from bench.hosts import base_toml, make_directories
from bench.measure import Contender, Row, Things, command
from bench.results import Goal
from bench.setting import Setting
from underlay import BaseImage, Host
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.domain import Domain
from underlay.config import parse_config
from underlay.testing.bootimage import write_raw
from underlay.vm.instances import VmInstance, block_devices_of, instance_of
from underlay.vm.record import VmRecord

_AT_ONCE = 20
_DEFINED = 5
_MEMORY = 32  # MiB of a guest
_PATIENCE = 120.0  # seconds that a guest has to write its first byte
_RECORD = VmRecord(created_at=datetime(2026, 1, 1, tzinfo=UTC), image=None, memory_mib=_MEMORY, vcpus=1)
_STEPS = "qemu-img create, virsh define"


def spawns(setting: Setting) -> Things:
    """In a process that runs, against the steps of a shell, with the very same domain."""
    with _ours(setting.directory) as ours:
        theirs = _Theirs(ours, setting.directory / "theirs")
        yield Row(
            name="spawn, defined",
            what="a disk, a directory, a definition; the guest is not started",
            ours=ours.contender(lambda _: ours.spawn(starts=False), repeat=_DEFINED),
            peer=theirs.contender(_STEPS, lambda _: theirs.define(), repeat=_DEFINED),
            goal=Goal(wall=1.0, why="no process is started, and what is durable waits for a disk"),
        )
        yield Row(
            name="spawn, to the first byte",
            what="until the guest has written to its serial line",
            ours=ours.contender(lambda _: _await_byte(ours.log(ours.spawn()))),
            peer=theirs.contender(f"{_STEPS}, start", lambda _: _await_byte(theirs.start(theirs.define()))),
            goal=Goal(wall=1.1, why="libvirt, QEMU and the guest's BIOS take what they take"),
        )
        yield Row(
            name="spawn, twenty at once",
            what="of one image, until all are started; their disks are durable",
            ours=ours.contender(lambda _: _at_once(lambda: ours.spawn())),
            peer=theirs.contender(f"{_STEPS}, start in {_AT_ONCE} shells", lambda _: _at_once(theirs.in_a_shell)),
            goal=Goal(wall=1.0, why="libvirt and QEMU do the same, and sixty processes are not started"),
        )


@dataclass(slots=True, kw_only=True)
class _Ours:
    """Our driver on a libvirt, and what it has made."""

    driver: LibvirtDriver
    base: BaseImage
    uri: str
    made: list[VmInstance] = field(default_factory=list)

    def spawn(self, *, starts: bool = True) -> VmInstance:
        uuid = str(uuid4())
        instance = instance_of(_RECORD, uuid=uuid, name=f"ours-{uuid[:8]}", host="bench", image=str(self.base.path))
        self.made.append(instance)
        info = block_devices_of(_RECORD)
        self.driver.spawn(None, instance, instance.image_meta, [], None, {}, block_device_info=info, power_on=starts)
        return instance

    def log(self, instance: VmInstance) -> Path:
        return self.driver.site.directory(instance).console_log

    def remove(self) -> None:
        while self.made:
            self.driver.destroy(None, self.made.pop(), [])

    def contender(self, run: Callable[[int], object], *, repeat: int = 1) -> Contender:
        return Contender(name="LibvirtDriver.spawn (durable)", run=run, prepare=lambda _: self.remove(), repeat=repeat)


class _Theirs:
    """The steps of a shell, for domains that are like ours but for their names and paths."""

    def __init__(self, ours: _Ours, directory: Path) -> None:
        self._directory, self._ours = directory, ours
        self._made: list[str] = []
        directory.mkdir()
        sample = ours.spawn(starts=False)
        self._xml = ours.driver.site.domain(sample).xml(inactive=True)
        self._place, self._sample = ours.driver.site.directory(sample).path, sample

    def place(self, uuid: str) -> Path:
        return self._directory / uuid

    def define(self) -> str:
        uuid = self._described()
        command(*self._create(uuid))
        command(*self._virsh("define", self.place(uuid) / "xml"))
        return uuid

    def start(self, uuid: str) -> Path:
        command(*self._virsh("start", f"theirs-{uuid[:8]}"))
        return self.place(uuid) / "console.log"

    def in_a_shell(self) -> None:
        uuid = self._described()
        steps = [
            self._create(uuid),
            self._virsh("define", self.place(uuid) / "xml"),
            self._virsh("start", f"theirs-{uuid[:8]}"),
        ]
        command("sh", "-c", " && ".join(" ".join(f"'{word}'" for word in step) for step in steps))

    def remove(self) -> None:
        while self._made:
            uuid = self._made.pop()
            Domain(self._ours.driver.site.connection, uuid).remove()
            shutil.rmtree(self.place(uuid))

    def contender(self, name: str, run: Callable[[int], object], *, repeat: int = 1) -> Contender:
        return Contender(name=name, run=run, prepare=lambda _: self.remove(), repeat=repeat)

    def _described(self) -> str:
        uuid = str(uuid4())
        self._made.append(uuid)
        self.place(uuid).mkdir()
        xml = self._xml.replace(str(self._place), str(self.place(uuid))).replace(self._sample.name, f"theirs-{uuid[:8]}")
        (self.place(uuid) / "xml").write_text(xml.replace(self._sample.uuid, uuid), encoding="utf-8")
        return uuid

    def _create(self, uuid: str) -> Sequence[str]:
        disk = self.place(uuid) / "disk"
        return ("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self._ours.base.path), "-F", "raw", str(disk))

    def _virsh(self, *words: str | Path) -> Sequence[str]:
        return ("virsh", "-q", "-c", self._ours.uri, *map(str, words))


def _at_once(run: Callable[[], object]) -> None:
    failed: list[BaseException] = []

    def one() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised below, where the row is measured
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in failed:
        raise error


def _await_byte(log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline, f"nothing is written to {log}"
        time.sleep(0.002)


@contextmanager
def _ours(directory: Path) -> Iterator[_Ours]:
    """A libvirt of its own, with short paths for its sockets, and a driver on it."""
    with tempfile.TemporaryDirectory(prefix="ul-") as short, _daemon(Path(short) / "d") as uri:
        make_directories(directory, "spawns")
        text = (
            base_toml(directory, "spawns") + f'[libvirt]\nconnection_uri = "{uri}"\nvirt_type = "qemu"\nvnc_enabled = false\n'
        )
        host = Host.open(parse_config(text, origin=directory / "spawns" / "underlay.toml"))
        image = directory / "image.raw"
        write_raw(image, size=16 << 20, message="bench")
        driver = LibvirtDriver(None, host=host)
        driver.init_host("bench")
        try:
            yield _Ours(driver=driver, base=host.ensure(image.as_uri()), uri=uri)
        finally:
            driver.cleanup_host("bench")


@contextmanager
def _daemon(directory: Path) -> Iterator[str]:
    daemon: Any = component("libvirtd", "libvirt_daemon").Daemon(directory)
    daemon.prepare()
    try:
        daemon.start()
        yield daemon.uri
        daemon.destroy_guests()
    finally:
        daemon.stop()
