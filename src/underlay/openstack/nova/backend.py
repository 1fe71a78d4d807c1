"""Nova's choice of an image backend: types of images by their names, as Nova has them, each over a disk backend of ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from underlay import registry
from underlay.contracts import BackendTraits
from underlay.errors import ConfigError
from underlay.openstack.nova.around import Around, image_type as configured_type
from underlay.openstack.nova.image import Image
from underlay.openstack.nova.places import is_file


@dataclass(frozen=True, slots=True)
class ImageType:
    """What Nova has a class of its own for: called, it makes an `Image`; one is an instance of the type that made it.

    Attributes:
        name: of the disk backend.
    """

    name: str

    SUPPORTS_LUKS = False

    def __call__(
        self,
        instance: Any = None,
        disk_name: str | None = None,
        path: str | None = None,
        disk_info_mapping: Mapping[str, Any] | None = None,
    ) -> Image:
        """An image of this type: of an instance's disk by its name, or by the path that libvirt has for it.

        Raises:
            RuntimeError: the backend lacks an option that it cannot do without. InvalidName: no disk can be called so.
        """
        try:
            around = Around.load()
            backend = around.parts.backend(self.name)
        except ConfigError as error:
            raise RuntimeError(f"images of the type {self.name} cannot be used: {error.message}") from error
        return Image(around, backend, instance, disk_name, path=path, disk_info_mapping=disk_info_mapping)

    def __instancecheck__(self, one: object) -> bool:
        return isinstance(one, Image) and one.traits.name == self.name

    @property
    def SUPPORTS_CLONE(self) -> bool:  # noqa: N802 - Nova's name
        """Whether a disk can be made from what the storage has already."""
        return self._traits.clones

    def is_shared_block_storage(self) -> bool:
        """Whether the disks are no files, and other hosts reach them."""
        return self._traits.shared_storage and not self._traits.on_host_filesystem

    def is_file_in_instance_path(self) -> bool:
        """Whether a disk is one file in its instance's directory."""
        return is_file(self._traits)

    @property
    def _traits(self) -> BackendTraits:
        return Around.load().parts.backend(self.name).traits


Flat, Qcow2, Lvm, Rbd, Ploop = map(ImageType, ("flat", "qcow2", "lvm", "rbd", "ploop"))

_TYPES: Mapping[str, ImageType] = MappingProxyType(
    {"raw": Flat, "flat": Flat, "qcow2": Qcow2, "lvm": Lvm, "rbd": Rbd, "ploop": Ploop}
)


class Backend:
    """Nova's ``imagebackend.Backend``: makes images by their type."""

    def __init__(self, use_cow: bool) -> None:  # noqa: FBT001 - as in Nova
        """As in Nova.

        Args:
            use_cow: what the type ``default`` is: qcow2, else flat.
        """
        self._default = Qcow2 if use_cow else Flat

    def backend(self, image_type: str | None = None) -> ImageType:
        """The type of this name.

        Args:
            image_type: raw, flat, qcow2, lvm, rbd, ploop, default or the name of another disk backend; None: as is configured.

        Raises:
            RuntimeError: there is none; the message lists those that there are.
        """
        image_type = image_type or configured_type()
        if image_type == "default":
            return self._default
        found = _TYPES.get(image_type, ImageType(image_type))
        known = registry.known_backends()
        if found.name not in known:
            raise RuntimeError(f"Unknown image_type={image_type}; there are {', '.join(sorted({'default', 'raw', *known}))}")
        return found

    def by_name(
        self,
        instance: Any,
        name: str,
        image_type: str | None = None,
        disk_info_mapping: Mapping[str, Any] | None = None,
    ) -> Image:
        """The image of an instance's disk; whether it is there is not looked at.

        Args:
            instance: what has a ``uuid``. name: such as ``disk`` or ``disk.swap``; a path, as Nova writes it for a disk that
                is migrated, is the disk at that path.
            disk_info_mapping: of the disk in its guest: bus, dev and type, as `Image.libvirt_info` needs it.

        Raises:
            RuntimeError: as `backend`. InvalidName: no disk can be called so.
        """
        return self.backend(image_type)(instance=instance, disk_name=name, disk_info_mapping=disk_info_mapping)

    def by_libvirt_path(self, instance: Any, path: str, image_type: str | None = None) -> Image:
        """The image of an instance's disk, by the path that libvirt has for it.

        Raises:
            as `by_name`
        """
        return self.backend(image_type)(instance=instance, path=path)
