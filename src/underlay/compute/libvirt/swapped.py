"""Which volumes have others in their places since a swap, for as long as their service may not know it.

A service that is killed behind a swap, before it has stored the new connection, goes on naming the old volume. What the guest
has written since is on the new one alone, and a domain made by that word would start on what was there before. So a file in
the instance's directory says what is swapped for what, from before the copy begins. It counts while the service names the old
volume and not the new one, and libvirt's definition has the new one and not the old one: where the swap came to nothing, and
detached, attached again or swapped back, it does not count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt import attacheddisks, localdisks
from underlay.compute.libvirt.attacheddisks import AttachedDisk
from underlay.compute.libvirt.directory import InstanceDirectory
from underlay.compute.libvirt.volume import Volume
from underlay.files import read_regular, translated, write_durably

_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """One volume in another one's place."""

    old: Volume
    new: Volume


def note(directory: InstanceDirectory, swapped: Swapped) -> None:
    """Write a swap down, durably, before it begins. Safe to repeat.

    Raises:
        OperationFailed
    """
    others = [one for one in _noted(directory) if not {_place(one.old), _place(one.new)} & {_place(swapped.old)}]
    others = [one for one in others if _place(one.old) != _place(swapped.new)]  # it was swapped back
    _write(directory, [*others, swapped])


def forget_known(directory: InstanceDirectory, named: Iterable[Volume]) -> None:
    """Forget the swaps of whose new volume a service says that the instance has it.

    What is kept of an instance comes back with what is noted there, and with a definition that may be as old.

    Raises:
        OperationFailed
    """
    places, noted = {_place(volume) for volume in named}, _noted(directory)
    left = [one for one in noted if _place(one.new) not in places]
    if left != noted:
        _write(directory, left)


def unknown(directory: InstanceDirectory, named: Iterable[Volume], lasting: Iterable[AttachedDisk]) -> list[Swapped]:
    """The swaps of which the service of an instance does not know.

    Args:
        named: the volumes that the service says. lasting: the disks of the domain as it starts next.

    Raises:
        OperationFailed: what is written down cannot be read, so nobody knows which volumes the guest has.
    """
    places, lasting = {_place(volume) for volume in named}, tuple(lasting)
    return [one for one in _noted(directory) if _place(one.old) in places and _counts(one, places, lasting)]


def meant(volume: Volume, swaps: Iterable[Swapped]) -> Volume:
    """The volume that is there for one that a service names."""
    return next((one.new for one in swaps if _place(one.old) == _place(volume)), volume)


def _counts(swapped: Swapped, named: set[tuple[str, str]], lasting: tuple[AttachedDisk, ...]) -> bool:
    is_new = attacheddisks.reading(swapped.new, lasting) is not None and attacheddisks.reading(swapped.old, lasting) is None
    return is_new and _place(swapped.new) not in named


def _place(volume: Volume) -> tuple[str, str]:
    return volume.kind, volume.source


def _write(directory: InstanceDirectory, noted: list[Swapped]) -> None:
    path = _file(directory)
    with localdisks.translated(), translated(path):
        write_durably(path, msgspec.json.encode(noted), mode=_MODE)


def _noted(directory: InstanceDirectory) -> list[Swapped]:
    path = _file(directory)
    try:
        with localdisks.translated(), translated(path):
            return msgspec.json.decode(read_regular(path) if path.exists() else b"[]", type=list[Swapped])
    except msgspec.DecodeError as error:
        what = f"{path} does not say which volumes of the instance {directory.uuid} were swapped: {error}"
        raise OperationFailed(what, hint="remove it, if its service knows each of its volumes") from error


def _file(directory: InstanceDirectory) -> Path:
    return directory.path / "swapped"
