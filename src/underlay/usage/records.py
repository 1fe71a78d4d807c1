"""What the records of instances claim: their images in every version and form, all their swaps, all their ephemerals.

Nova's own manager counts the first swap and the first ephemeral of an instance only, and so removes those of the others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from underlay.errors import InvalidRef
from underlay.model import InstanceRecord
from underlay.naming import STEM_LENGTH, CacheKind, ephemeral_name, stem_of_version, swap_name
from underlay.plan import Inventory, Observed, Use
from underlay.refs import parse_ref

# Nova's own: the file systems by operating system, and the one that its manager takes for every instance.
_FILE_SYSTEMS: Mapping[str, str] = {"linux": "ext4", "windows": "ntfs"}
_DEFAULT_FILE_SYSTEM = "vfat"

_RESIZING = frozenset({"resize_prep", "resize_migrating", "resize_migrated", "resize_finish"})


@dataclass(frozen=True, slots=True)
class EphemeralFormats:
    """How this host makes ephemeral disks.

    Attributes:
        default: ``default_ephemeral_format``, or None. commands: ``virt_mkfs``, the mkfs command by operating system.
    """

    default: str | None = None
    commands: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordsProbe:
    """What a complete inventory of instances claims."""

    records: Sequence[InstanceRecord]
    formats: EphemeralFormats

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files of base caches that the records claim."""
        uses: list[Use] = []
        for inventory in inventories:
            if inventory.kind is CacheKind.BASE:
                uses += self._uses(inventory)
        return Observed(uses=uses)

    def _uses(self, inventory: Inventory) -> Iterator[Use]:
        refs = {ref for record in self.records for ref in _refs(record)}
        of_refs = names_of_refs(inventory, refs)
        generated = frozenset(file.name for file in inventory.files if file.kind in ("swap", "ephemeral"))
        root = inventory.root
        for record in self.records:
            who = f"instance {record.name} ({record.uuid})"
            for ref in _refs(record):
                yield from (Use(root, name, "instance-image", who) for name in of_refs[ref])
            for size in record.swap_mib:
                if (name := swap_name(size)) in generated:
                    yield Use(root, name, "instance-swap", who)
            for name in self._ephemerals(record):
                if name in generated:
                    yield Use(root, name, "instance-ephemeral", who)

    def _ephemerals(self, record: InstanceRecord) -> set[str]:
        """By Nova's name, which tells of the host's configuration only, and by ours, which tells what is in the file."""
        os_type = record.os_type or ""
        command = self.formats.commands.get(os_type) or self.formats.commands.get("default")
        by_nova = command or self.formats.default or _DEFAULT_FILE_SYSTEM
        usual = command or self.formats.default or _FILE_SYSTEMS.get(os_type, _DEFAULT_FILE_SYSTEM)
        return {
            ephemeral_name(ephemeral.size_gib, made_with)
            for ephemeral in record.ephemerals
            for made_with in (by_nova, ephemeral.guest_format or usual)
        }


def _refs(record: InstanceRecord) -> tuple[str, ...]:
    return tuple(ref for ref in (record.image_ref, record.kernel_id, record.ramdisk_id) if ref is not None)


def names_of_refs(inventory: Inventory, refs: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Every file of every version of each ref: originals in any format, and resized copies, which share their stem."""
    stems_of_claims: dict[str, set[str]] = {}
    for file in inventory.files:
        for claimed in (file.ref, file.version_id):
            if claimed is not None:
                stems_of_claims.setdefault(claimed, set()).add(file.name[:STEM_LENGTH])
    stems = {ref: _stems(ref, inventory, stems_of_claims) for ref in refs}
    wanted: dict[str, list[str]] = {stem: [] for those in stems.values() for stem in those}
    for file in inventory.files:
        names = wanted.get(file.name[:STEM_LENGTH])
        if names is not None and file.kind != "leftover":
            names.append(file.name)
    return {ref: [name for stem in sorted(those) for name in wanted[stem]] for ref, those in stems.items()}


def _stems(text: str, inventory: Inventory, stems_of_claims: Mapping[str, set[str]]) -> set[str]:
    """The beginnings of the names that a ref may have, as it is spelled and as it should be."""
    spellings = {text}
    with suppress(InvalidRef):
        ref = parse_ref(text)
        spellings |= {ref.canonical, ref.location} if ref.scheme == "glance" else {ref.canonical}
    return {
        stem
        for spelling in spellings
        for stem in (
            stem_of_version(spelling),
            *(stem_of_version(version) for version in inventory.versions.get(spelling, ())),
            *stems_of_claims.get(spelling, ()),
        )
    }


def directory_names(records: Sequence[InstanceRecord]) -> frozenset[str]:
    """Every name that a directory of these instances may have, as Nova tells it.

    A resize keeps the old directory as ``…_resize`` while it goes on, and until it is confirmed.
    """
    names: set[str] = set()
    for record in records:
        names |= {record.name, record.uuid}
        if record.task_state in _RESIZING or record.vm_state == "resized":
            names |= {f"{record.name}_resize", f"{record.uuid}_resize"}
    return frozenset(names)


def owner_of(directory: str, records: Mapping[str, InstanceRecord]) -> InstanceRecord | None:
    """The instance that a directory's name says it belongs to; ``records`` are by uuid and by name."""
    return records.get(directory) or records.get(directory.removesuffix("_resize"))


def by_directory(records: Sequence[InstanceRecord]) -> Mapping[str, InstanceRecord]:
    """The records by the names that their directories may have."""
    return {name: record for record in records for name in (record.name, record.uuid)}
