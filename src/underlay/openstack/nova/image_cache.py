"""Nova's libvirt image cache manager over our core: put in the place of Nova's own, it does that one's work, more safely.

Names, signatures and what the attributes hold are Nova's (docs/reference/nova-parity.md tells the differences). What is in use
and what goes is not decided here: Nova's objects become records, its options become a configuration, and the core does the
rest. Nova and oslo are imported when the class is used; `get_cache_fname` needs neither.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from underlay.config import Config
from underlay.errors import ExtraMissing
from underlay.host import Host
from underlay.model import Ephemeral, InstanceRecord
from underlay.naming import CacheKind, kind_of_name, swap_name
from underlay.openstack.nova.around import cache_directory, configuration, is_our_own
from underlay.plan import Plan, Report, Rules, Verdict
from underlay.usage.records import directory_names

_BASE_KINDS = frozenset({"original", "resized"})
# Reasons that keep a file which nobody needs.
_WAITING = frozenset({"young", "recent", "future", "removal-off"})


def get_cache_fname(image_id: str) -> str:
    """The name of an image's original in Nova's cache."""
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


class ImageCacheManager:
    """Nova's manager of the base images on a compute host: `update` is one pass.

    Attributes:
        used_images: per image id: how many instances here, how many elsewhere, their names.
        instance_names: names that a directory of an instance may have.
        back_swap_images, back_ephemeral_images: names of such files in the cache.
        used_swap_images, used_ephemeral_images: names of those that the instances need, every one of each instance.
        originals, active_base_files, unexplained_images, removable_base_files: paths of base files: of originals, of those in
            use, of those that nobody is known to need, and of these the ones that nothing keeps but their age or an option.

    Raises:
        ExtraMissing: Nova is not installed here.
    """

    def __init__(self) -> None:
        self._nova = _Nova.load()
        self.remove_unused_base_images: bool = self._nova.conf.image_cache.remove_unused_base_images
        self.resize_states = ["resize_prep", "resize_migrating", "resize_migrated", "resize_finish"]
        self.lock_path = os.path.join(self._nova.conf.instances_path, "locks")
        self._reset_state()

    def _reset_state(self) -> None:
        self.used_images: dict[str, tuple[int, int, list[str]]] = {}
        self.instance_names: set[str] = set()
        self.back_swap_images: set[str] = set()
        self.used_swap_images: set[str] = set()
        self.back_ephemeral_images: set[str] = set()
        self.used_ephemeral_images: set[str] = set()
        self.active_base_files: list[str] = []
        self.originals: list[str] = []
        self.removable_base_files: list[str] = []
        self.unexplained_images: list[str] = []
        self._records: list[InstanceRecord] = []

    @property
    def cache_dir(self) -> str:
        """The directory of the cache."""
        return os.fspath(cache_directory(self._nova.conf))

    def update(self, context: Any, all_instances: Any) -> None:
        """One pass: mark what the instances need as used, and remove what nobody needs and is old enough.

        Raises:
            CacheError, LockError: nothing, or nothing more, was removed.
        """
        base_dir = self._get_base()
        if base_dir is None:
            return
        self._reset_state()
        self._scan_base_images(base_dir)
        running = self._list_running_instances(context, all_instances)
        self.used_images = running["used_images"]
        self.instance_names = running["instance_names"]
        self.used_swap_images = running["used_swap_images"]
        self.used_ephemeral_images = running["used_ephemeral_images"]
        self._age_and_verify_cached_images(context, all_instances, base_dir)

    def get_disk_usage(self) -> int:
        """Bytes that the cache takes away from the instances: 0 when it lies on another file system than they do."""
        try:
            entries = list(os.scandir(self.cache_dir))
            if os.stat(self._nova.conf.instances_path).st_dev != os.stat(self.cache_dir).st_dev:
                return 0
        except OSError as error:
            self._nova.log.debug("The disk usage of %s cannot be told: %s", self.cache_dir, error)
            return 0
        return sum(map(_allocated, entries))

    def _get_base(self) -> str | None:
        if os.path.exists(self.cache_dir):
            return self.cache_dir
        self._nova.log.debug("Skipping verification, no base directory at %s", self.cache_dir)
        return None

    def _scan_base_images(self, base_dir: str) -> None:
        for name in sorted(os.listdir(base_dir)):
            kind = kind_of_name(name, kind=CacheKind.BASE)
            path = os.path.join(base_dir, name)
            if kind == "swap":
                self.back_swap_images.add(name)
            elif kind == "ephemeral":
                self.back_ephemeral_images.add(name)
            elif kind in _BASE_KINDS and os.path.isfile(path):
                self.unexplained_images.append(path)
                if kind == "original":
                    self.originals.append(path)

    def _list_running_instances(self, context: Any, all_instances: Any) -> dict[str, Any]:
        self._records = self._nova.records(context, all_instances)
        return {
            "used_images": _used_images(all_instances, self._nova.conf.host),
            "instance_names": set(directory_names(self._records)),
            "used_swap_images": {swap_name(size) for record in self._records for size in record.swap_mib},
            "used_ephemeral_images": {name for record in self._records for name in self._nova.ephemeral_names(record)},
        }

    def _age_and_verify_cached_images(self, context: Any, all_instances: Any, base_dir: str) -> None:
        host = Host.open(self._nova.configuration(Path(base_dir), remove_unused=self.remove_unused_base_images))
        plan = host.plan_prune(instances=self._records)
        if self._nova.take_over(_doubtful(plan)):
            plan = host.plan_prune(instances=self._records)
        self._tell(plan)
        report = host.apply(plan)
        self._nova.touch([verdict.path for verdict in report.verdicts if verdict.refresh])
        self._tell_done(plan, report)
        used = self.used_swap_images | self.used_ephemeral_images
        for name in sorted(used - self.back_swap_images - self.back_ephemeral_images):
            self._nova.log.warning("%s is used by an instance, but is not in the cache", name)

    def _tell(self, plan: Plan) -> None:
        """Fill the lists and log them, before anything is removed."""
        base = [verdict for verdict in plan.verdicts if verdict.file.kind in _BASE_KINDS]
        self.active_base_files = [os.fspath(verdict.path) for verdict in base if verdict.refresh]
        self.unexplained_images = [os.fspath(verdict.path) for verdict in base if not verdict.refresh]
        self.removable_base_files = [os.fspath(verdict.path) for verdict in base if _is_removable(verdict)]
        log = self._nova.log
        for problem in plan.problems:
            log.warning("%s: %s (%s)", problem.path, problem.detail, problem.code)
        for path in self.unexplained_images:
            log.warning("Unknown base file: %s", path)
        if self.active_base_files:
            log.info("Active base files: %s", " ".join(self.active_base_files))
        if self.removable_base_files:
            log.info("Removable base files: %s", " ".join(self.removable_base_files))

    def _tell_done(self, planned: Plan, report: Report) -> None:
        log = self._nova.log
        meant = {verdict.path for verdict in planned.verdicts if verdict.removes}
        removed = set(report.removed)
        for verdict in report.verdicts:
            if verdict.path in removed:
                log.info("Removing base, swap or ephemeral file: %s (%s)", verdict.path, _told(verdict))
            elif verdict.path in meant:
                log.warning("Base, swap or ephemeral file kept after all: %s (%s)", verdict.path, _told(verdict))
            elif _is_removable(verdict) and self.remove_unused_base_images:
                log.info("Base, swap or ephemeral file too young to remove: %s (%s)", verdict.path, _told(verdict))
            else:
                log.debug("Base, swap or ephemeral file kept: %s (%s)", verdict.path, _told(verdict))
        for problem in report.problems[len(planned.problems) :]:
            log.warning("%s: %s (%s)", problem.path, problem.detail, problem.code)


def _is_removable(verdict: Verdict) -> bool:
    """Whether nobody is known to need the file, so that it goes, or will."""
    return verdict.removes or {reason.code for reason in verdict.reasons} <= _WAITING


def _doubtful(plan: Plan) -> list[Path]:
    """The files that would go if it could be told that nobody has them open."""
    return [verdict.path for verdict in plan.verdicts if {reason.code for reason in verdict.reasons} == {"open-unknown"}]


def _told(verdict: Verdict) -> str:
    return "; ".join(reason.detail for reason in verdict.reasons)


def _allocated(entry: os.DirEntry[str]) -> int:
    """Bytes that a regular file, or what a link leads to, occupies; 0 for what is gone by now."""
    with suppress(OSError):
        if entry.is_file():
            return entry.stat().st_blocks * 512
    return 0


def _used_images(all_instances: Any, host: str) -> dict[str, tuple[int, int, list[str]]]:
    used: dict[str, tuple[int, int, list[str]]] = {}
    for instance in all_instances:
        for image in (instance.image_ref, instance.kernel_id, instance.ramdisk_id):
            if image is not None:
                local, remote, names = used.get(image, (0, 0, []))
                is_local = instance.host == host
                used[image] = (local + is_local, remote + (not is_local), [*names, instance.name])
    return used


@dataclass(frozen=True, slots=True)
class _Nova:
    """What we use of the Nova around us: its options, objects and locks.

    Attributes:
        log: the logger of the manager whose place is taken, so that its configured level and format hold.
    """

    conf: Any
    exception: Any
    objects: Any
    block_device: Any
    file_systems: Any
    paths: Any
    lockutils: Any
    log: logging.Logger

    @classmethod
    def load(cls) -> "_Nova":
        try:
            return cls(
                conf=import_module("nova.conf").CONF,
                exception=import_module("nova.exception"),
                objects=import_module("nova.objects"),
                block_device=import_module("nova.block_device"),
                file_systems=import_module("nova.privsep.fs"),
                paths=import_module("nova.privsep.path"),
                lockutils=import_module("oslo_concurrency.lockutils"),
                log=logging.getLogger("nova.virt.libvirt.imagecache"),
            )
        except ImportError as error:
            raise ExtraMissing(
                f"Nova cannot be imported: {error}", hint="this class works in the Python environment of nova-compute"
            ) from error

    def records(self, context: Any, all_instances: Any) -> list[InstanceRecord]:
        """The instances as records, with all their swaps and ephemerals; one query for all of them."""
        uuids = [instance.uuid for instance in all_instances]
        devices = self.objects.BlockDeviceMappingList.bdms_by_instance_uuid(context, uuids)
        return [self._record(instance, devices.get(instance.uuid) or ()) for instance in all_instances]

    def _record(self, instance: Any, devices: Sequence[Any]) -> InstanceRecord:
        local = [device for device in devices if not device.no_device]
        swaps = [device for device in local if self.block_device.new_format_is_swap(device)]
        ephemerals = [device for device in local if self.block_device.new_format_is_ephemeral(device)]
        return InstanceRecord(
            uuid=instance.uuid,
            name=instance.name,
            host=instance.host,
            image_ref=instance.image_ref or None,  # a volume's instance has ""
            kernel_id=instance.kernel_id or None,
            ramdisk_id=instance.ramdisk_id or None,
            vm_state=instance.vm_state,
            task_state=instance.task_state,
            os_type=instance.os_type,
            swap_mib=tuple(device.volume_size or 0 for device in swaps),
            ephemerals=tuple(
                Ephemeral(size_gib=device.volume_size or 0, guest_format=device.guest_format) for device in ephemerals
            ),
        )

    def ephemeral_names(self, record: InstanceRecord) -> set[str]:
        """The names that Nova gives an instance's ephemerals."""
        fs = self.file_systems
        os_type = fs.get_fs_type_for_os_type(record.os_type)
        suffix = fs.get_file_extension_for_os_type(os_type, self.conf.default_ephemeral_format)
        return {f"ephemeral_{ephemeral.size_gib}_{suffix}" for ephemeral in record.ephemerals}

    def touch(self, paths: Sequence[Path]) -> None:
        """Give files in use that are not our own the present time too, for a Nova on another host, or one that comes back."""
        for path in paths:
            with suppress(FileNotFoundError, self.exception.FileNotFound):
                if not is_our_own(path):
                    self.paths.utime(os.fspath(path))

    def take_over(self, paths: Sequence[Path]) -> bool:
        """Make files our own, of which only their owner can tell whether they are open; whether there were any.

        libvirt gives the base of each disk to QEMU's user when a domain starts, and leaves it there when the domain ends. Nova
        has a helper for privileged calls. Should somebody start to use such a file now, libvirt gives it away once more.
        """
        taken = False
        for path in paths:
            try:
                if not is_our_own(path):
                    self.paths.chown(os.fspath(path), uid=os.geteuid())
                    taken = True
            except (OSError, self.exception.NovaException) as error:
                self.log.warning("%s cannot be looked at, so it is kept: %s", path, error)
        return taken

    def configuration(self, cache: Path, *, remove_unused: bool) -> Config:
        """Nova's options as a configuration of ours."""
        options = self.conf.image_cache
        rules = Rules(
            remove_unused=remove_unused,
            original_age=options.remove_unused_original_minimum_age_seconds,
            resized_age=options.remove_unused_resized_minimum_age_seconds,
        )
        return configuration(self.conf, self.lockutils, cache, rules=rules)
