"""What a new virtual machine is to be, checked before anything is made. Pure, but for the two files that may be named."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

from underlay.errors import ConfigError, InvalidName, InvalidSize
from underlay.files import read_regular
from underlay.naming import plain_name
from underlay.units import parse_size
from underlay.vm.instances import DriveContent
from underlay.vm.record import VmEphemeral, VmInterface, VmRecord

_MIB, _GIB = 1 << 20, 1 << 30
_UNITS = {_MIB: "MiB", _GIB: "GiB"}
_KEYS = ("ssh-", "ecdsa-", "sk-")  # how the types of public keys begin (RFC 4253, RFC 5656, OpenSSH's PROTOCOL.u2f)
_QEMUS = "52:54:00"  # the addresses of QEMU's guests begin so
_MOST_EPHEMERALS = 24  # letters, but for the root disk and swap


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A machine to be made.

    Attributes:
        image: a ref, or the name of an image that is here. memory_mib to ephemerals_gib: as in `VmRecord`.
        bridges: of this host. networks: of libvirt. Without any of the two, and unless it is alone, libvirt's default.
        checksum, signature: of the image, as for `underlay.Host.ensure`.
        alone: it has no interface. backend, cache: None: as configured. starts: it is started.
    """

    name: str
    image: str
    memory_mib: int
    vcpus: int
    os_type: str = "linux"
    root_gib: int = 0
    swap_mib: int = 0
    ephemerals_gib: tuple[int, ...] = ()
    bridges: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    alone: bool = False
    checksum: str | None = None
    signature: str | None = None
    properties: dict[str, str]
    data: DriveContent
    backend: str | None = None
    cache: str | None = None
    starts: bool = True


def checked_name(name: str) -> str:
    """A machine's name, which is its guest's host name as well.

    Raises:
        InvalidName
    """
    plain_name(name, what="a virtual machine")
    if is_uuid(name):
        raise InvalidName(f"{name!r} is no name for a virtual machine: it is a UUID", hint="a machine gets its UUID by itself")
    if "_" in name or "+" in name:
        raise InvalidName(
            f"{name!r} is no name for a virtual machine: no host has such", hint="use letters, digits, '.' and '-'"
        )
    return name


def is_uuid(text: str) -> bool:
    """Whether libvirt takes it for a UUID."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def is_utf8(text: str) -> bool:
    """Whether libvirt can be asked for it: an argument of a command may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def system(name: str) -> str:
    """The system of a guest, as ``os_type`` names it.

    Raises:
        InvalidName
    """
    return plain_name(name, what="a guest's system")


def mebibytes(text: str, *, what: str) -> int:
    """A size in MiB.

    Raises:
        InvalidSize: it is none, nothing, or no whole number of them.
    """
    return _whole(text, _MIB, what)


def gibibytes(text: str, *, what: str) -> int:
    """As `mebibytes`, in GiB."""
    return _whole(text, _GIB, what)


def _whole(text: str, unit: int, what: str) -> int:
    size = parse_size(text)
    if size <= 0 or size % unit:
        raise InvalidSize(f"{what} cannot be {text}", hint=f"write a whole number of {_UNITS[unit]}")
    return size // unit


def ephemeral_sizes(texts: Sequence[str]) -> tuple[int, ...]:
    """The sizes of the ephemeral disks in GiB.

    Raises:
        InvalidSize: also of too many.
    """
    if len(texts) > _MOST_EPHEMERALS:
        raise InvalidSize(f"{len(texts)} ephemeral disks are too many", hint=f"a machine has {_MOST_EPHEMERALS} at most")
    return tuple(gibibytes(text, what="an ephemeral disk") for text in texts)


def properties_of(pairs: Iterable[str]) -> dict[str, str]:
    """Properties of an image, each written ``NAME=VALUE``.

    Raises:
        InvalidName
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name.isascii() and name.isidentifier() and value.isprintable()):
            raise InvalidName(f"{pair!r} is no property of an image", hint="write NAME=VALUE, such as hw_disk_bus=sata")
        found[name] = value
    return found


def public_key(file: Path) -> str:
    """The one public key in a file.

    Raises:
        ConfigError: it cannot be read, or has something else in it, of which the message has nothing.
    """
    lines = [line.strip() for line in content_of(file).decode(errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) != 1 or not keys[0].startswith(_KEYS) or not keys[0].isprintable():
        hint = "name the file that ends with .pub; further keys go into --user-data"
        raise ConfigError(f"{file} is no file with one public key of ssh", hint=hint)
    return keys[0]


def content_of(file: Path) -> bytes:
    """A file's content, as it is.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        content = read_regular(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise ConfigError(f"{file} is empty")
    return content


def new_interface(bridge: str, network: str | None = None) -> VmInterface:
    """An interface with an address that nobody has."""
    identity = uuid4()
    tail = ":".join(f"{byte:02x}" for byte in identity.bytes[-3:])
    return VmInterface(id=str(identity), address=f"{_QEMUS}:{tail}", bridge=bridge, network=network)


def recorded(wanted: Wanted, *, image: str | None, interfaces: Iterable[VmInterface], now: datetime) -> VmRecord:
    """The record of the machine that is to be made."""
    return VmRecord(
        created_at=now,
        image=image,
        memory_mib=wanted.memory_mib,
        vcpus=wanted.vcpus,
        os_type=wanted.os_type,
        root_gib=wanted.root_gib,
        swap_mib=wanted.swap_mib,
        ephemerals=tuple(VmEphemeral(size_gib=size) for size in wanted.ephemerals_gib),
        interfaces=tuple(interfaces),
        properties=wanted.properties,
    )
