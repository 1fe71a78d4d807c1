"""What of an index and of a manifest is the disk; pure. What cannot be told is refused, with what there is to choose from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from underlay.errors import ImageNotFound, SourceRefused
from underlay.naming import printable
from underlay.sources.oci.manifest import Descriptor, Index, Manifest, Platform

_IMAGE_CONFIGS = frozenset({"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"})
_EMPTY = "application/vnd.oci.empty.v1+json"
# A directory is packed by oras, which says so by an annotation; by its Python client the media type alone tells.
_UNPACKED = "io.deis.oras.content.unpack"
_PACKED = frozenset({"application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+zstd"})
_DISK_TYPES = re.compile(
    r"application/(x-|vnd\.)?(qemu-disk|qcow2|raw-disk-image|vmdk|vhd|vhdx|vdi)([.+](gzip|zstd|xz|bzip2))?"
)
_DISK_TITLES = re.compile(r".+\.(qcow2?|img|raw|vmdk|vdi|vhdx?)(\.(gz|zst|xz|bz2))?", re.IGNORECASE)
_MOST_LISTED = 8

# What the kernel calls a machine, as images call it (the Go language's names): architecture and, where it matters, variant.
_MACHINES = {
    "x86_64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armv6l": "arm/v6",
    "armv7l": "arm/v7",
    "armv8l": "arm/v7",
    "loongarch64": "loong64",
}
# What a platform without a variant has (containerd and docker agree on these).
_PLAIN_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest of which one layer is the disk itself."""

    layer: Descriptor


@dataclass(frozen=True, slots=True)
class ContainerDisk:
    """A container image with the disk as a file in ``disk/``: its layers, the uppermost first."""

    layers: Sequence[Descriptor]


def platform_of(text: str) -> Platform:
    """A platform as ``os/architecture`` or ``os/architecture/variant``."""
    system, architecture, variant = (*text.split("/"), None, None)[:3]
    return Platform(os=system or "", architecture=architecture or "", variant=variant)


def platform_of_machine(machine: str) -> str:
    """The platform of a Linux host, by what uname(2) calls its machine."""
    return f"linux/{_MACHINES.get(machine, machine)}"


def choose_manifest(what: str, index: Index, platform: str) -> Descriptor:
    """The one manifest of an index that is for a platform.

    Raises:
        ImageNotFound: there is none. SourceRefused: there are several.
    """
    wanted = platform_of(platform)
    fitting = {one.digest: one for one in index.manifests if _fits(one.platform, wanted)}
    exact = {digest: one for digest, one in fitting.items() if _variant(one.platform) == _variant(wanted)}
    found = list((exact or fitting).values())
    # An index of one manifest that does not say what it is for is an artifact's.
    if not found and [one.platform for one in index.manifests] == [None]:
        found = index.manifests
    if not found:
        hint = "set platform under [sources.oci], or name a manifest by its digest"
        raise ImageNotFound(f"{what} has nothing for {platform}; {_listed(index.manifests)}", hint=hint)
    if len(found) > 1:
        hint = "name one by its digest: oci://…@sha256:…"
        raise SourceRefused(f"{what} has several manifests for {platform}; {_listed(found)}", hint=hint)
    return found[0]


def _fits(offered: Platform | None, wanted: Platform) -> bool:
    if offered is None or offered.os not in ("", wanted.os):
        return False
    # Some indexes have the kernel's names.
    architecture, _, variant = _MACHINES.get(offered.architecture, offered.architecture).partition("/")
    if architecture != wanted.architecture:
        return False
    return wanted.variant is None or wanted.variant == (offered.variant or variant or _PLAIN_VARIANTS.get(architecture))


def _variant(platform: Platform | None) -> str | None:
    return None if platform is None else platform.variant or _PLAIN_VARIANTS.get(platform.architecture)


def choose_disk(what: str, manifest: Manifest, part: str | None) -> Artifact | ContainerDisk:
    """The disk of a manifest.

    Args:
        part: the title of the layer that is asked for, or the name of a file in a containerdisk.

    Raises:
        ImageNotFound: no layer has that title. SourceRefused: it cannot be told which layer is the disk, or none is.
    """
    if manifest.config is not None and manifest.config.media_type in _IMAGE_CONFIGS:
        if not manifest.layers:
            raise SourceRefused(f"{what} is a container image without a layer")
        return ContainerDisk(manifest.layers[::-1])
    return Artifact(_layer(what, _layers_with_content(manifest), part))


def _layers_with_content(manifest: Manifest) -> list[Descriptor]:
    return [layer for layer in manifest.layers if layer.media_type != _EMPTY]


def _layer(what: str, layers: Sequence[Descriptor], part: str | None) -> Descriptor:
    chosen = _titled(what, layers, part) if part is not None else _only(what, layers)
    if chosen.media_type in _PACKED or (chosen.annotations or {}).get(_UNPACKED) == "true":
        raise SourceRefused(f"{what}: its layer is a packed directory, not a disk; {_listed(layers)}")
    return chosen


def _only(what: str, layers: Sequence[Descriptor]) -> Descriptor:
    found = layers if len(layers) == 1 else [layer for layer in layers if _is_disk(layer)]
    if len(found) != 1:
        hint = "choose a layer by its title: oci://…#title" if layers else None
        raise SourceRefused(f"{what}: {'no' if not found else 'more than one'} layer is a disk; {_listed(layers)}", hint=hint)
    return found[0]


def _titled(what: str, layers: Sequence[Descriptor], title: str) -> Descriptor:
    found = [layer for layer in layers if layer.title == title]
    if not found:
        raise ImageNotFound(f"{what}: no layer has this title; {_listed(layers)}")
    if len(found) > 1:
        raise SourceRefused(f"{what}: {len(found)} layers have this title; {_listed(layers)}")
    return found[0]


def _is_disk(layer: Descriptor) -> bool:
    return bool(_DISK_TYPES.fullmatch(layer.media_type) or (layer.title and _DISK_TITLES.fullmatch(layer.title)))


def _listed(found: Sequence[Descriptor]) -> str:
    lines = [_line(one) for one in found[:_MOST_LISTED]]
    more = [f"and {len(found) - _MOST_LISTED} more"] if len(found) > _MOST_LISTED else []
    return "there is " + (", ".join(lines + more) or "nothing")


def _line(one: Descriptor) -> str:
    platform = one.platform and "/".join(
        part for part in (one.platform.os, one.platform.architecture, one.platform.variant) if part
    )
    kind = printable((platform or one.media_type)[:80])
    title = f"{printable(one.title[:80])!r} " if one.title else ""
    annotations = {name: value for name, value in (one.annotations or {}).items() if not name.startswith("org.opencontainers.")}
    told = "".join(f" {printable(name[:40])}={printable(value[:40])}" for name, value in sorted(annotations.items())[:3])
    return f"{title}({kind}, {one.digest[:19]}…, {one.size} bytes{told})"
