"""The public face of a host: what a caller can ask of it, and what it answers. The work is in the modules beside this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from underlay import instances, later, lookup
from underlay.config import Config, load_config
from underlay.contracts import BackendTraits, ImageSource, Observer
from underlay.errors import DiskNotFound
from underlay.host import bring, disks
from underlay.host.parts import Parts, Silent
from underlay.model import Attachment, BaseImage, Digest, Extraction, ImageRef, InstanceDisk, InstanceRecord, Lease, Problem
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.store import images
from underlay.units import parse_size
from underlay.values import replace

if TYPE_CHECKING:
    from underlay import diskchanges, generated, holding, precache as precaching
    from underlay.cache import Ensured
    from underlay.checksumlist import ChecksumList
    from underlay.delivery import Delivered
    from underlay.following import Refreshed
    from underlay.host import plans, refresh as refreshing, scrub as scrubbing
    from underlay.plan import Plan, Report, Verdict
    from underlay.policy.scrub import ScrubVerdict
    from underlay.precache import Precached
    from underlay.prune import removal
    from underlay.scrub import ScrubReport
    from underlay.store.hosts import HostUse
else:
    diskchanges = later.module("underlay.diskchanges")
    generated = later.module("underlay.generated")
    holding = later.module("underlay.holding")
    plans = later.module("underlay.host.plans")
    precaching = later.module("underlay.precache")
    refreshing = later.module("underlay.host.refresh")
    removal = later.module("underlay.prune.removal")
    scrubbing = later.module("underlay.host.scrub")


def _ref(ref: str | ImageRef) -> ImageRef:
    return parse_ref(ref) if isinstance(ref, str) else ref


class Host(msgspec.Struct, frozen=True):
    """This machine's Underlay. Keeps sources open, but nothing of a cache.

    Safe to share between threads and across forks, except that who was forked after a fetch from an object store has none.
    """

    parts: Parts

    @property
    def config(self) -> Config:
        """What it was configured with."""
        return self.parts.config

    @property
    def observer(self) -> Observer:
        """Who hears events and progress."""
        return self.parts.observer

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
        return cls(Parts(config, observer or Silent(), sources or {}))

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
        expected = bring.expected(self.parts, ref, checksum, signature)
        want = Want(disk_format=disk_format, raw=raw, traits=traits)
        with ExitStack() as holding:
            return bring.verified(self.parts, ref, self.parts.cache(cache), want, expected, holding)

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
        expected = bring.expected(self.parts, ref, checksum, signature)
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
        chosen = self.parts.masters_cache() if cache is None else self.parts.cache(cache)
        return bring.delivered(self.parts, ref, chosen, want, want.checksum if expected is None else expected, path)

    def images(self, *, cache: str | None = None) -> tuple[list[BaseImage], list[Problem]]:
        """The images of one cache, or of all, and what stands in an image's place but is none.

        Raises:
            UnknownCache, CacheMissing, CacheNotWritable, UnknownLayout, LayoutDisagrees
        """
        found: list[BaseImage] = []
        problems: list[Problem] = []
        for store in self.parts.stores(cache):
            of_cache, wrong = images.images(store)
            found += of_cache
            problems += wrong
        return found, problems

    def find(self, text: str) -> list[BaseImage]:
        """The images that a name (or six characters of its beginning), a ref or a path means. Never needs the network.

        Raises:
            NotCached: none. ImageDamaged: none but such. InvalidRef. NotAnImage, UnsafeImage: as `underlay.store.images.find`.
        """
        return lookup.find(self.parts.stores(), text)

    def look(self, text: str) -> list[BaseImage]:
        """As `find`, those among them that a scrub has found damaged: to be shown, and for nothing else.

        Raises:
            as `find`, but never ImageDamaged
        """
        return lookup.look(self.parts.stores(), text)

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
        key: bytes | None = None,
        grow_filesystem: bool = False,
        maker: str | None = None,
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
            key: with which the disk is encrypted at rest, by a backend that can.
            grow_filesystem: an ext2, ext3 or ext4 that fills a raw image without partitions grows with the disk.
            maker: a text that nobody else makes disks by. A disk that is there is then a success only if it was made by it, and
                not if it may be in use on another host.

        Raises:
            Unsupported: the backend encrypts nothing, or the file system cannot be grown safely. BackendUnavailable
            DiskTooSmall: also below what the image's source allows (Glance's ``min_disk``).
            DiskExists, BackingPathTooLong, FormatMismatch; as `ensure`.
        """
        adapter = self.parts.backend(backend)
        wanted = parse_size(size) if isinstance(size, str) else size
        spec = instances.disk_spec(self.config, instance, name, size=wanted, path=path, backend=adapter, key=key, maker=maker)
        spec = replace(spec, grow_filesystem=grow_filesystem) if grow_filesystem else spec
        return disks.create(self.parts, image, spec, adapter, cache=cache)

    def create_swap(
        self,
        instance: str,
        size: int | str,
        *,
        backend: str | None = None,
        name: str = "disk.swap",
        path: Path | None = None,
        cache: str | None = None,
        maker: str | None = None,
    ) -> InstanceDisk:
        """Make a swap disk for an instance, from the base image ``swap_<MiB>``, which is made once and shared.

        Args:
            size: bytes, or text with a unit: a whole number of MiB.
            cache: of kind base; None for the first of these. The rest, `maker` too: as for `create_disk`.

        Raises:
            InvalidSize, DiskExists, OverlayRefused, UnknownCache, ToolMissing, ToolFailed
        """
        wanted = generated.swap(parse_size(size) if isinstance(size, str) else size)
        adapter = self.parts.backend(backend)
        spec = instances.disk_spec(self.config, instance, name, path=path, backend=adapter, maker=maker)
        return disks.create_generated(self.parts, wanted, spec, adapter, cache=cache)

    def create_ephemeral(
        self,
        instance: str,
        size: int | str,
        *,
        file_system: str | None = None,
        os_type: str | None = None,
        backend: str | None = None,
        name: str = "disk.eph0",
        path: Path | None = None,
        cache: str | None = None,
        maker: str | None = None,
    ) -> InstanceDisk:
        """Make a disk with an empty file system for an instance, from the base image ``ephemeral_<GiB>_<hash>``.

        Args:
            size: bytes, or text with a unit: a whole number of GiB.
            file_system: ext2, ext3, ext4, xfs, vfat or ntfs; None: what the configuration's ``virt_mkfs`` has for the system,
                else ``default_ephemeral_format``, else ext4 for linux, ntfs for windows and vfat for any other.
            os_type: the guest's system. The rest: as for `create_swap`.

        Raises:
            InvalidSize, InvalidForm, DiskExists, OverlayRefused, UnknownCache, ConfigError, ToolMissing, ToolFailed
        """
        wanted = generated.ephemeral(
            parse_size(size) if isinstance(size, str) else size,
            file_system=file_system,
            os_type=os_type,
            default=self.config.default_ephemeral_format,
            commands=self.config.virt_mkfs,
        )
        adapter = self.parts.backend(backend)
        spec = instances.disk_spec(self.config, instance, name, path=path, backend=adapter, maker=maker)
        return disks.create_generated(self.parts, wanted, spec, adapter, cache=cache)

    def disks(self) -> list[InstanceDisk]:
        """Every disk in the instances path, and every disk of ours elsewhere; what cannot be looked at is told as an event."""
        found, problems = instances.disks(self.config)
        self.parts.tell(problems)
        return found

    def disk(self, instance: str, *, name: str = "disk", path: Path | None = None) -> InstanceDisk:
        """One disk.

        Raises:
            DiskNotFound, InvalidName, BackendUnavailable
        """
        spec, adapter = instances.find(self.config, instance, name, path=path)
        return adapter.describe(spec)

    def attachment(self, instance: str, *, name: str = "disk", path: Path | None = None) -> Attachment:
        """How a hypervisor is to open a disk.

        Raises:
            DiskNotFound, DiskUnrecorded, InvalidName, BackendUnavailable
        """
        spec, adapter = instances.find(self.config, instance, name, path=path)
        return adapter.attachment(adapter.describe(spec))

    def resize_disk(
        self,
        instance: str,
        size: int | str,
        *,
        name: str = "disk",
        path: Path | None = None,
        assume_closed: bool = False,
        grow_filesystem: bool = False,
    ) -> InstanceDisk:
        """Grow a disk that nobody has open; its own size is a success.

        Args:
            grow_filesystem: so does an ext2, ext3 or ext4 that fills a raw disk without partitions. e2fsck and resize2fs then
                read what the guest has written.
            assume_closed: the caller knows that it is closed where that cannot be told (a network file system, for one).

        Raises:
            DiskNotFound, DiskInUse, ShrinkRefused, DiskUnrecorded, InvalidSize, Unsupported, ToolFailed
        """
        wanted = parse_size(size) if isinstance(size, str) else size
        spec, adapter = instances.find(self.config, instance, name, path=path)
        if grow_filesystem:
            return diskchanges.resize_with_filesystem(self.config, adapter, spec, wanted, assume_closed=assume_closed)
        return instances.resize(self.config, adapter, spec, wanted, assume_closed=assume_closed)

    def remove_disk(
        self,
        instance: str,
        *,
        name: str = "disk",
        path: Path | None = None,
        assume_closed: bool = False,
        maker: str | None = None,
    ) -> InstanceDisk:
        """Remove a disk that nobody has open, and return what it was.

        Args:
            assume_closed: as for `resize_disk`.
            maker: as for `create_disk`; of a storage that hosts share, a disk that was not made by it stays.

        Raises:
            DiskNotFound: also when it was being made or removed by who was killed; then what is left of it goes. Also of a disk
                that another maker has made, which is known here no more then.
            DiskInUse, DiskUnrecorded, BackendUnavailable
        """
        try:
            spec, adapter = instances.find(self.config, instance, name, path=path)
        except DiskNotFound:
            instances.take_away_left(self.config, instance, name, path=path)
            raise
        return instances.remove(self.config, adapter, spec, assume_closed=assume_closed, maker=maker)

    def extract_disk(
        self,
        instance: str,
        target: Path,
        *,
        format: str = "qcow2",  # noqa: A002 - QEMU's own word
        compressed: bool = False,
        name: str = "disk",
        path: Path | None = None,
        assume_closed: bool = False,
    ) -> None:
        """Write what a disk's guest sees into a new file, which needs neither the disk nor its base image.

        Args:
            target: the new file, an absolute path.
            format: raw or qcow2. compressed: whether its clusters are.
            assume_closed: as for `resize_disk`.

        Raises:
            DiskExists: something has that name. InvalidForm, InvalidName; DiskNotFound, DiskInUse, DiskUnrecorded,
            BackendUnavailable, InsufficientSpace, ToolFailed
        """
        spec, adapter = instances.find(self.config, instance, name, path=path)
        extraction = Extraction(format=format, compressed=compressed)
        diskchanges.extract(self.config, adapter, spec, target, extraction, assume_closed=assume_closed)

    def flatten_disk(
        self, instance: str, *, name: str = "disk", path: Path | None = None, assume_closed: bool = False
    ) -> InstanceDisk:
        """Have a disk stand alone: from then on it keeps no base image. One that does already is a success.

        Args:
            assume_closed: as for `resize_disk`.

        Raises:
            DiskNotFound, DiskInUse, DiskUnrecorded, BackendUnavailable, InsufficientSpace, ToolFailed
        """
        spec, adapter = instances.find(self.config, instance, name, path=path)
        return diskchanges.flatten(self.config, adapter, spec, assume_closed=assume_closed)

    def rebase_disk(
        self,
        instance: str,
        image: str | ImageRef | BaseImage,
        *,
        name: str = "disk",
        path: Path | None = None,
        cache: str | None = None,
        assume_closed: bool = False,
    ) -> InstanceDisk:
        """Have a disk read from another base image; what its guest sees stays as it is.

        Args:
            image: as for `create_disk`. assume_closed: as for `resize_disk`.

        Raises:
            Unsupported, OverlayRefused; DiskNotFound, DiskInUse, DiskUnrecorded, InsufficientSpace, ToolFailed; as `ensure`.
        """
        found = instances.find(self.config, instance, name, path=path)
        return disks.rebase(self.parts, found, image, cache=cache, assume_closed=assume_closed)

    def snapshot_disk(self, instance: str, snapshot: str, *, name: str = "disk") -> str:
        """Have a lasting image of a disk made within its storage, where a backend can; its location.

        Raises:
            Unsupported, DiskExists, DiskNotFound, InvalidName, BackendUnavailable
        """
        spec, adapter = instances.find(self.config, instance, name)
        return diskchanges.snapshot(self.config, adapter, spec, snapshot)

    def backends(self) -> list[BackendTraits]:
        """What each disk backend is like, as it is configured; one that cannot be made here is told as an event."""
        return disks.backends(self.parts)

    def forget_disk(self, path: Path) -> None:
        """Forget a disk made outside the instances path that is gone for good, so that its base is kept for it no more.

        Raises:
            DiskExists: it is there. DiskNotFound: no disk is recorded at this path. InvalidName
        """
        instances.forget(self.config, path)

    # ------------------------------------------------------------------------------------------------------- who needs what

    def plan_prune(
        self,
        *,
        now: datetime | None = None,
        instances: Sequence[InstanceRecord] | None = None,
        beside: Sequence[InstanceRecord] = (),
        cache: str | None = None,
    ) -> Plan:
        """What a prune would remove, what it keeps, and why. Changes nothing.

        Args:
            now: by which ages are told, aware; None for the clock of each cache's file system.
            instances: in place of the configured inventory. beside: further ones that the caller knows.
            cache: a cache's name; None for all of them.

        Raises:
            UnknownCache, CacheMissing, UnknownLayout, LayoutDisagrees: of the named cache.
        """
        return plans.plan_prune(self.parts, now=now, instances=instances, beside=beside, cache=cache)

    def plan_reclaim(
        self, need: int, path: Path | str, *, instances: Sequence[InstanceRecord] | None = None, now: datetime | None = None
    ) -> Plan:
        """What has to go so that ``need`` bytes are free on the file system of a path. Changes nothing.

        It is what nobody needs, over all caches that lie there: those of the highest ``priority`` first, the least recently
        used first. Bases keep their minimum ages.

        Raises:
            CacheMissing, CacheNotWritable: the path cannot be looked at.
        """
        return plans.plan_reclaim(self.parts, need, Path(path), instances=instances, now=now)

    def plan_free(self, amount: int, path: Path | str, *, cache: str | None = None, now: datetime | None = None) -> Plan:
        """As `plan_reclaim`, so that ``amount`` bytes come free more than are free now on the file system of a path.

        Args:
            cache: the one that gives, by name; None for all that lie there.

        Raises:
            CacheMissing, CacheNotWritable: the path cannot be looked at. UnknownCache
        """
        return plans.plan_free(self.parts, amount, Path(path), cache=cache, now=now)

    def check_judged(self, plan: Plan) -> None:
        """Make sure that a plan judges one cache at least; what is the matter with one is in its problems.

        Raises:
            CacheMissing, CacheNotWritable, UnknownLayout, LayoutDisagrees: there is no cache but such.
        """
        plans.check_judged(self.parts, plan)

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
        return list(plans.plan_for(self.parts, text, instances=instances, now=now).verdicts)

    def plan_evict(self, text: str, *, instances: Sequence[InstanceRecord] | None = None) -> Plan:
        """A plan that removes what a name, a ref or a path means, whatever its age, unless somebody needs it.

        A ref may mean several versions; a name or a path means one file.

        Raises:
            NotCached: also when a name means several files. InvalidRef
        """
        return plans.plan_evict(self.parts, text, instances=instances)

    def pin(self, text: str, *, holder: str) -> list[Lease]:
        """Keep the images that a name, a ref or a path means until they are released.

        Raises:
            NotCached, InvalidRef, InvalidName: the holder. CacheNotWritable, LockTimeout, LockLost
        """
        return holding.pin(self.parts.stores(), text, holder=holder)

    def lease(self, text: str, *, holder: str, seconds: float) -> list[Lease]:
        """Keep the images that a name, a ref or a path means for so long from now; a lease is renewed, and never made shorter.

        Raises:
            as `pin`; InvalidSize: no time at all.
        """
        return holding.lease(self.parts.stores(), text, holder=holder, seconds=seconds)

    def release(self, text: str, *, holder: str | None = None) -> list[Lease]:
        """Let go of a lease or pin by its id, or of the leases that a holder has of what a name, a ref or a path means.

        Raises:
            LeaseNotFound, CacheNotWritable
        """
        return holding.release(self.parts.stores(), text, holder=holder)

    def unpin(self, text: str, *, holder: str) -> list[Lease]:
        """Let go of the pins that a holder has of what a name, a ref or a path means.

        Raises:
            LeaseNotFound, CacheNotWritable
        """
        return holding.unpin(self.parts.stores(), text, holder=holder)

    def leases(self) -> list[tuple[Path, Lease]]:
        """Every pin and lease, with the cache that it is in; ended ones that no prune has dropped yet among them."""
        found, problems = holding.all_leases(self.parts.stores())
        self.parts.tell(problems)
        return [(store.root, lease) for store, lease in found]

    def hosts(self) -> list[tuple[Path, HostUse]]:
        """What every host that shares a cache's storage has said, with the cache."""
        return plans.hosts_said(self.parts)

    def retire_host(self, host: str) -> None:
        """Forget what a host needs: it is gone for good, and so are its disks.

        Raises:
            UnknownHost: no cache and no registry knows it. CacheNotWritable, LockTimeout
        """
        plans.retire(self.parts, host)

    def accept(self) -> None:
        """Note the directories of instances as they are now, as right: see `underlay.store.mounts`.

        Raises:
            CacheMissing, CacheNotWritable
        """
        for store in self.parts.stores():
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
        return refreshing.refresh(self.parts, refs, cache=cache, keep=keep)

    def plan_refresh(
        self, refs: Sequence[str | ImageRef] | None = None, *, cache: str | None = None, keep: int | None = None
    ) -> list[Refreshed]:
        """What `refresh` would do now, as far as the sources' descriptions tell. Changes nothing.

        Raises:
            UnknownCache
        """
        return refreshing.plan(self.parts, refs, cache=cache, keep=keep)

    # -------------------------------------------------------------------------------------------------- content, read again

    def plan_scrub(self, images: Sequence[str] = (), *, cache: str | None = None, older_than: float = 0) -> list[ScrubVerdict]:
        """Which images a scrub would read now, in its order, and why. Changes nothing.

        Args:
            images: names, refs or paths; none: all images.
            cache: a cache's name; None for all of them.
            older_than: seconds; an image whose content was looked at since is left out.

        Raises:
            NotCached, InvalidRef: an image. UnknownCache, CacheMissing, CacheNotWritable. InvalidSize: the age.
        """
        return scrubbing.plan(self.parts, images, cache=cache, older_than=older_than)

    def scrub(
        self,
        images: Sequence[str] = (),
        *,
        cache: str | None = None,
        rate: int | str | None = None,
        seconds: float | None = None,
        older_than: float = 0,
        refetch: bool = True,
        instances: Sequence[InstanceRecord] | None = None,
    ) -> ScrubReport:
        """Read images again from their medium and hold them against their recorded digests, oldest reading first.

        A damaged image is never served again. It stays where it is for who needs it, who is named in the report; and it is
        fetched again, if its source still has the very same bytes. One that fails does not keep the others.

        Args:
            images, cache, older_than: as for `plan_scrub`.
            rate: bytes a second at most, or text with a unit such as ``100MiB``; None: as fast as it goes.
            seconds: how long it takes at most; the next scrub goes on from there. None: until all is read. That an image is
                damaged is found out, and it is fetched again, however little time is left.
            refetch: whether damaged images are fetched again.
            instances: in place of the configured inventory, to say who needs a damaged image.

        Raises:
            as `plan_scrub`; InvalidSize: the rate or the time. What is the matter with one image or one cache is in the report.
        """
        return scrubbing.scrub(
            self.parts,
            images,
            cache=cache,
            rate=parse_size(rate) if isinstance(rate, str) else rate,
            seconds=seconds,
            older_than=older_than,
            refetch=refetch,
            instances=instances,
        )
