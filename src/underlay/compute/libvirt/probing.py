"""Whether guests really run under KVM here. That ``/dev/kvm`` opens does not say so: under some hypervisors a guest then hangs.

So a guest of one sector is started under it, with the machine and the processor that guests get, and writes one letter to its
serial line.
"""

import logging
import platform
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from underlay.compute.errors import InstanceNotFound, OperationFailed
from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.connection import Connection
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.guest import Guest, GuestDisk, SerialLine
from underlay.compute.libvirt.guestplan import cpu_mode_of
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.probename import probe_name
from underlay.config.libvirt import Libvirt
from underlay.files import translated
from underlay.model import Attachment

_LOG = logging.getLogger(__name__)
_LETTER = b"K"
# mov dx, 0x3f8; mov al, 'K'; out dx, al; cli; hlt: the letter to COM1 (a 16550's data register), then nothing any more.
_PROGRAM = b"\xba\xf8\x03\xb0" + _LETTER + b"\xee\xfa\xf4"
_SECTOR, _SIGNATURE = 512, b"\x55\xaa"
_DISK = 1 << 20
_MEMORY = 64 << 20
_POLL = 0.1  # seconds


def runs_under_kvm(connection: Connection, directory: Path, options: Libvirt, *, seconds: float) -> bool:
    """Whether a guest under KVM writes its letter in time.

    Args:
        directory: in which files of a guest may lie for the while.

    Raises:
        HypervisorUnavailable; CacheMissing, CacheNotWritable: the directory.
    """
    if not Path("/dev/kvm").exists():
        return False
    with translated(directory), tempfile.TemporaryDirectory(prefix=".underlay-probe-", dir=directory) as temporary:
        place = Path(temporary)
        place.chmod(0o755)  # whoever libvirt runs QEMU as has to enter it
        guest = _guest(place, options)
        try:
            return _writes(connection, guest, seconds)
        except OperationFailed as error:  # one that does not answer says nothing of KVM
            _LOG.warning("guests do not run under KVM here, and are emulated: %s", error)
            return False


def _guest(place: Path, options: Libvirt) -> Guest:
    disk = place / "disk"
    disk.write_bytes(_PROGRAM.ljust(_SECTOR - len(_SIGNATURE), b"\0") + _SIGNATURE + bytes(_DISK - _SECTOR))
    opened = Attachment(type="file", source=str(disk), format="raw")
    uuid = str(uuid4())
    return Guest(
        uuid=uuid,
        name=probe_name(uuid),
        memory=_MEMORY,
        vcpus=1,
        virt_type="kvm",
        architecture=platform.machine(),
        machine=options.machine_type,
        cpu_mode=cpu_mode_of(options, "kvm"),
        cpu_model=options.cpu_model,
        boot=None,
        disks=(GuestDisk(attachment=opened, device="vda", bus="virtio", boot_order=1),),
        interfaces=(),
        serial=SerialLine(log=place / "console.log"),
        screen=None,
        local_time=False,
        agent=False,
        metadata=None,
    )


def _writes(connection: Connection, guest: Guest, seconds: float) -> bool:
    """Start a guest that libvirt forgets as soon as it ends, and watch its serial line."""
    xml = guestxml.to_xml(guest)
    flags = library().VIR_DOMAIN_START_AUTODESTROY  # it does not outlive a probe that is killed
    try:
        connection.ask(lambda handle: handle.createXML(xml, flags).name())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if guest.serial.log.exists() and _LETTER in guest.serial.log.read_bytes():
                return True
            time.sleep(_POLL)
        return False
    finally:
        with suppress(InstanceNotFound):  # it ended by itself
            Domain(connection, guest.uuid).cut()
