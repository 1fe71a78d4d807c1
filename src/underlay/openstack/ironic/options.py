"""Ironic's options as we use them: those of the Ironic around us, else Ironic's own defaults. Read at each use, never kept."""

from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

_MIB, _MINUTE = 1 << 20, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What Ironic is configured to do with images. Named as the options of its default group; the others' groups are below.

    Attributes:
        webserver_connection_timeout, webserver_verify_timeout: seconds.
        image_cache_size, iso_cache_size: MiB. image_cache_ttl, iso_cache_ttl: minutes.
    """

    force_raw_images: bool = True
    image_download_concurrency: int = 20
    parallel_image_downloads: bool = True
    webserver_verify_ca: str = "True"
    webserver_connection_timeout: int = 60
    webserver_verify_timeout: int = 5
    image_server_auth_strategy: str = "noauth"
    image_server_user: str | None = None
    image_server_password: str | None = None
    image_server_auth_hosts: list[str] | None = None
    image_server_auth_permit_unknown_hosts: bool = True
    allow_md5_checksum: bool = True
    disable_file_checksum: bool = False
    disable_support_for_checksum_files: bool = False
    disable_deep_image_inspection: bool = False
    disable_zstandard_decompression: bool = False
    permitted_image_formats: tuple[str, ...] = ("raw", "gpt", "qcow2", "iso")
    file_url_allowed_paths: tuple[str, ...] = ("/var/lib/ironic",)
    instance_master_path: str = "/var/lib/ironic/master_images"
    tftp_master_path: str = "/tftpboot/master_images"
    iso_master_path: str = "/var/lib/ironic/master_iso_images"
    image_cache_size: int = 20480
    image_cache_ttl: int = 10080
    iso_cache_size: int = 20480
    iso_cache_ttl: int = 10080

    @classmethod
    def load(cls) -> "Options":
        """The options now. One that this release of Ironic does not have keeps its default."""
        try:
            conf = import_module("ironic.conf").CONF
        except ImportError:
            return cls()
        return cls(**{field.name: _read(conf, field.name, field.default) for field in fields(cls)})

    @property
    def image_cache_bytes(self) -> int:
        """Of each cache for instances' images and for what a node boots."""
        return self.image_cache_size * _MIB

    @property
    def image_cache_seconds(self) -> int:
        """How long their images stay after their last use."""
        return self.image_cache_ttl * _MINUTE

    @property
    def iso_cache_bytes(self) -> int:
        """Of the cache for ISO images."""
        return self.iso_cache_size * _MIB

    @property
    def iso_cache_seconds(self) -> int:
        """How long its images stay after their last use."""
        return self.iso_cache_ttl * _MINUTE

    @property
    def transfers(self) -> int:
        """How many images are transferred at a time."""
        return max(1, self.image_download_concurrency) if self.parallel_image_downloads else 1


_GROUPS = {
    "agent": ("allow_md5_checksum",),
    "conductor": (
        "disable_file_checksum",
        "disable_support_for_checksum_files",
        "disable_deep_image_inspection",
        "disable_zstandard_decompression",
        "permitted_image_formats",
        "file_url_allowed_paths",
    ),
    "deploy": (
        "image_server_auth_strategy",
        "image_server_user",
        "image_server_password",
        "image_server_auth_hosts",
        "image_server_auth_permit_unknown_hosts",
        "iso_master_path",
        "iso_cache_size",
        "iso_cache_ttl",
    ),
    "pxe": ("instance_master_path", "tftp_master_path", "image_cache_size", "image_cache_ttl"),
}


def _read(conf: Any, name: str, default: Any) -> Any:
    group = next((group for group, names in _GROUPS.items() if name in names), None)
    return getattr(conf if group is None else getattr(conf, group), name, default)
