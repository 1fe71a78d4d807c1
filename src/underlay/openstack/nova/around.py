"""The Nova around us: its options as a configuration of ours, and its locks. Outside of one, our own configuration holds.

Read at each use and never kept, because Nova's options may change under us.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from underlay.config import Config, load_config
from underlay.config.disks import DisksTable, backend_arguments
from underlay.config.values import WrongValue
from underlay.contracts import ImageSource
from underlay.errors import ConfigError
from underlay.host.parts import Parts
from underlay.naming import CacheKind
from underlay.openstack.nova.logs import Logged
from underlay.plan import Rules
from underlay.store import Store
from underlay.values import replace

CACHE = "base"
"""What Nova's cache is called in the configuration."""
LOG = logging.getLogger("nova.virt.libvirt.imagebackend")
"""The logger of the module whose place is taken, so that its configured level and format hold."""

_LOCK_PREFIX = "nova-"
# Seconds. Nova's lock of an image has one holder at a time, who may be copying it into a disk; Nova itself waits without end.
_PATIENCE = 6 * 3600.0
_CACHE_MODES = frozenset({"none", "writethrough", "writeback", "directsync", "unsafe"})
_ATTACHED_AS = frozenset({"file", "block", "network"})


@dataclass(frozen=True, slots=True)
class Around:
    """What the classes in Nova's place work with.

    Attributes:
        parts: of a host with Nova's cache as its first. conf: Nova's options; None outside of a Nova.
    """

    parts: Parts
    conf: Any = None

    @classmethod
    def load(cls, *, sources: Mapping[str, ImageSource] | None = None) -> "Around":
        """What is there now.

        Args:
            sources: by scheme, in place of those that the configuration would open.

        Raises:
            ConfigError
        """
        observer = Logged(LOG)
        try:
            conf, lockutils = import_module("nova.conf").CONF, import_module("oslo_concurrency.lockutils")
        except ImportError:
            return cls(Parts(load_config(), observer, sources or {}))
        rules = Rules(remove_unused=conf.image_cache.remove_unused_base_images)
        where = cache_directory(conf)
        config = configuration(conf, lockutils, where, rules=rules, disks=_disks(conf), lock_timeout=_PATIENCE)
        return cls(Parts(config, observer, sources or {}), conf)

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.parts.config

    @property
    def store(self) -> Store:
        """The cache of base images.

        Raises:
            ConfigError: there is none.
        """
        stores = (store for store in self.config.caches.values() if store.kind is CacheKind.BASE)
        if (store := next(stores, None)) is None:
            raise ConfigError("no cache of kind base is configured", hint="add one: Nova's image backends keep images in it")
        return store

    def touch(self, path: Path) -> None:
        """Give an image that is not our own the present time too, by Nova's helper: its own manager goes by that."""
        if self.conf is None:
            return
        with suppress(FileNotFoundError, import_module("nova.exception").FileNotFound):
            if not is_our_own(path):
                try:
                    import_module("nova.privsep.path").utime(os.fspath(path))
                except PermissionError as error:  # as over NFS, where Nova lets it pass as well
                    LOG.warning("The time of %s could not be set: %s", path, error)


def of_caller(store: Store) -> Store:
    """The cache for one whose caller sees to Nova's lock, as for Nova's own fetch functions.

    Nova's `Image.cache` holds it around them, and its precaching takes none. Neither tells, and the lock does not know its
    holder, so to wait for it here may be to wait for oneself.
    """
    return store if store.rival_lock is None else replace(store, rival_lock=lambda name: nullcontext(True))  # noqa: FBT003


def image_type() -> str:
    """The type of images that Nova's options name; outside of a Nova, the default one."""
    try:
        return str(import_module("nova.conf").CONF.libvirt.images_type)
    except ImportError:
        return "default"


def is_our_own(path: Path) -> bool:
    """Whether we may do with a file what its owner may."""
    return os.geteuid() in (0, os.stat(path, follow_symlinks=False).st_uid)


def cache_directory(conf: Any) -> Path:
    """Where Nova's base images are."""
    return Path(os.path.join(conf.instances_path, conf.image_cache.subdirectory_name))


