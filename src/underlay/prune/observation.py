"""What is there and who needs it, as a plan: every file of the caches with its verdict. Looks, and changes nothing."""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from underlay.config import Config
from underlay.contracts import InstanceInventory, UsageProbe
from underlay.errors import CacheError, InvalidInventory, InventoryUnavailable, UnderlayError
from underlay.files import clock_of, translated
from underlay.filesystems import file_system, free_bytes
from underlay.model import Damage, InstanceRecord, Problem
from underlay.plan import CachedFile, Inventory, Observed, Plan, Rules, Unknown, Usage, Verdict
from underlay.policy.prune import merge_usage, plan_evict, plan_prune, refusal
from underlay.store import Store, listing, mounts, quarantine, roots
from underlay.units import format_duration
from underlay.usage.backing import BackingProbe, BasesProbe, Places
from underlay.usage.chains import Chains
from underlay.usage.copies import CopiesProbe
from underlay.usage.leases import LeasesProbe
from underlay.usage.links import LinksProbe
from underlay.usage.mounts import MountsProbe, seen_roots
from underlay.usage.openfiles import OpenFilesProbe
from underlay.usage.records import EphemeralFormats, RecordsProbe
from underlay.usage.shared import SharedProbe
from underlay.values import replace

_CLOCK_GAP = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Known:
    """The instances that are known, and whether those are all."""

    records: Sequence[InstanceRecord] = ()
    observed: Observed = field(default_factory=Observed)


