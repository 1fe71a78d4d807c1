"""What libvirt does with the disks of a domain: one call each."""

from dataclasses import dataclass

from underlay.compute.libvirt.attacheddisks import AttachedDisk, disks_in
from underlay.compute.libvirt.domain import LONG, Domain
from underlay.compute.libvirt.library import library


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What libvirt does with a disk in the background.

    Attributes:
        done, whole: how far it is, in libvirt's own measure.
    """

    done: int
    whole: int


@dataclass(frozen=True, slots=True)
class DomainDisks:
    """The disks of one domain. Every call raises InstanceNotFound when it is not there, and OperationFailed when refused."""

    domain: Domain

    def lasting(self) -> tuple[AttachedDisk, ...]:
        """As it starts next."""
        return disks_in(self.domain.xml(inactive=True))

    def live(self) -> tuple[AttachedDisk, ...]:
        """As it runs; none of one that does not."""
        return disks_in(self.domain.xml()) if self.domain.is_active() else ()

    def add(self, xml: str, *, live: bool) -> None:
        """Add a device to what it starts with, and to what it has now."""
        libvirt = library()
        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if live else 0)
        self.domain.ask(lambda domain: domain.attachDeviceFlags(xml, flags))

    def take_from_definition(self, xml: str) -> None:
        """Take a device from what it starts with."""
        flags = library().VIR_DOMAIN_AFFECT_CONFIG
        self.domain.ask(lambda domain: domain.detachDeviceFlags(xml, flags))

    def ask_to_let_go(self, xml: str) -> None:
        """Ask the guest to let go of a device. That it has is seen later."""
        flags = library().VIR_DOMAIN_AFFECT_LIVE
        self.domain.ask(lambda domain: domain.detachDeviceFlags(xml, flags))

    def capacity(self, device: str) -> int:
        """Bytes that the guest sees of a disk."""
        return int(self.domain.ask(lambda domain: domain.blockInfo(device)[0]))

    def resize(self, device: str, size: int) -> None:
        """Tell QEMU, and so the guest, how large a disk is; a file becomes so."""
        flags = library().VIR_DOMAIN_BLOCK_RESIZE_BYTES
        self.domain.ask(lambda domain: domain.blockResize(device, size, flags))

    def job(self, device: str) -> Job | None:
        """What goes on with a disk in the background."""
        told = self.domain.ask(lambda domain: domain.blockJobInfo(device, 0))
        return Job(done=told["cur"], whole=told["end"]) if told else None

    def begin_copy(self, device: str, xml: str) -> None:
        """Begin to copy a disk to one that is there already; it ends with the guest if it is not ended before."""
        libvirt = library()
        flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        self.domain.ask(lambda domain: domain.blockCopy(device, xml, {}, flags))

    def pivot(self, device: str) -> None:
        """End a copy that is whole, or a commit of what is written: from now on the guest has the other disk."""
        flags = library().VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self.domain.ask(lambda domain: domain.blockJobAbort(device, flags), seconds=LONG)

    def abort(self, device: str) -> None:
        """End a job; the guest keeps the disk that it has."""
        self.domain.ask(lambda domain: domain.blockJobAbort(device, 0), seconds=LONG)

    def snapshot(self, xml: str, *, reuse: bool, quiesced: bool) -> None:
        """From now on write some disks to other files, all of them or none.

        Args:
            reuse: the files are there already. quiesced: the guest's agent freezes its file systems meanwhile.
        """
        libvirt = library()
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT if reuse else 0
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if quiesced else 0
        # Its name, as nothing of libvirt's own outlives the question.
        self.domain.ask(lambda domain: domain.snapshotCreateXML(xml, flags).getName(), seconds=LONG)

    def begin_pull(self, device: str, base: str | None) -> None:
        """Begin to have the uppermost file of a disk stand on another one, or on none, with all that is between."""
        self.domain.ask(lambda domain: domain.blockRebase(device, base, 0, 0))

    def begin_commit(self, device: str, *, top: str | None, base: str) -> None:
        """Begin to write what is in a file, and in those below it, into one further below.

        Args:
            top: None: the file that the guest writes.
        """
        flags = library().VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if top is None else 0
        self.domain.ask(lambda domain: domain.blockCommit(device, base, top, 0, flags))