def configuration(
    conf: Any,
    lockutils: Any,
    cache: Path,
    *,
    rules: Rules,
    disks: Mapping[str, Mapping[str, Any]] | None = None,
    lock_timeout: float = 120.0,
) -> Config:
    """Nova's options as a configuration of ours.

    Args:
        cache: the directory of base images. disks: the arguments of each backend.
        lock_timeout: seconds to wait for the lock of an image.
    """
    instances = Path(os.path.abspath(conf.instances_path))
    store = Store(
        root=Path(os.path.abspath(cache)),
        kind=CacheKind.BASE,
        force_raw=conf.force_raw_images,
        nova_locks=instances / "locks",
        nova_lock_prefix=_LOCK_PREFIX,
        rival_lock=_oslo_lock(lockutils, instances / "locks"),
        lock_timeout=lock_timeout,
    )
    return Config(
        origin=instances,
        caches={CACHE: store},
        sources={},
        instances=instances,
        use_cow_images=conf.use_cow_images,
        disks=disks or {},
        host=conf.host,
        hosts=(conf.host,),  # and those in Nova's registry, which the core reads
        rules={CACHE: rules},
        default_ephemeral_format=conf.default_ephemeral_format or None,
        virt_mkfs=dict(entry.split("=", 1) for entry in conf.virt_mkfs),
    )


def _disks(conf: Any) -> dict[str, Mapping[str, Any]]:
    """The arguments of each backend, by Nova's options.

    Nova has options of a Ceph for volumes as well, so a mistake in those of another place than that of the disks stops no disk.

    Raises:
        ConfigError: an option that Nova takes and the backend cannot use.
    """
    tables: dict[str, Mapping[str, Any]] = {}
    for name, table in (("lvm", _lvm(conf)), ("rbd", _rbd(conf))):
        try:
            _arguments(conf, {name: table})
            tables[name] = table
        except ConfigError as error:
            if conf.libvirt.images_type == name:
                raise
            LOG.warning("Disks of the type %s cannot be reached: %s", name, error)
    return _arguments(conf, tables)


def _arguments(conf: Any, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    options = {
        "use_cow_images": conf.use_cow_images,
        "preallocate_images": conf.preallocate_images,
        "hw_disk_discard": conf.libvirt.hw_disk_discard or None,
        "disk_cachemodes": [mode for mode in conf.libvirt.disk_cachemodes if _is_cache_mode(mode)],
        **tables,
    }
    try:
        return backend_arguments(msgspec.convert(options, DisksTable), host=conf.host)
    except (msgspec.ValidationError, WrongValue) as error:
        raise ConfigError(f"Nova's options of image backends: {error}", hint="correct them in nova.conf") from error


def _lvm(conf: Any) -> Mapping[str, Any]:
    libvirt = conf.libvirt
    return {
        "volume_group": libvirt.images_volume_group,
        "volume_clear": libvirt.volume_clear,
        "volume_clear_size": f"{libvirt.volume_clear_size}MiB" if libvirt.volume_clear_size else None,  # MiB; 0: all of them
    }


def _rbd(conf: Any) -> Mapping[str, Any]:
    libvirt = conf.libvirt
    return {
        "pool": libvirt.images_rbd_pool or "",
        "user": libvirt.rbd_user or None,
        "ceph_conf": libvirt.images_rbd_ceph_conf or None,
        "secret_uuid": libvirt.rbd_secret_uuid or None,
        "connect_timeout": f"{max(1, libvirt.rbd_connect_timeout)}s",
    }


def _is_cache_mode(text: str) -> bool:
    """Whether it is one that we pass on; of others Nova itself warns."""
    kind, _, mode = text.partition("=")
    return kind in _ATTACHED_AS and mode in _CACHE_MODES


def _oslo_lock(lockutils: Any, directory: Path) -> Callable[[str], AbstractContextManager[bool]]:
    """Nova's own lock of a cache file, taken at once or not at all.

    A lock of ours on the same file would end Nova's: closing any descriptor of a file drops the process's POSIX locks on it.
    """

    @contextmanager
    def take(name: str) -> Iterator[bool]:
        with ExitStack() as stack:
            try:
                lock = lockutils.lock(
                    name, _LOCK_PREFIX, external=True, lock_path=os.fspath(directory), do_log=False, blocking=False
                )
                taken = stack.enter_context(lock)
            except lockutils.AcquireLockFailedException:
                taken = None
            yield taken is not None and _is_current(taken)

    return take


def _is_current(lock: Any) -> bool:
    """Whether the lock's file is still there: another host's Nova removes such files, and may while we hold one."""
    file = getattr(lock, "lockfile", None)
    if file is None:  # oslo is told to do without locks between processes
        return True
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(lock.path))
    return False
