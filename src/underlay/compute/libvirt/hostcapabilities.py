"""What a host and its hypervisor can do, as libvirt says it. Pure.

The formats are those of https://libvirt.org/formatcaps.html and https://libvirt.org/formatdomaincaps.html.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from underlay.compute.libvirt.guestxml import parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCapabilities:
    """A host.

    Attributes:
        model, vendor: of its processor; empty: libvirt does not say. features: of it, by libvirt's names.
        cells, sockets, cores, threads: how its processors are arranged.
        guests: architecture, hypervisor and mode of the guests that it can run, such as ``("x86_64", "qemu", "hvm")``.
    """

    architecture: str
    model: str
    vendor: str
    cells: int
    sockets: int
    cores: int
    threads: int
    features: tuple[str, ...]
    guests: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainCapabilities:
    """What guests of one kind can be given.

    Attributes:
        buses: of disks. screens: models of graphics cards.
    """

    buses: frozenset[str]
    screens: frozenset[str]


def host_capabilities(xml: str) -> HostCapabilities:
    """What `virConnectGetCapabilities` answers.

    Raises:
        OperationFailed: it has a document type.
    """
    root = parsed(xml)
    topology = _attributes(root.find("host/cpu/topology"))
    return HostCapabilities(
        architecture=root.findtext("host/cpu/arch", ""),
        model=root.findtext("host/cpu/model", ""),
        vendor=root.findtext("host/cpu/vendor", ""),
        cells=int(_attributes(root.find("host/topology/cells")).get("num", 1)),
        sockets=int(topology.get("sockets", 1)),
        cores=int(topology.get("cores", 1)),
        threads=int(topology.get("threads", 1)),
        features=tuple(sorted(one.get("name", "") for one in root.iterfind("host/cpu/feature"))),
        guests=tuple(_guests(root)),
    )


def domain_capabilities(xml: str) -> DomainCapabilities:
    """What `virConnectGetDomainCapabilities` answers.

    Raises:
        OperationFailed: it has a document type.
    """
    root = parsed(xml)
    return DomainCapabilities(
        buses=_values(root, "devices/disk/enum[@name='bus']"), screens=_values(root, "devices/video/enum[@name='modelType']")
    )


def cpu_info(found: HostCapabilities) -> dict[str, Any]:
    """A host's processors, as a compute service keeps them."""
    return {
        "arch": found.architecture,
        "model": found.model,
        "vendor": found.vendor,
        "topology": {"cells": found.cells, "sockets": found.sockets, "cores": found.cores, "threads": found.threads},
        "features": list(found.features),
    }


def _guests(root: Element) -> Iterator[tuple[str, str, str]]:
    for guest in root.iterfind("guest"):
        for architecture in guest.iterfind("arch"):
            for domain in architecture.iterfind("domain"):
                yield architecture.get("name", ""), domain.get("type", ""), guest.findtext("os_type", "")


def _attributes(element: Element | None) -> dict[str, str]:
    return {} if element is None else element.attrib


def _values(root: Element, path: str) -> frozenset[str]:
    return frozenset(value.text or "" for value in root.iterfind(f"{path}/value"))
