"""What is kept of a virtual machine beside what libvirt knows of it: one JSON value in the metadata of its domain.

    <vm xmlns="urn:underlay:vm:1">{"memory_mib": 1024, "vcpus": 1, …}</vm>

Whoever reads it later (a hard reboot, a listing, the inventory of libvirt) needs nothing else. It has no secret in it: neither
user data nor the credentials of an image's ref.
"""

import json
from datetime import datetime
from typing import Annotated
from xml.etree.ElementTree import Element

import msgspec

from underlay.compute.errors import OperationFailed

NAMESPACE = "urn:underlay:vm:1"
"""Of the element; its number changes when a reader of the older shape would misread the newer."""

TAG = f"{{{NAMESPACE}}}vm"
"""The element, as ElementTree spells it."""


_Some = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Perhaps = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Uuid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_Mac = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
_Device = Annotated[str, msgspec.Meta(pattern=r"^[^/\s]{1,15}$")]  # as the kernel has it


class VmEphemeral(msgspec.Struct, frozen=True, kw_only=True):
    """One ephemeral disk."""

    size_gib: _Some


class VmInterface(msgspec.Struct, frozen=True, kw_only=True):
    """One interface.

    Attributes:
        id: a UUID, after which its tap is called. address: its MAC. bridge: of this host.
        network: the network of libvirt that the bridge was found by, if it was.
    """

    id: _Uuid
    address: _Mac
    bridge: _Device
    network: str | None = None


class VmRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        created_at: in UTC. image: the canonical ref that the root disk was made from; None: of an image that records none.
        os_type: the guest's system, as Nova has it. root_gib: 0: as large as the image.
        properties: of the image, by the names that the driver knows.
    """

    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    image: str | None
    memory_mib: _Some
    vcpus: _Some
    os_type: str = "linux"
    root_gib: _Perhaps = 0
    swap_mib: _Perhaps = 0
    ephemerals: tuple[VmEphemeral, ...] = ()
    interfaces: tuple[VmInterface, ...] = ()
    properties: dict[str, str] = msgspec.field(default_factory=dict)


def text_of(record: VmRecord) -> str:
    """The record as it is kept; in ASCII, since XML has no place for every character."""
    return json.dumps(msgspec.to_builtins(record))


def is_ours(domain: Element) -> bool:
    """Whether ``underlay vm`` made a domain, by its XML: there is a record in it, whether it can be read or not."""
    return domain.find(f"metadata/{TAG}") is not None


def record_of(domain: Element, name: str) -> VmRecord:
    """The record in the XML of a domain that is ours.

    Raises:
        OperationFailed: somebody has changed it to what makes no sense.
    """
    try:
        return msgspec.json.decode(domain.findtext(f"metadata/{TAG}", ""), type=VmRecord)
    except msgspec.DecodeError as error:
        what = f"the metadata of the domain {name} is no record of a virtual machine: {error}"
        raise OperationFailed(what, hint=f"put right what 'virsh metadata {name} {NAMESPACE}' shows") from error


def kept_as(record: VmRecord) -> dict[str, str]:
    """The record as an instance carries it to the driver: the text of elements of the domain's metadata, by their tags."""
    return {TAG: text_of(record)}
