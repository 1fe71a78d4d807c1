"""File systems: which one a path lies on, what room it has, and whether locks on it reach other hosts."""

import fcntl
import os
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

_UNBOUNDED = 1 << 62
_FS_IOC_GETFSUUID = 0x80111500  # linux/fs.h, _IOR(0x15, 0, struct fsuuid2), since Linux 6.9
_FSUUID2 = struct.Struct("B16s")

_SHARE_LOCKS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.glusterfs", "fuse.ceph", "gfs2", "ocfs2", "gpfs", "lustre"}
)
_NEVER_SHARE_LOCKS = frozenset(
    {"9p", "virtiofs", "beegfs", "afs", "orangefs", "fuse.ceph-fuse", "fuse.sshfs", "fuse.juicefs", "fuse.mfs", "fuse.moosefs"}
    | {"fuse.quobyte", "fuse.lizardfs", "fuse.saunafs", "fuse.s3fs", "fuse.rclone"}
)  # or only when their servers are set up for it, which nothing here tells
NETWORK_KINDS = _SHARE_LOCKS | _NEVER_SHARE_LOCKS
"""Kinds of file system that other hosts use at the same time, as far as they are known by name."""
LOCAL_KINDS = frozenset(
    {"bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hugetlbfs", "jfs", "msdos", "nilfs2", "ntfs3"}
    | {"overlay", "ramfs", "reiserfs", "rootfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs"}
    | {"fuse", "fuse.ext2", "fuse.ext3", "fuse.ext4", "fuse.fuse2fs", "fuse.lxcfs", "fuse.mergerfs"}
)
"""Kinds that one host has for itself. Any other may be shared, known by name or not."""
KERNEL_KINDS = frozenset(
    {"binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl", "mqueue"}
    | {"nfsd", "nsfs", "proc", "pstore", "resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs", "sysfs", "tracefs"}
)
"""Kinds whose files are questions and orders to the kernel."""

_LOCAL_LOCKS = frozenset({"nolock", "local_lock=all", "local_lock=posix", "nobrl", "localflocks", "localflock", "noflock"})


def free_bytes(path: Path) -> int:
    """Bytes that may still be written on the file system of ``path``; what is kept back for root is left to root.

    A file system that does not say how large it is, as ramfs, is as large as any.
    """
    status = os.statvfs(path)
    if status.f_blocks == 0:
        return _UNBOUNDED
    return status.f_bavail * status.f_frsize


class FileSystem(msgspec.Struct, frozen=True):
    """The file system that a path lies on.

    Attributes:
        key: equal for two paths exactly when they draw on the same free space.
        kind: as in the mount table (ext4, xfs, nfs4 …); empty when the table does not say.
        source: what is mounted, as the table has it. options: of the mount and of the file system.
        uuid: of the file system, or None where the kernel does not tell it.
    """

    key: str
    kind: str
    source: str = ""
    options: frozenset[str] = frozenset()
    uuid: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may use it at the same time."""
        return self.kind not in LOCAL_KINDS

    @property
    def locks_reach_other_hosts(self) -> bool:
        """Whether a record lock that is taken here excludes the other hosts' users of it."""
        return self.kind in _SHARE_LOCKS and not self.options & _LOCAL_LOCKS


def file_system(target: int | Path) -> FileSystem:
    """Which file system a path or an open file lies on.

    The device number says it, except where one pool of space has many: each btrfs subvolume has its own, and there it is the
    mount's source; each ZFS dataset has its own, and there it is the first part of the mount's source.

    Raises:
        OSError
    """
    if isinstance(target, int):
        return _file_system(target)
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _file_system(fd)
    finally:
        os.close(fd)


def _file_system(fd: int) -> FileSystem:
    device = f"device {os.fstat(fd).st_dev}"
    mount_id = _mount_id(fd)
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = os.fsdecode(line).split()
            if fields[0] == mount_id:
                kind, source, options = fields[fields.index("-") + 1 :][:3]
                return FileSystem(
                    key=_POOLS[kind](source) if kind in _POOLS else device,
                    kind=kind,
                    source=source,
                    options=frozenset((*fields[5].split(","), *options.split(","))),
                    uuid=_uuid(fd),
                )
    return FileSystem(key=device, kind="")


_POOLS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"btrfs": lambda source: f"btrfs {source}", "zfs": lambda source: f"zfs {source.partition('/')[0]}"}
)


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return next(line.split()[1] for line in lines if line.startswith(b"mnt_id:")).decode()


def _uuid(fd: int) -> str | None:
    try:
        length, content = _FSUUID2.unpack(fcntl.ioctl(fd, _FS_IOC_GETFSUUID, bytes(_FSUUID2.size)))
    except OSError:  # not told, by this kernel or of this file system
        return None
    return str(uuid.UUID(bytes=content)) if length == len(content) and any(content) else None
