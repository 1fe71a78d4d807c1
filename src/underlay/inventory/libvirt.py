"""Instances from libvirt: ``libvirt:URI``. Every domain of this host, running or not, and every file that its XML names.

Nova leaves in a domain what it was made from (the namespaces below), and so does ``underlay vm``, so its image, swap and
ephemerals are claimed as well. What libvirt does not know claims nothing: the disks decide. The connection is read-only where
the driver has such a thing.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, fromstring

import msgspec

from underlay.errors import ExtraMissing, InvalidInventory, InventoryUnavailable
from underlay.model import Ephemeral, InstanceRecord, KnownDisk
from underlay.waiting import within

# Elements with a <source>, in the XML of domains and of their snapshots (https://libvirt.org/formatdomain.html#hard-drives…).
_LAYERS = frozenset({"disk", "backingStore", "dataStore", "mirror", "filesystem"})
_NOT_QEMUS = {"iso": "raw", "auto": None, "none": None, "dir": None}
_NOVA = tuple(f"{{http://openstack.org/xmlns/libvirt/nova/{version}}}" for version in ("1.1", "1.0"))
_OURS = "{urn:underlay:vm:1}vm"  # see `underlay.vm.record`
_HINT = "see that libvirt runs and that the user that runs this may use it"


class _Claims(msgspec.Struct, frozen=True):
    """What of a record of ``underlay vm`` tells which images it was made from."""

    os_type: str
    ephemerals: tuple[Ephemeral, ...]


class LibvirtInventory:
    """The domains of one libvirt, which knows those of its own host only.

    Attributes:
        uri: as libvirt has it; empty: libvirt's own default.
        timeout: seconds that libvirt may take to answer one question.
    """

    def __init__(self, location: str, *, host: str, hosts: Sequence[str], timeout: float = 30.0) -> None:
        self.uri = location
        self.host = host
        self.timeout = timeout

    def instances(self) -> Sequence[InstanceRecord]:
        """Every domain; one that goes away meanwhile is gone.

        Raises:
            ExtraMissing: libvirt-python is not installed.
            InventoryUnavailable: libvirt does not answer, or not all of it.
            InvalidInventory: a domain's XML is not what libvirt writes.
        """
        library = _library()
        try:
            connection = within(self.timeout, lambda: _connect(library, self.uri))
            domains = within(self.timeout, connection.listAllDomains)
            found = [within(self.timeout, partial(self._record, library, connection, domain)) for domain in domains]
            within(self.timeout, connection.close)
        except TimeoutError as error:
            raise InventoryUnavailable(f"libvirt{self._at} does not answer for {self.timeout:g} s", hint=_HINT) from error
        except library.libvirtError as error:
            raise InventoryUnavailable(f"libvirt{self._at} does not answer: {error}", hint=_HINT) from error
        return [record for record in found if record is not None]

    @property
    def _at(self) -> str:
        return f" at {self.uri}" if self.uri else ""

    def _record(self, library: Any, connection: Any, domain: Any) -> InstanceRecord | None:
        try:
            name, uuid = domain.name(), domain.UUIDString()
            trees = [_parsed(text, name) for text in dict.fromkeys(_descriptions(library, domain))]
            volumes = [_volume(library, connection, source, name) for tree in trees for source in _volumes(tree)]
        except library.libvirtError as error:
            if error.get_error_code() == library.VIR_ERR_NO_DOMAIN:
                return None
            raise
        disks = chain(volumes, *map(_disks, trees))
        made_from = [one for tree in trees for one in _nova_elements(tree)]
        claims = [one for tree in trees for one in _claims(tree, name)]
        return InstanceRecord(
            uuid=uuid,
            name=name,
            host=self.host,
            image_ref=next(filter(None, map(_image, made_from)), None),
            swap_mib=tuple(dict.fromkeys(size for one in made_from if (size := _flavor_size(one, "swap", name)))),
            os_type=next((one.os_type for one in claims), None),
            ephemerals=tuple(dict.fromkeys([*_sums(made_from, name), *(each for one in claims for each in one.ephemerals)])),
            disks=tuple(dict.fromkeys(disks)),
        )


def _library() -> Any:
    is_first = "libvirt" not in sys.modules
    try:
        library = import_module("libvirt")
    except ImportError as error:
        raise ExtraMissing("libvirt-python is not installed", hint="pip install 'underlay[libvirt]'") from error
    if is_first:  # the handler of errors is the process's, and may be somebody else's by now
        library.registerErrorHandler(lambda _context, _error: None, None)  # the default one prints what is raised anyway
    return library


def _connect(library: Any, uri: str) -> Any:
    try:
        return library.openReadOnly(uri or None)
    except library.libvirtError:
        return library.open(uri or None)  # some drivers, the embedded one among them, are not to be had read-only


def _descriptions(library: Any, domain: Any) -> Iterator[str]:
    """All XML that names files of a domain: as it runs, as it starts next, as it was saved, and its snapshots."""
    yield domain.XMLDesc(0)
    yield domain.XMLDesc(library.VIR_DOMAIN_XML_INACTIVE)
    try:
        if domain.hasManagedSaveImage(0):
            yield domain.managedSaveGetXMLDesc(0)
    except library.libvirtError as error:
        _pass_over(error, library.VIR_ERR_NO_SUPPORT, library.VIR_ERR_NO_DOMAIN_SNAPSHOT)
    for snapshot in _snapshots(library, domain):
        try:
            yield snapshot.getXMLDesc(0)
        except library.libvirtError as error:
            _pass_over(error, library.VIR_ERR_NO_DOMAIN_SNAPSHOT)


def _snapshots(library: Any, domain: Any) -> Sequence[Any]:
    try:
        snapshots: Sequence[Any] = domain.listAllSnapshots(0)
    except library.libvirtError as error:
        _pass_over(error, library.VIR_ERR_NO_SUPPORT)
        return ()
    return snapshots


def _pass_over(error: Any, *codes: int) -> None:
    if error.get_error_code() not in codes:
        raise error


def _parsed(text: str, name: str) -> Element:
    # libvirt writes no document type, and one could make a parser expand entities without end.
    if "<!DOCTYPE" in text:
        raise InvalidInventory(f"the XML of domain {name!r} has a document type")
    try:
        return fromstring(text)  # noqa: S314 - entities need the document type that was just refused
    except ParseError as error:
        raise InvalidInventory(f"the XML of domain {name!r} is malformed: {error}") from error


def _disks(tree: Element) -> Iterator[KnownDisk]:
    for element in tree.iter():
        if element.tag in _LAYERS:
            for source in element.findall("source"):
                if path := source.get("file") or source.get("dev"):
                    yield KnownDisk(_absolute(path), _format(element))
    for part in ("kernel", "initrd"):
        yield from (KnownDisk(_absolute(one.text), "raw") for os in tree.iter("os") for one in os.findall(part) if one.text)


def _absolute(path: str) -> Path:
    return Path("/", path)  # libvirt's daemon, and QEMU below it, run in the root directory


def _format(element: Element) -> str | None:
    """A disk's driver names its format by ``type``, a container's by ``format``; a layer has an element of its own."""
    driver, layer = element.find("driver"), element.find("format")
    if driver is not None:
        word = driver.get("format" if element.tag == "filesystem" else "type")
    else:
        word = None if layer is None else layer.get("type")
    return None if word is None else _NOT_QEMUS.get(word, word)


def _volumes(tree: Element) -> Iterator[tuple[str, str, str | None]]:
    """Pool, volume and format of the disks that are named by those instead of a path."""
    for element in tree.iter():
        if element.tag in _LAYERS:
            for source in element.findall("source"):
                pool, volume = source.get("pool"), source.get("volume")
                if pool and volume:
                    yield pool, volume, _format(element)


def _volume(library: Any, connection: Any, source: tuple[str, str, str | None], name: str) -> KnownDisk:
    pool, volume, disk_format = source
    try:
        path = connection.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
    except library.libvirtError as error:
        # The file may be there all the same, and its backing file with it.
        raise InventoryUnavailable(
            f"libvirt does not know where volume {volume!r} of pool {pool!r} is, a disk of domain {name!r}: {error}",
            hint=f"start and refresh the pool {pool!r}, or take the disk from the domain",
        ) from error
    return KnownDisk(_absolute(path), disk_format)


def _nova_elements(tree: Element) -> Iterator[tuple[str, Element]]:
    for namespace in _NOVA:
        yield from ((namespace, element) for element in tree.iter(f"{namespace}instance"))


def _claims(tree: Element, name: str) -> Iterator[_Claims]:
    for element in tree.iter(_OURS):
        try:
            yield msgspec.json.decode(element.text or "", type=_Claims)
        except msgspec.DecodeError as error:
            raise InvalidInventory(
                f"domain {name!r}: what 'underlay vm' wrote into its metadata makes no sense: {error}"
            ) from error


def _image(made_from: tuple[str, Element]) -> str | None:
    namespace, element = made_from
    root = element.find(f"{namespace}root")
    return root.get("uuid") if root is not None and root.get("type") == "image" else None


def _sums(made_from: Sequence[tuple[str, Element]], name: str) -> Iterator[Ephemeral]:
    """Nova writes down what all ephemerals of an instance are together."""
    for one in made_from:
        if size := _flavor_size(one, "ephemeral", name):
            yield Ephemeral(size_gib=size)


def _flavor_size(made_from: tuple[str, Element], field: str, name: str) -> int:
    namespace, element = made_from
    text = (element.findtext(f"{namespace}flavor/{namespace}{field}") or "0").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidInventory(f"domain {name!r}: {field} of the flavor in Nova's metadata is {text!r}, no size")
    return int(text)
