"""The libvirt driver for the shipped conformance suite, on a libvirtd of its own, with guests of one boot sector."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from uuid import uuid4

from libvirt_daemon import Daemon

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host
from underlay.testing.bootimage import PREFIX, SMALLEST, write_qcow2
from underlay.testing.compute_suite import Ability
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, fake_vif

PATIENCE = 60.0  # seconds; the machine is slow, and shared
MESSAGE = "by the libvirt driver"
LARGE = 128 << 20
VOLUME = 32 << 20  # bytes

CONFIG = """
host = "node1"
[instances]
path = "{root}/instances"
{instances}
[caches.base]
kind = "base"
path = "{root}/instances/_base"
keep_recent = "0s"
remove_unused_original_minimum_age_seconds = 0
[sources.file]
allowed_paths = ["{root}"]
[sources.http]
[disks]
use_cow_images = true
[libvirt]
connection_uri = "{uri}"
virt_type = "{virt_type}"
serial_console_enabled = true
wait_soft_reboot = "30s"
{more}
"""


@dataclass(slots=True)
class Place:
    """A directory of instances with its cache, and an image that boots."""

    root: Path
    daemon: Daemon
    name: str = "node1"
    images: Path = field(default=Path())
    instances: Path = field(default=Path())

    def __post_init__(self) -> None:
        self.images = self.root if self.images == Path() else self.images
        self.instances = self.root / "instances" if self.instances == Path() else self.instances
        (self.instances / "_base").mkdir(parents=True, exist_ok=True)
        if not self.image_file.exists():
            write_qcow2(self.image_file, size=SMALLEST, message=MESSAGE, stays=True)

    @property
    def image_file(self) -> Path:
        return self.images / "guest.qcow2"

    def host(self, *, instances: str = "", more: str = "", virt_type: str = "qemu", uri: str | None = None) -> Host:
        text = self.config(instances=instances, more=more, virt_type=virt_type, uri=uri)
        return Host.open(parse_config(text, origin=self.root / "underlay.toml"))

    def config(self, *, instances: str = "", more: str = "", virt_type: str = "qemu", uri: str | None = None) -> str:
        uri = uri or self.daemon.uri
        text = CONFIG.format(root=self.root, uri=uri, instances=instances, more=more, virt_type=virt_type)
        text = text.replace('host = "node1"', f'host = "{self.name}"')
        text = text.replace(f'path = "{self.root}/instances', f'path = "{self.instances}')
        return text.replace(f'allowed_paths = ["{self.root}"]', f'allowed_paths = ["{self.images}"]')

    def driver(self, *, instances: str = "", more: str = "", virt_type: str = "qemu") -> LibvirtDriver:
        driver = LibvirtDriver(None, host=self.host(instances=instances, more=more, virt_type=virt_type))
        driver.init_host(self.name)
        return driver

    def image(self, **more: Any) -> FakeImage:
        return FakeImage(id=f"file://{self.image_file}", size=self.image_file.stat().st_size, **more)

    def large_image(self) -> FakeImage:
        """One that takes a while to be copied."""
        path = self.root / "large.qcow2"
        write_qcow2(path, size=LARGE + SMALLEST, message=MESSAGE, payload=LARGE, stays=True)
        return FakeImage(id=f"file://{path}", size=path.stat().st_size)

    @contextmanager
    def copying_slowly(self, instance: FakeInstance) -> Iterator[None]:
        """The copy of the guest's disk that begins now goes on until the block ends, unless somebody ends it."""
        with self._domain(instance) as domain:
            [job] = wait_until(lambda: _jobs(domain), "QEMU copies", pause=0.0)  # it does not copy for long
            _tell_qemu(domain, "block-job-set-speed", device=job, speed=1)
            try:
                yield
            finally:
                if job in _jobs(domain):
                    _tell_qemu(domain, "block-job-set-speed", device=job, speed=0)

    @contextmanager
    def _domain(self, instance: FakeInstance) -> Iterator[Any]:
        connection = import_module("libvirt").open(self.daemon.uri)
        try:
            yield connection.lookupByUUIDString(instance.uuid)
        finally:
            connection.close()

    def instance(self, image: FakeImage, **more: Any) -> FakeInstance:
        return record(image, **more)

    def volume(self, *, size: int = VOLUME, content: bytes = b"", **data: Any) -> dict[str, Any]:
        """A volume that is a file, and how it is reached."""
        path = self.root / "volumes" / str(uuid4())
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.truncate(path, size)
        return local(path, **data)

    def console(self, instance: FakeInstance) -> str:
        try:
            return (self.instances / instance.uuid / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def await_boot(self, instance: FakeInstance) -> None:
        """Wait for the whole of the line that its guest writes."""
        wait_until(lambda: "\n" in self.console(instance).partition(PREFIX)[2], f"{instance.name} boots")

    def traces(self, instance: FakeInstance) -> list[str]:
        library = import_module("libvirt")
        connection = library.open(self.daemon.uri)
        try:
            domains = [one for one in connection.listAllDomains(0) if instance.uuid == one.UUIDString()]
            found = [f"the domain {one.name()}" for one in domains]
        finally:
            connection.close()
        return [*found, *(name for name in os.listdir(self.instances) if name.startswith(instance.uuid))]


def asked_of_qemu(place: Place, instance: FakeInstance, command: str, **arguments: Any) -> Any:
    """What the QEMU of a guest answers to a command of its monitor's."""
    with place._domain(instance) as domain:
        return _tell_qemu(domain, command, **arguments)


def _tell_qemu(domain: Any, command: str, **arguments: Any) -> Any:
    asked = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(import_module("libvirt_qemu").qemuMonitorCommand(domain, asked, 0))["return"]


def _jobs(domain: Any) -> list[str]:
    try:
        return [job["device"] for job in _tell_qemu(domain, "query-block-jobs")]
    except import_module("libvirt").libvirtError:  # it does not run
        return []


def local(path: Path, **data: Any) -> dict[str, Any]:
    """How a volume is reached that is a file or a device of this host."""
    told = {"device_path": os.fspath(path), "access_mode": "rw", **data}
    return {"driver_volume_type": "local", "data": told, "serial": str(uuid4())}


def record(image: FakeImage, **more: Any) -> FakeInstance:
    flavor = more.pop("flavor", FakeFlavor(memory_mb=32))
    return FakeInstance(image_ref=image.id, image_meta=image, flavor=flavor, **more)


def command(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def wait_until(claim: Any, what: str, *, seconds: float = PATIENCE, pause: float = 0.05) -> Any:
    """What the claim answers, once that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := claim()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(pause)
    return answer


@dataclass(slots=True)
class LibvirtStage:
    """What the suite is told of it."""

    place: Place
    bridge: str
    ports: tuple[int, int]
    drivers: list[LibvirtDriver] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    host: str = "node1"
    more: str = ""
    far: "LibvirtStage | None" = None
    patience: float = PATIENCE
    context: Any = None
    cannot: ClassVar[Mapping[Ability, str]] = MappingProxyType(
        {
            Ability.AGENT: "the guest is one boot sector; that of the stage with Linux has an agent",
        }
    )

    @property
    def options(self) -> str:
        return f'serial_console_port_range = "{self.ports[0]}:{self.ports[1]}"\n{self.more}'

    @property
    def driver(self) -> LibvirtDriver:
        return self.drivers[0] if self.drivers else self.restarted()

    @property
    def other(self) -> "LibvirtStage":
        assert self.far is not None
        return self.far

    @property
    def steps(self) -> Sequence[str]:
        return tuple(self._breaks())

    def instance(self, image: FakeImage) -> FakeInstance:
        return self.place.instance(image)

    def larger(self, flavor: FakeFlavor) -> FakeFlavor:
        return replace(flavor, name="larger", memory_mb=flavor.memory_mb + 16, root_gb=flavor.root_gb + 1)

    def image(self) -> FakeImage:
        return self.place.image()

    def network_info(self) -> list[dict[str, Any]]:
        return [fake_vif(next(self.numbers), bridge=self.bridge)]

    def volume(self) -> Mapping[str, Any]:
        return self.place.volume()

    def await_guest(self, instance: FakeInstance) -> None:
        self.place.await_boot(instance)

    def traces(self, instance: FakeInstance) -> list[str]:
        return self.place.traces(instance)

    def breaking(self, step: str) -> AbstractContextManager[None]:
        return self._breaks()[step]()

    def _breaks(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        return {"directory": self._read_only, "network": self._without_bridge, "start": self._without_ports}

    @contextmanager
    def _read_only(self) -> Iterator[None]:
        path = os.fspath(self.place.instances)
        command("mount", "--bind", path, path)
        try:
            command("mount", "-o", "remount,bind,ro", path)
            yield
        finally:
            command("umount", path)

    @contextmanager
    def _without_bridge(self) -> Iterator[None]:
        command("ip", "link", "delete", self.bridge)
        try:
            yield
        finally:
            command("ip", "link", "add", "name", self.bridge, "type", "bridge")

    @contextmanager
    def _without_ports(self) -> Iterator[None]:
        """Nothing of a guest's serial line can listen, which is found out when all else is made."""
        with ExitStack() as taken:
            for port in range(self.ports[0], self.ports[1] + 1):
                with suppress(OSError):  # somebody has it already
                    taken.enter_context(socket.create_server(("127.0.0.1", port)))
            yield

    def restarted(self) -> LibvirtDriver:
        driver = self.place.driver(more=self.options)
        self.drivers.append(driver)
        return driver

    def snapshot_id(self) -> str:
        return str(uuid4())

    def uploaded(self, image_id: str) -> int | None:
        path = self.place.instances / "snapshots" / image_id
        return path.stat().st_size if path.exists() else None

    def compute_facts(self) -> Mapping[str, Any]:
        return {"disk_available_least": 100, "free_disk_gb": 100, "cpu_info": ""}
