"""This machine: its caches, sources, backends and instances put together. The composition root, and the public face.

Everything that it does is a call further down; what it adds is which cache, which source, which backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from underlay import filedisk, hits, instances, later, lookup, registry
from underlay.cache import Cache, Ensured
from underlay.config import Config, load_config
from underlay.contracts import BackendTraits, DiskBackend, ImageSource, Observer
from underlay.errors import (
    CacheError,
    DigestMismatch,
    DiskNotFound,
    DiskUnrecorded,
    InsufficientSpace,
    NotCached,
    OverlayRefused,
    UnknownCache,
    UnknownHost,
)
from underlay.files import make_directory, translated
from underlay.hits import AS_THE_SOURCE_SAYS, ASKED_NOW, Freshness
from underlay.model import (
    BaseImage,
    Digest,
    DiskSpec,
    Event,
    ImageRef,
    InstanceDisk,
    InstanceRecord,
    Lease,
    Level,
    Problem,
    Progress,
)
from underlay.naming import CacheKind
from underlay.policy.form import Want, check_want
from underlay.refs import is_ref, parse_ref
from underlay.store import Store, images
from underlay.units import parse_size

if TYPE_CHECKING:
    from underlay import checksumlist, delivery, following, holding, precache as precaching, room
    from underlay.checksumlist import ChecksumList
    from underlay.delivery import Delivered
    from underlay.following import Following, Refreshed
    from underlay.plan import Plan, Report, Verdict
    from underlay.precache import Precached
    from underlay.prune import observation, reclaim, removal
    from underlay.prune.observation import Known
    from underlay.store import eviction, hosts, registry as registry_of_hosts
    from underlay.store.hosts import HostUse
else:
    checksumlist = later.module("underlay.checksumlist")
    delivery = later.module("underlay.delivery")
    following = later.module("underlay.following")
    holding = later.module("underlay.holding")
    precaching = later.module("underlay.precache")
    room = later.module("underlay.room")
    observation = later.module("underlay.prune.observation")
    reclaim = later.module("underlay.prune.reclaim")
    removal = later.module("underlay.prune.removal")
    eviction = later.module("underlay.store.eviction")
    hosts = later.module("underlay.store.hosts")
    registry_of_hosts = later.module("underlay.store.registry")

_DELIVERIES = 5
_ROOM_TRIES = 10  # others may take what was made for us, and then there is as much again to be had


def _ref(ref: str | ImageRef) -> ImageRef:
    return parse_ref(ref) if isinstance(ref, str) else ref


class Silent:
    """An observer that listens to nothing."""

    def event(self, event: Event) -> None:
        """Let it pass."""

    def progress(self, progress: Progress) -> None:
        """Let it pass."""


@dataclass(frozen=True, slots=True)
class Host:
    """This machine's Underlay. Safe to share between threads; holds nothing open between calls."""

    config: Config
    observer: Observer
    sources: Mapping[str, ImageSource] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        config: Config | Path | str | None = None,
        *,
        observer: Observer | None = None,
        sources: Mapping[str, ImageSource] | None = None,
    ) -> Host:
        """A host by its configuration.

        Args:
            config: a configuration, the path of its file, or None for ``$UNDERLAY_CONFIG``, the system's or the user's file,
                and without any of them the embedded default.
            observer: hears events and progress.
            sources: by scheme, in place of those that the configuration would open.

        Raises:
            ConfigError
        """
        if not isinstance(config, Config):
            config = load_config(None if config is None else Path(config))
        return cls(config, observer or Silent(), sources or {})

    # --------------------------------------------------------------------------------------------------------------- images

    def ensure(
        self,
        ref: str | ImageRef,
        *,
        checksum: str | Digest | None = None,
        signature: str | None = None,
        cache: str | None = None,
        disk_format: str | None = None,
        raw: bool | None = None,
    ) -> BaseImage:
        """Make an image present in a cache and return it; from any number of threads and processes, one fetches it.

        Args:
            ref: ``https://…``, ``file:///…`` or another scheme's.
            checksum: ``algorithm:hex`` of the bytes as served, or where a list of checksums is: ``https://…/SHA256SUMS``.
            signature: where that list's signature is; None: in the list itself, or beside it.
            cache: the cache's name; None for the configuration's first.
            disk_format: what the bytes as served must be: raw (or gpt), qcow2, vmdk, vhd, vhdx, vdi, iso; a kernel or ramdisk
                (aki, ari, ami) may be anything.
            raw: True: in raw form; False: byte for byte as served, which a cache of masters keeps, and a base cache that does
                not force raw; None: as the cache keeps images.

        Returns:
            The image: verified, durable, its use recorded.

        Raises:
            InvalidRef, InvalidDigest, InvalidForm, UnknownScheme, UnknownCache: correct the request.
            SignatureRefused: the list's signature. ConfigError: its keyrings.
            SourceError, ImageRefused, CacheError, LockError, ToolError: see `underlay.errors`.
        """
        ensured = self.fetch(ref, checksum=checksum, signature=signature, cache=cache, disk_format=disk_format, raw=raw)
        return ensured.image

    def fetch(
        self,
        ref: str | ImageRef,
        *,
        checksum: str | Digest | None = None,
        signature: str | None = None,
        cache: str | None = None,
        disk_format: str | None = None,
        raw: bool | None = None,
        traits: BackendTraits | None = None,
    ) -> Ensured:
        """As `ensure`, and say how the image came to be there.

        When the file system has no room, what nobody needs goes first, as by `plan_reclaim`, but nothing of this image.

        Args:
            traits: of the backend that the image is for; one that needs raw images gets one.
        """
        ref = _ref(ref)
        expected = self._expected(ref, checksum, signature)
        want = Want(disk_format=disk_format, raw=raw, traits=traits)
        with ExitStack() as holding:
            return self._verified(ref, self.cache(cache), want, expected, holding)

    def _expected(self, ref: ImageRef, checksum: str | Digest | None, signature: str | None) -> Digest | ChecksumList | None:
        if checksum is None and signature is None:
            return None
        return checksumlist.expected(ref, checksum, signature, config=self.config, sources=self.source, observer=self.observer)

    def _verified(
        self, ref: ImageRef, cache: Cache, want: Want, expected: Digest | ChecksumList | None, holding: ExitStack
    ) -> Ensured:
        """As `_ensured`. When the image has another digest than a list says, the list may be stale, and is asked once more."""
        source, store = self.source(ref.scheme), cache.store
        check_want(want, kind=store.kind, force_raw=store.force_raw)
        if expected is None or isinstance(expected, Digest):
            return self._ensured(ref, cache, source, replace(want, checksum=expected), holding)
        listed = checksumlist.ask(expected)
        try:
            return self._ensured(ref, cache, source, replace(want, checksum=listed.digest), holding)
        except DigestMismatch as error:
            listed = checksumlist.ask_again(expected, listed, error)
        return self._ensured(ref, cache, source, replace(want, checksum=listed.digest), holding)

    def _ensured(self, ref: ImageRef, cache: Cache, source: ImageSource, want: Want, holding: ExitStack) -> Ensured:
        """The image, kept until ``holding`` is closed; room is made for it as often as others take what was made."""
        ensure = partial(
            cache.ensure,
            ref,
            source,
            self.observer,
            want=want,
            lease_seconds=self.config.leases.get(cache.name),
            holding=holding,
            retries=self.config.retries,
            freshness=self._freshness(ref, cache, source),
        )
        return self._brought(ensure, cache.store, ref)

    def _brought(self, ensure: Callable[[], Ensured], store: Store, ref: ImageRef) -> Ensured:
        self._make_directories()
        for _ in range(_ROOM_TRIES):
            try:
                return ensure()
            except InsufficientSpace as error:
                self._make_room(error, store.root, ref)
        return ensure()

    def _freshness(self, ref: ImageRef, cache: Cache, source: ImageSource) -> Freshness:
        """What is followed moves with a refresh, so what the last one found is served for a while."""
        follow = self.config.follow
        is_followed = any(one.canonical == ref.canonical for one in follow.refs)
        if not is_followed or cache.name != self.cache(follow.cache).name:
            return AS_THE_SOURCE_SAYS
        return Freshness(max_age=max(follow.max_age, source.revalidate_after))

    def _make_room(self, error: InsufficientSpace, path: Path, ref: ImageRef) -> None:
        spared = {(one.root, name) for one in self.config.caches.values() for name in hits.names(one, ref)}
        room.make_room(self.config, self._known(None), error, path, spared=spared, observer=self.observer)

    def deliver(
        self,
        ref: str | ImageRef,
        path: Path | str,
        *,
        checksum: str | Digest | None = None,
        signature: str | None = None,
        cache: str | None = None,
        disk_format: str | None = None,
        raw: bool | None = None,
    ) -> Delivered:
        """Put an image at a path, fetched first unless it is here: a hard link to it, or a copy where no link can be.

        The path changes in one step, from what was there to the whole image; a failure leaves what was there. What is right
        already costs no transfer and no copy.

        Args:
            path: absolute; its directory is there.
            checksum, signature: as for `ensure`.
            cache: the cache's name; None for the configuration's first of masters, else for its first.
            disk_format, raw: as for `ensure`.

        Raises:
            InvalidName, CacheMissing, CacheNotWritable: the path. As `ensure`.
        """
        ref = _ref(ref)
        expected = self._expected(ref, checksum, signature)
        return self.deliver_wanted(ref, Path(path), Want(disk_format=disk_format, raw=raw), expected=expected, cache=cache)

    def deliver_wanted(
        self,
        ref: ImageRef,
        path: Path,
        want: Want,
        *,
        expected: Digest | ChecksumList | None = None,
        cache: str | None = None,
    ) -> Delivered:
        """As `deliver`, of an image that is what is wanted in every respect.

        Args:
            expected: the checksum, or the list that has it; None: what is wanted says.
        """
        delivery.check_place(self.config, path)
        chosen = self.cache(self._masters_cache() if cache is None else cache)
        expected = want.checksum if expected is None else expected
        for _ in range(_DELIVERIES - 1):
            with suppress(NotCached):  # replaced by a newer version since it was fetched
                return self._delivered(ref, chosen, want, expected, path)
        return self._delivered(ref, chosen, want, expected, path)

    def _delivered(
        self, ref: ImageRef, cache: Cache, want: Want, expected: Digest | ChecksumList | None, path: Path
    ) -> Delivered:
        with ExitStack() as holding:
            ensured = self._verified(ref, cache, want, expected, holding)
            try:
                delivered = delivery.deliver(self.config, cache.store, ensured.image, path)
            except InsufficientSpace as error:  # where the copy goes, or in the cache for the copy's record
                is_in_cache = Path(error.where).is_relative_to(cache.store.root)
                self._make_room(error, cache.store.root if is_in_cache else path.parent, ref)
                delivered = delivery.deliver(self.config, cache.store, ensured.image, path)
        if ensured.no_store and cache.store.kind is CacheKind.MASTERS:
            eviction.drop(cache.store, ensured.image.name)
        return replace(delivered, came=ensured.reason)

    def _masters_cache(self) -> str | None:
        return next((name for name, store in self.config.caches.items() if store.kind is CacheKind.MASTERS), None)

    def images(self, *, cache: str | None = None) -> tuple[list[BaseImage], list[Problem]]:
        """The images of one cache, or of all, and what stands in an image's place but is none.

        Raises:
            UnknownCache, CacheMissing, CacheNotWritable, UnknownLayout, LayoutDisagrees
        """
        found: list[BaseImage] = []
        problems: list[Problem] = []
        for store in self.stores(cache):
            of_cache, wrong = images.images(store)
            found += of_cache
            problems += wrong
        return found, problems

    def stores(self, cache: str | None = None) -> list[Store]:
        """One cache, or all that can be looked at. The embedded default's come with the first fetch.

        Raises:
            UnknownCache, CacheMissing, UnknownLayout, LayoutDisagrees
        """
        names = list(self.config.caches) if cache is None else [self.cache(cache).name]
        stores = [self.config.caches[name] for name in names]
        if self.config.origin is None:
            stores = [store for store in stores if os.path.lexists(store.root)]
        return self._usable(stores)

    def _usable(self, stores: list[Store]) -> list[Store]:
        """Those that can be looked at; the others are told as events, unless there is nothing but them."""
        usable: list[Store] = []
        problems: list[Problem] = []
        for store in stores:
            try:
                store.check()
                usable.append(store)
            except CacheError as error:
                if store is stores[-1] and not usable:
                    raise
                problems.append(Problem(error.code, store.root, error.message))
        self._tell(problems)
        return usable

    def _tell(self, problems: Sequence[Problem]) -> None:
        for problem in problems:
            path = {"path": os.fspath(problem.path)}
            self.observer.event(Event(code=problem.code, level=Level.WARNING, detail=problem.detail, fields=path))

    def find(self, text: str) -> list[BaseImage]:
        """The images that a name (or six characters of its beginning), a ref or a path means. Never needs the network.

        Raises:
            NotCached: none. InvalidRef. NotAnImage, UnsafeImage: as `underlay.store.images.find`.
        """
        return lookup.find(self.stores(), text)

    # ---------------------------------------------------------------------------------------------------------------- disks

    def create_disk(
        self,
        instance: str,
        image: str | ImageRef | BaseImage,
        *,
        size: int | str | None = None,
        backend: str | None = None,
        name: str = "disk",
        path: Path | None = None,
        cache: str | None = None,
    ) -> InstanceDisk:
        """Make a disk for an instance from an image, which is fetched first unless it is here.

        Idempotent: the same disk is returned when it is there. Whole or not at all.

        Args:
            instance: its UUID or name.
            image: a ref, the name or path of an image that is here, or what `ensure` returned.
            size: bytes, or text with a unit such as ``20GiB``; None for the image's virtual size.
            backend: ``qcow2``, ``flat``, ``default`` or another's; None for ``default``, which is qcow2 when the
                configuration's ``use_cow_images`` is true, else flat.
            name: ``disk`` or ``disk.SUFFIX``.
            path: where the disk goes instead of the instance's directory.

        Raises:
            DiskTooSmall: also below what the image's source allows (Glance's ``min_disk``).
            DiskExists, BackingPathTooLong, FormatMismatch; as `ensure`.
        """
        adapter = self.backend(backend)
        wanted = parse_size(size) if isinstance(size, str) else size
        spec = instances.disk_spec(self.config, instance, name, size=wanted, path=path)
        if isinstance(image, str) and not is_ref(image):
            image = lookup.find_only(self.stores(), image) or parse_ref(image)  # which says that it is none
        store = self.store_of(image) if isinstance(image, BaseImage) else self.cache(cache).store
        if adapter.traits.overlays and store.kind is CacheKind.MASTERS:
            raise OverlayRefused(
                f"no {adapter.traits.name} disk can be made on a master: {store.root} replaces masters in their place",
                hint="use the flat backend, or a cache of kind base",
            )
        with ExitStack() as holding:  # from its arrival to the disk's, or it could go in between
            if not isinstance(image, BaseImage):
                want = Want(traits=adapter.traits)
                image = self._verified(_ref(image), self.cache(cache), want, None, holding).image
            self._make_directories()
            return instances.create(self.config, adapter, image, spec, store=store)

    def disks(self) -> list[InstanceDisk]:
        """Every disk in the instances path, and every disk of ours elsewhere; what cannot be looked at is told as an event."""
        found, problems = instances.disks(self.config)
        self._tell(problems)
        return found

    def disk(self, instance: str, *, name: str = "disk", path: Path | None = None) -> InstanceDisk:
        """One disk.

        Raises:
            DiskNotFound, InvalidName
        """
        return filedisk.describe(self._spec_of_disk(instance, name, path))

    def resize_disk(
        self, instance: str, size: int | str, *, name: str = "disk", path: Path | None = None, assume_closed: bool = False
    ) -> InstanceDisk:
        """Grow a disk that nobody has open; its own size is a success.

        Args:
            assume_closed: the caller knows that it is closed where that cannot be told (a network file system, for one).

        Raises:
            DiskNotFound, DiskInUse, ShrinkRefused, DiskUnrecorded, InvalidSize, ToolFailed
        """
        wanted = parse_size(size) if isinstance(size, str) else size
        spec = self._spec_of_disk(instance, name, path)
        return instances.resize(self.config, self._backend_of(spec), spec, wanted, assume_closed=assume_closed)

    def remove_disk(
        self, instance: str, *, name: str = "disk", path: Path | None = None, assume_closed: bool = False
    ) -> InstanceDisk:
        """Remove a disk that nobody has open, and return what it was.

        Args:
            assume_closed: as for `resize_disk`.

        Raises:
            DiskNotFound, DiskInUse, DiskUnrecorded
        """
        spec = self._spec_of_disk(instance, name, path)
        return instances.remove(self.config, self._backend_of(spec), spec, assume_closed=assume_closed)

    def forget_disk(self, path: Path) -> None:
        """Forget a disk made outside the instances path that is gone for good, so that its base is kept for it no more.

        Raises:
            DiskExists: it is there. DiskNotFound: no disk is recorded at this path. InvalidName
        """
        instances.forget(self.config, path)

    def _spec_of_disk(self, instance: str, name: str, path: Path | None) -> DiskSpec:
        """Where a disk is that is there; a path of the caller's must be one that something records as this instance's disk."""
        spec = instances.disk_spec(self.config, instance, name, path=path)
        disk = filedisk.describe(spec)
        if path is not None:
            with translated(path):
                record = filedisk.recorded(path)
            if record is None and disk.format is None:
                raise DiskUnrecorded(f"nothing says that {path} is a disk", hint="only recorded disks are shown or touched")
            if record is not None and record.instance != instance:
                raise DiskNotFound(f"{path} is not a disk of {instance}", hint=f"it is one of {record.instance}")
        return spec

    # ------------------------------------------------------------------------------------------------------- who needs what

    def plan_prune(
        self, *, now: datetime | None = None, instances: Sequence[InstanceRecord] | None = None, cache: str | None = None
    ) -> Plan:
        """What a prune would remove, what it keeps, and why. Changes nothing.

        Args:
            now: by which ages are told, aware; None for the clock of each cache's file system.
            instances: in place of the configured inventory.
            cache: a cache's name; None for all of them.

        Raises:
            UnknownCache, CacheMissing, UnknownLayout, LayoutDisagrees: of the named cache.
        """
        return observation.make_plan(self.config, self._judged(cache), self._known(instances), now=now)

    def plan_reclaim(
        self, need: int, path: Path | str, *, instances: Sequence[InstanceRecord] | None = None, now: datetime | None = None
    ) -> Plan:
        """What has to go so that ``need`` bytes are free on the file system of a path. Changes nothing.

        It is what nobody needs, over all caches that lie there: those of the highest ``priority`` first, the least recently
        used first. Bases keep their minimum ages.

        Raises:
            CacheMissing, CacheNotWritable: the path cannot be looked at.
        """
        goal = reclaim.Goal(path=Path(path), missing=need - reclaim.free_now(Path(path)))
        return reclaim.make_reclaim_plan(self.config, self._known(instances), goal, now=now)

    def plan_free(self, amount: int, path: Path | str, *, cache: str | None = None, now: datetime | None = None) -> Plan:
        """As `plan_reclaim`, so that ``amount`` bytes come free more than are free now on the file system of a path.

        Args:
            cache: the one that gives, by name; None for all that lie there.

        Raises:
            CacheMissing, CacheNotWritable: the path cannot be looked at. UnknownCache
        """
        goal = reclaim.Goal(path=Path(path), missing=amount, slack=0)
        names = None if cache is None else self._judged(cache)
        return reclaim.make_reclaim_plan(self.config, self._known(None), goal, names=names, now=now)

    def check_judged(self, plan: Plan) -> None:
        """Make sure that a plan judges one cache at least; what is the matter with one is in its problems.

        Raises:
            CacheMissing, CacheNotWritable, UnknownLayout, LayoutDisagrees: there is no cache but such.
        """
        for name in self._judged(None) if not plan.clocks else ():
            self.config.caches[name].check()

    def apply(self, plan: Plan) -> Report:
        """Do what a plan says: refresh what is in use, remove what still goes. Every fact is looked at again first.

        Raises:
            PlanApplied: a plan is applied once.
        """
        return removal.apply(self.config, plan, self.observer)

    def explain(
        self, text: str, *, now: datetime | None = None, instances: Sequence[InstanceRecord] | None = None
    ) -> list[Verdict]:
        """The verdicts on the images that a name, a ref or a path means: why each is kept, or would go, and when.

        Raises:
            NotCached, InvalidRef
        """
        return list(self._plan_for(text, now=now, instances=instances).verdicts)

    def plan_evict(self, text: str, *, instances: Sequence[InstanceRecord] | None = None) -> Plan:
        """A plan that removes what a name, a ref or a path means, whatever its age, unless somebody needs it.

        A ref may mean several versions; a name or a path means one file.

        Raises:
            NotCached: also when a name means several files. InvalidRef
        """
        plan = self._plan_for(text, instances=instances)
        if len(plan.verdicts) > 1 and not is_ref(text):
            names = ", ".join(os.fspath(verdict.path) for verdict in plan.verdicts[:5])
            raise NotCached(f"{text!r} means {len(plan.verdicts)} files: {names}", hint="name one of them by its path")
        return observation.asked_for(plan)

    def _plan_for(self, text: str, *, now: datetime | None = None, instances: Sequence[InstanceRecord] | None = None) -> Plan:
        names = self._judged(None)
        plan = observation.make_plan(self.config, names, self._known(instances), now=now)
        self.check_judged(plan)
        meant = lookup.verdicts_meant([self.config.caches[name] for name in names], plan.verdicts, text)
        return replace(plan, verdicts=meant, whole=False)

    def pin(self, text: str, *, holder: str) -> list[Lease]:
        """Keep the images that a name, a ref or a path means until they are released.

        Raises:
            NotCached, InvalidRef, InvalidName: the holder. CacheNotWritable, LockTimeout, LockLost
        """
        return holding.pin(self.stores(), text, holder=holder)

    def lease(self, text: str, *, holder: str, seconds: float) -> list[Lease]:
        """Keep the images that a name, a ref or a path means for so long from now; a lease is renewed, and never made shorter.

        Raises:
            as `pin`; InvalidSize: no time at all.
        """
        return holding.lease(self.stores(), text, holder=holder, seconds=seconds)

    def release(self, text: str, *, holder: str | None = None) -> list[Lease]:
        """Let go of a lease or pin by its id, or of the leases that a holder has of what a name, a ref or a path means.

        Raises:
            LeaseNotFound, CacheNotWritable
        """
        return holding.release(self.stores(), text, holder=holder)

    def unpin(self, text: str, *, holder: str) -> list[Lease]:
        """Let go of the pins that a holder has of what a name, a ref or a path means.

        Raises:
            LeaseNotFound, CacheNotWritable
        """
        return holding.unpin(self.stores(), text, holder=holder)

    def leases(self) -> list[tuple[Path, Lease]]:
        """Every pin and lease, with the cache that it is in; ended ones that no prune has dropped yet among them."""
        found, problems = holding.all_leases(self.stores())
        self._tell(problems)
        return [(store.root, lease) for store, lease in found]

    def hosts(self) -> list[tuple[Path, HostUse]]:
        """What every host that shares a cache's storage has said, with the cache."""
        found = []
        for store in self.stores():
            said, problems = hosts.hosts(store)
            found += [(store.root, use) for use in said]
            self._tell(problems)
        return found

    def retire_host(self, host: str) -> None:
        """Forget what a host needs: it is gone for good, and so are its disks.

        Raises:
            UnknownHost: no cache and no registry knows it. CacheNotWritable, LockTimeout
        """
        is_known = False
        for store in self.stores():
            is_known = registry_of_hosts.forget(store, host) or is_known
            with suppress(UnknownHost):
                hosts.retire(store, host)
                is_known = True
        if not is_known:
            raise UnknownHost(f"no host {host!r} has said what it uses", hint="'underlay hosts' shows them")

    def accept(self) -> None:
        """Note the directories of instances as they are now, as right: see `underlay.store.mounts`.

        Raises:
            CacheMissing, CacheNotWritable
        """
        for store in self.stores():
            store.prepare()
            removal.accept_roots(self.config, store)

    def precache(self, refs: Sequence[str | ImageRef], *, cache: str | None = None, jobs: int | None = None) -> list[Precached]:
        """Make images present before they are needed, several at once; one that fails does not keep the others.

        Args:
            jobs: how many at once; None for the configuration's ``precache_concurrency``.
        """
        jobs = jobs or self.config.precache_concurrency
        return precaching.precache(refs, lambda ref: self.fetch(ref, cache=cache), jobs=jobs)

    def refresh(
        self, refs: Sequence[str | ImageRef] | None = None, *, cache: str | None = None, keep: int | None = None
    ) -> list[Refreshed]:
        """Have the newest versions of followed refs here ahead of need, and hold them; one that fails does not keep the others.

        Each source is asked now. The holds move once a new version is published: the newest and ``keep`` older ones are
        pinned, what is older is let go so that a prune may take it. When a new version cannot be had, the last good one stays
        held. Nothing is removed. In a cache of masters a new version takes the place of the old one, so there are no old ones.

        Args:
            refs: None for those of the configuration; what is held for others is let go then.
            cache: the cache's name; None for the configured one.
            keep: older versions held beside the newest; None for the configured number.

        Raises:
            UnknownCache
        """
        chosen = self.cache(cache or self.config.follow.cache)
        done = self._each(refs, lambda ref: self._refreshed(ref, chosen, keep))
        return done + (
            following.unfollow(self.stores(cache), self._followed(chosen), self.observer, host=self.config.host)
            if refs is None
            else []
        )

    def plan_refresh(
        self, refs: Sequence[str | ImageRef] | None = None, *, cache: str | None = None, keep: int | None = None
    ) -> list[Refreshed]:
        """What `refresh` would do now, as far as the sources' descriptions tell. Changes nothing.

        Raises:
            UnknownCache
        """
        chosen = self.cache(cache or self.config.follow.cache)
        done = self._each(refs, lambda ref: following.look(self._following(ref, chosen, keep)))
        return done + (
            following.look_unfollowed(self.stores(cache), self._followed(chosen), host=self.config.host) if refs is None else []
        )

    def _followed(self, cache: Cache) -> list[tuple[Store, ImageRef]]:
        return [(cache.store, ref) for ref in self.config.follow.refs]

    def _each(self, refs: Sequence[str | ImageRef] | None, work: Callable[[ImageRef], Refreshed]) -> list[Refreshed]:
        wanted = self.config.follow.refs if refs is None else refs
        return following.each(wanted, work, jobs=self.config.precache_concurrency)

    def _refreshed(self, ref: ImageRef, cache: Cache, keep: int | None) -> Refreshed:
        followed, retries = self._following(ref, cache, keep), self.config.retries
        self._make_directories()
        ensure = partial(cache.ensure, ref, followed.source, self.observer, retries=retries, freshness=ASKED_NOW)
        return following.refresh(followed, lambda holding: self._brought(partial(ensure, holding=holding), cache.store, ref))

    def _following(self, ref: ImageRef, cache: Cache, keep: int | None) -> Following:
        return following.Following(
            host=self.config.host,
            ref=ref,
            store=cache.store,
            source=self.source(ref.scheme),
            observer=self.observer,
            keep=self.config.follow.keep if keep is None else keep,
        )

    def _judged(self, cache: str | None) -> list[str]:
        """The caches that are judged; the embedded default's come with the first fetch."""
        if cache is None:
            caches, has_come = self.config.caches, self.config.origin is not None
            return [name for name, store in caches.items() if has_come or os.path.lexists(store.root)]
        self.cache(cache).store.check()
        return [cache]

    def _known(self, instances: Sequence[InstanceRecord] | None) -> Known:
        if instances is not None:
            return observation.Known(instances)
        config = self.config
        inventory = registry.open_inventory(config.inventory, host=config.host, hosts=config.hosts or (config.host,))
        return observation.known_instances(inventory, config)

    # -------------------------------------------------------------------------------------------------------------- the parts

    def cache(self, name: str | None) -> Cache:
        """A cache by name; None for the configuration's first.

        Raises:
            UnknownCache
        """
        name = next(iter(self.config.caches)) if name is None else name
        if name not in self.config.caches:
            known = ", ".join(self.config.caches)
            raise UnknownCache(f"there is no cache {name!r}", hint=f"configured caches: {known}")
        neighbours = [store for other, store in self.config.caches.items() if other != name]
        return Cache(name=name, store=self.config.caches[name], neighbours=neighbours)

    def source(self, scheme: str) -> ImageSource:
        """The source that serves a scheme.

        Raises:
            UnknownScheme
        """
        if scheme in self.sources:
            return self.sources[scheme]
        return registry.open_source(scheme, self.config.sources.get(scheme, {}))

    def backend(self, name: str | None) -> DiskBackend:
        """A disk backend by name; None and ``default`` as the configuration says.

        Raises:
            UnknownBackend
        """
        default = "qcow2" if self.config.use_cow_images else "flat"
        return registry.open_backend(default if name is None or name == "default" else name)

    def store_of(self, image: BaseImage) -> Store:
        """The store of the cache that holds an image.

        Raises:
            NotCached: none of the configured ones.
        """
        for store in self.config.caches.values():
            if store.root == image.cache:
                return store
        raise NotCached(f"{image.path} is in no configured cache")

    def _backend_of(self, spec: DiskSpec) -> DiskBackend:
        name = filedisk.describe(spec).backend
        return registry.open_backend("flat" if name == "unknown" else name)

    def _make_directories(self) -> None:
        """The embedded default makes its directories; a configuration names directories that are there."""
        if self.config.origin is not None:
            return
        for directory in (*(store.root for store in self.config.caches.values()), self.config.instances):
            with translated(directory):
                for missing in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
                    make_directory(missing, 0o755)
