"""Whether another host has this host's instances in the same directory.

Services ask for that with a probe: one host puts a file into an instance's directory, and the other looks for it. A driver that
has nobody to ask goes by what hosts have said: where the configuration names several that share the directory, each driver
writes its address into it when it starts. Seeing that is seeing that host's probe.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from underlay.compute.arguments import Instance
from underlay.compute.errors import ComputeError, InvalidInput
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.site import Site
from underlay.files import create, read_regular, translated as translated_at, write_durably
from underlay.host import Host

_LOG = logging.getLogger(__name__)
_BEFORE, _AFTER = ".underlay-host-", ".json"  # files: a directory would be one more of those by which a prune knows the place
_MODE, _PROBE_MODE = 0o644, 0o600
_PROBE = "shared-storage-probe."


class _Said(msgspec.Struct, frozen=True):
    """What a host says of itself in the directory that it shares."""

    host: str
    address: str


def announce(host: Host, address: str) -> None:
    """Say in the directory of instances at which address this host is, durably; nothing where no other shares it.

    It stays when the driver ends: other programs of this host may have one too, and where its instances are does not change.
    A failure is logged: then the others move nothing here, and all else works.
    """
    if len(host.config.hosts) < 2:
        return
    mine = _Said(host.config.host, address)
    path = host.config.instances / _name_of(mine)
    try:
        with translated(), translated_at(path):
            if mine not in _all_said(host):
                write_durably(path, msgspec.json.encode(mine), mode=_MODE)
    except ComputeError as error:
        _LOG.warning("other hosts are not told that this one shares its instances: %s", error)


def is_shared_with(host: Host, address: str) -> bool:
    """Whether a host at this address has said so here, and is one of those that the configuration names.

    Raises:
        as `underlay.compute.libvirt.localdisks.translated`
    """
    others = set(host.config.hosts) - {host.config.host}
    with translated(), translated_at(host.config.instances):
        return any(said.address == address and said.host in others for said in _all_said(host))


def _all_said(host: Host) -> Iterator[_Said]:
    for name in sorted(os.listdir(host.config.instances)):
        if name.startswith(_BEFORE) and name.endswith(_AFTER):
            said = _said_in(host.config.instances / name)
            if said is not None and name == _name_of(said):
                yield said


def _said_in(path: Path) -> _Said | None:
    """What a host has written; what nobody can read says nothing, whoever put it there, and then nothing is moved."""
    try:
        return msgspec.json.decode(read_regular(path), type=_Said)
    except (OSError, msgspec.DecodeError) as error:
        _LOG.warning("%s does not say which host shares the directory: %s", path, error)
        return None


def _name_of(said: _Said) -> str:
    return f"{_BEFORE}{said.host}{_AFTER}"


# ----------------------------------------------------------------------------------------------------------------- the probes


def probe(site: Site, instance: Instance) -> dict[str, Any] | None:
    """Put a probe into an instance's directory.

    Returns:
        ``filename``: where it is. None when there is no such directory, or disks are on storage that every host reaches.

    Raises:
        as `underlay.compute.libvirt.localdisks.translated`
    """
    directory = site.directory(instance).path
    with translated(), translated_at(directory):
        if site.host.parts.backend(site.options.images_type).traits.shared_storage or not directory.is_dir():
            return None
        path = directory / f"{_PROBE}{uuid4()}"
        os.close(create(path, _PROBE_MODE))
    return {"filename": os.fspath(path)}


def sees(site: Site, data: Mapping[str, Any]) -> bool:
    """Whether a probe is here. One that is no probe, or that would be elsewhere than where instances are here, is not.

    Raises:
        as `underlay.compute.libvirt.localdisks.translated`
    """
    try:
        path = _path_of(site, data)
    except InvalidInput:
        return False
    with translated(), translated_at(path):
        return path.exists()


def remove_probe(site: Site, data: Mapping[str, Any]) -> None:
    """Remove a probe; one that is gone is a success.

    Raises:
        InvalidInput: it is no probe, and stays. As `underlay.compute.libvirt.localdisks.translated`
    """
    path = _path_of(site, data)
    with translated(), translated_at(path):
        path.unlink(missing_ok=True)


def _path_of(site: Site, data: Mapping[str, Any]) -> Path:
    """Where a probe would be here. What is told came from another host, so it is not simply believed."""
    text = data.get("filename")
    path = Path(text) if isinstance(text, str) and text.isprintable() else Path()
    if path.parent.parent != site.host.config.instances or not path.name.startswith(_PROBE) or ".." in path.parts:
        raise InvalidInput(reason=f"{text!r} is no probe of shared storage")
    return path
