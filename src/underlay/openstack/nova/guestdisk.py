"""What Nova hands on of a disk, in Nova's own classes: its place in a domain's XML, and a value for those who look into it."""

import base64
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from underlay.contracts import BackendTraits
from underlay.errors import ExtraMissing, Unsupported
from underlay.model import Attachment

_DIRECT = frozenset({"none", "directsync"})  # cache modes that go around the page cache, as native I/O has to
_LIMITS = frozenset(
    f"disk_{what}_{unit}_sec" for what in ("read", "write", "total") for unit in ("bytes", "iops")
)  # of a flavor's extra specs, after "quota:"
_NEVER_ENCRYPTED = frozenset({"kernel", "ramdisk", "disk.config"})


class Shown(Protocol):
    """What an image says of its disk."""

    path: str
    source_type: str
    is_block_dev: bool
    driver_io: str | None
    discard_mode: str | None

    @property
    def driver_format(self) -> str:
        """Of the disk."""
        ...


def refuse_encryption(conf: Any, name: str) -> None:
    """Refuse a disk that Nova's options want encrypted: the keys are Nova's, and no backend is given them.

    Raises:
        Unsupported
    """
    if conf is not None and conf.ephemeral_storage_encryption.enabled and name not in _NEVER_ENCRYPTED:
        hint = "switch ephemeral_storage_encryption off, or leave Nova's own image backends in their place"
        raise Unsupported("Nova's", f"encrypt the disk {name}", hint=hint)


def preallocates(conf: Any, traits: BackendTraits) -> bool:
    """Whether disks have all their space from the beginning."""
    if conf is None or traits.shared_storage:
        return False
    if not traits.on_host_filesystem:
        return not conf.libvirt.sparse_logical_volumes
    return "falloc" in traits.preallocations and conf.preallocate_images == "space"


def disk(image: Shown, mapping: Mapping[str, Any], attachment: Attachment | None, cache_mode: str) -> Any:
    """A ``LibvirtConfigGuestDisk``.

    Args:
        mapping: of the disk in its guest: bus, dev and type. attachment: of a disk that is reached over the network.
    """
    config = _nova("nova.virt.libvirt.config")
    info = config.LibvirtConfigGuestDisk()
    info.source_device, info.target_bus, info.target_dev = mapping["type"], mapping["bus"], mapping["dev"]
    info.driver_cache, info.driver_discard = cache_mode, image.discard_mode
    if attachment is not None:
        _reach(info, attachment)
        return info
    info.source_type, info.source_path, info.driver_format = image.source_type, image.path, image.driver_format
    info.driver_io = image.driver_io if cache_mode in _DIRECT else None
    if _nova("nova.conf").CONF.libvirt.virt_type in ("qemu", "kvm"):
        info.driver_name = "qemu"
    return info


def _reach(info: Any, attachment: Attachment) -> None:
    info.driver_format = attachment.format
    info.source_type, info.source_protocol, info.source_name = "network", attachment.protocol, attachment.source
    info.source_hosts = [host for host, _ in attachment.servers]
    info.source_ports = [str(port) for _, port in attachment.servers]
    if attachment.secret is not None and attachment.user is not None:
        info.auth_username = attachment.user
    if attachment.secret is not None or attachment.user is not None:
        info.auth_secret_type, info.auth_secret_uuid = "ceph", attachment.secret


def place(info: Any, mapping: Mapping[str, Any], unit: int | None) -> None:
    """Give a SCSI disk its unit on the driver's one controller."""
    if mapping["bus"] != "scsi" or unit is None:
        return
    info.device_addr = _nova("nova.virt.libvirt.config").LibvirtConfigGuestDeviceAddressDrive()
    info.device_addr.controller, info.device_addr.unit = 0, unit


def limit(info: Any, extra_specs: Mapping[str, str]) -> None:
    """Give the disk the flavor's limits: ``quota:disk_read_bytes_sec`` and its like."""
    for key, value in extra_specs.items():
        scope, _, name = key.partition(":")
        if scope == "quota" and name in _LIMITS:
            setattr(info, name, value)


def file_system(image: Shown, target: str, driver_type: str | None) -> Any:
    """A ``LibvirtConfigGuestFilesys``."""
    info = _nova("nova.virt.libvirt.config").LibvirtConfigGuestFilesys()
    info.target_dir = target
    if image.is_block_dev:
        info.source_type, info.source_dev = "block", image.path
        return info
    info.source_type, info.source_file, info.driver_format = "file", image.path, image.driver_format
    info.driver_type = driver_type or ("loop" if image.driver_format == "raw" else "nbd")
    return info


def model(image: Shown, attachment: Attachment | None, connection: Any) -> Any:
    """A value of ``nova.virt.image.model``.

    Args:
        attachment: of a disk that is reached over the network. connection: of libvirt, which keeps its secret.
    """
    models = _nova("nova.virt.image.model")
    if attachment is not None:
        pool, _, name = attachment.source.partition("/")
        servers = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in attachment.servers]
        return models.RBDImage(name, pool, attachment.user, _secret(attachment, connection), servers)
    if image.is_block_dev:
        return models.LocalBlockImage(image.path)
    return models.LocalFileImage(image.path, image.driver_format)


def _secret(attachment: Attachment, connection: Any) -> bytes | None:
    if attachment.secret is None:
        return None
    return base64.b64encode(connection.secretLookupByUUIDString(attachment.secret).value())


def _nova(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        what = f"Nova cannot be imported: {error}"
        raise ExtraMissing(what, hint="this works in the Python environment of nova-compute") from error