def known_instances(inventory: InstanceInventory | None, config: Config) -> Known:
    """What an inventory says; one that does not answer keeps every image, and none at all leaves it to disks and leases."""
    where = config.origin or config.instances
    if inventory is None:
        detail = "there is no inventory of instances: disks, leases and open files decide"
        return Known(observed=Observed(problems=[Problem("no-inventory", where, detail)]))
    try:
        return Known(inventory.instances())
    except (InventoryUnavailable, InvalidInventory) as error:
        problem = Problem(error.code, where, error.message)
        return Known(observed=Observed(unknowns=[Unknown(error.code, error.message)], problems=[problem]))


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen.

    Attributes:
        usage: by all probes but that of open files. backing: what was read of the disks, for a second look.
        chains: into the caches that were seen.
        clocks: the time by each cache's own file system.
    """

    inventories: Sequence[Inventory]
    usage: Usage
    backing: BackingProbe
    chains: Chains
    clocks: Mapping[Path, datetime]


def make_plan(config: Config, names: Sequence[str], known: Known, *, now: datetime | None = None) -> Plan:
    """The verdicts on all files of some caches.

    Args:
        names: of the caches. now: by which ages are told; None for the clock of each cache's file system.
    """
    seen = observe(config, names, known, now=now)
    return Plan(
        id=secrets.token_hex(8),
        now=now or max(seen.clocks.values(), default=datetime.now(UTC)),
        verdicts=_unless_open(seen),
        problems=seen.usage.problems,
        directories=seen.backing.seen,
        files=seen.backing.seen_files,
        mounts=seen.backing.mounts,
        clocks=seen.clocks,
        records=known.records,
        unknowns=seen.usage.unknowns,
    )


def asked_for(plan: Plan) -> Plan:
    """The plan that removes what a plan judges, whatever its age, unless somebody needs it or has it open."""
    verdicts = [plan_evict(verdict) for verdict in plan.verdicts]
    opened = merge_usage([OpenFilesProbe(_going(verdicts)).observe(())]).uses
    kept = [refusal(one.file, opened.get(one.root, {}).get(one.file.name, ()), ()) for one in verdicts]
    return replace(
        plan,
        verdicts=[
            one if reason is None else msgspec.structs.replace(one, removes=False, reasons=(reason,))
            for one, reason in zip(verdicts, kept, strict=True)
        ],
    )


def observe(config: Config, names: Sequence[str], known: Known, *, now: datetime | None = None) -> Observation:
    """Look at some caches and at everybody who may need their files."""
    problems: list[Problem] = []
    inventories = [one for name in names if (one := _listed(config, name, problems))]
    stores = [config.caches[one.cache] for one in inventories]
    clocks = {one.root: now or _clock(one.root, problems) for one in inventories}
    places = places_of(config, known.records)
    chains = Chains.into(inventories)
    backing = BackingProbe(places, chains=chains)
    observed = [known.observed, Observed(problems=problems), backing.observe(inventories)]
    seen = seen_roots(places.roots, backing.seen, backing.mounts)
    is_expected = any(record.host == config.host for record in known.records)
    probes: list[UsageProbe] = [
        RecordsProbe(known.records, EphemeralFormats(config.default_ephemeral_format, config.virt_mkfs)),
        LeasesProbe(stores, max(clocks.values(), default=datetime.now(UTC))),
        LinksProbe(),
        CopiesProbe(stores),
        SharedProbe(stores, config.host, config.hosts, max(clocks.values(), default=datetime.now(UTC))),
        MountsProbe(stores, seen, is_expected),
    ]
    observed += [probe.observe(inventories) for probe in probes]
    usage = merge_usage(observed)
    usage = merge_usage([BasesProbe(usage, chains).observe(inventories)], onto=usage)
    return Observation(inventories, usage, backing, chains, clocks)


def places_of(config: Config, records: Sequence[InstanceRecord] = ()) -> Places:
    """Where disks of these caches may be: where the configuration says, and where disks were made from them before.

    Another configuration may share a cache, and this one may have said another directory once.
    """
    stores = list(config.caches.values())
    noted: set[Path] = set()
    for store in stores:
        with suppress(UnderlayError):  # `MountsProbe` tells of it
            noted |= {*roots.noted(store), *map(Path, mounts.recall(store))}
    extra = [*config.extra_roots, *sorted(noted - {config.instances, *config.extra_roots})]
    return Places(config.instances, extra, stores, records)


def inventory_of(config: Config, name: str) -> Inventory:
    """The files of one cache.

    Raises:
        CacheMissing, CacheNotWritable, UnknownLayout, LayoutDisagrees, StorageFailed
    """
    store = config.caches[name]
    store.check()
    with translated(store.root):
        free, pool = free_bytes(store.root), file_system(store.root).key
    files = listing.files(store)
    return Inventory(
        cache=name,
        root=store.root,
        kind=store.kind,
        rules=config.rules.get(name, Rules()),
        files=files,
        versions=listing.versions(store),
        free=free,
        pool=pool,
        damaged=_damaged(store, files),
    )


def _damaged(store: Store, files: Sequence[CachedFile]) -> dict[str, Damage]:
    names = quarantine.names(store)
    if not names:
        return {}
    damages = {file.name: quarantine.damage_of(store, file.name, inode=file.inode) for file in files if file.name in names}
    return {name: damage for name, damage in damages.items() if damage is not None}


def _listed(config: Config, name: str, problems: list[Problem]) -> Inventory | None:
    try:
        return inventory_of(config, name)
    except CacheError as error:
        problems.append(Problem(error.code, config.caches[name].root, error.message))
        return None


def _clock(root: Path, problems: list[Problem]) -> datetime:
    """The time by which the cache's files have their mtimes; a network's server may have another than we do."""
    system = datetime.now(UTC)
    try:
        clock = clock_of(root)
    except OSError:  # a directory that we may not write: this host's own time
        return system
    gap = (clock - system).total_seconds()
    if abs(gap) > _CLOCK_GAP:
        side = "ahead of" if gap > 0 else "behind"
        detail = f"the clock of {root} is {format_duration(abs(gap))} {side} this host's"
        problems.append(Problem("clock-gap", root, detail))
    return clock


def _unless_open(seen: Observation) -> list[Verdict]:
    """The verdicts by everything that was seen, and by who has open what is to go; what goes instead is asked of as well."""
    usage, asked = seen.usage, set[tuple[Path, str]]()
    while True:
        verdicts = _verdicts(seen, usage)
        going = {key: path for key, path in _going(verdicts).items() if key not in asked}
        asked.update(going)
        opened = OpenFilesProbe(going).observe(seen.inventories)
        if not opened.uses:
            return verdicts
        # What a program has open is in use, so it keeps what it stands on as any other file in use does.
        beneath = BasesProbe(merge_usage([opened]), seen.chains).observe(seen.inventories)
        usage = merge_usage([opened, beneath], onto=usage)


def _going(verdicts: Sequence[Verdict]) -> dict[tuple[Path, str], Path]:
    return {(one.root, one.file.name): one.path for one in verdicts if one.removes and _can_be_open(one)}


def _verdicts(seen: Observation, usage: Usage) -> list[Verdict]:
    """The verdicts on all caches; what one of them frees is room for the others of its file system too."""
    verdicts: list[Verdict] = []
    freed: Counter[str] = Counter()
    for one in seen.inventories:
        with_room = replace(one, free=one.free + freed[one.pool])
        judged = plan_prune(with_room, usage, now=seen.clocks[one.root])
        freed[one.pool] += sum(verdict.file.allocated for verdict in judged if verdict.removes)
        verdicts += judged
    return verdicts


def _can_be_open(verdict: Verdict) -> bool:
    """Whether the verdict is on a file; a dead ingest is a directory, and its lock tells."""
    return "/" not in verdict.file.name
