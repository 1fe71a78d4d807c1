"""What a compute driver raises, by the names and with the keywords that its callers know.

The caller decides by the class: an instance that is not there, an operation that is not supported, a guest that refuses. So the
classes are those of Nova's contract, and each is made from the same keywords. Several classes share an exit status, because a
person at a terminal can do as much about each of them; docs/reference/compute.md has the table.
"""

from string import Formatter
from typing import ClassVar

from underlay.errors import UnderlayError


class DriverNotLoaded(SystemExit):
    """The compute driver that was named, or none was, cannot be used; a service without it ends with the status 1.

    It ends a program that does not catch it, as a service's caller expects, and passes ``except Exception``.

    Attributes:
        message: one line for people. hint: what to do about it, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(self.exit_code)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class ComputeError(UnderlayError):
    """Anything that a compute driver refuses or fails to do; Nova's name for it is NovaException.

    A class says its sentence in ``template``; its fields are the keywords that it is made from, each of them needed.

    Attributes:
        details: the keywords and their values.

    Raises:
        TypeError: a keyword is missing, or is none of the template's.
    """

    code, exit_code, http_status = "compute-error", 99, 500
    template: ClassVar[str] = "the compute driver failed"

    def __init__(self, message: str | None = None, *, hint: str | None = None, **details: object) -> None:
        wanted = self.keywords()
        if details.keys() != wanted and not (message is not None and not details):
            raise TypeError(f"{type(self).__name__} is made from {sorted(wanted)}, not from {sorted(details)}")
        super().__init__(self.template.format(**details) if message is None else message, hint=hint)
        self.details = details

    @classmethod
    def keywords(cls) -> frozenset[str]:
        """What it is made from."""
        return frozenset(name for _, name, _, _ in Formatter().parse(cls.template) if name)


NovaException = ComputeError


# --------------------------------------------------------------------------------------------------- what was asked for


class Invalid(ComputeError):
    """What was asked for cannot be meant."""

    code, exit_code, http_status = "invalid", 95, 400
    template = "the request cannot be meant"


class InvalidInput(Invalid):
    """An argument, or an answer of a driver, that has not what it must have."""

    code = "invalid-input"
    template = "invalid input: {reason}"


class InvalidBDM(Invalid):
    """A mapping of block devices that cannot be made."""

    code = "invalid-bdm"
    template = "the mapping of block devices is invalid"


class TooManyDiskDevices(InvalidBDM):
    """More disks than the instance, or its bus, can have."""

    code, http_status = "too-many-disk-devices", 403
    template = "no more than {maximum} disk devices can be attached to the instance"


class InvalidDiskInfo(Invalid):
    """What was recorded about the disks of an instance makes no sense."""

    code = "invalid-disk-info"
    template = "what is recorded of the disks is invalid: {reason}"


class FlavorDiskSmallerThanImage(ComputeError):
    """The flavor's disk is smaller than the image. Both sizes are bytes."""

    code, exit_code = "flavor-disk-smaller-than-image", 95
    template = "the flavor's disk of {flavor_size} bytes is smaller than the image of {image_size} bytes"


class UnableToMigrateToSelf(Invalid):
    """An instance is to move to the host on which it is."""

    code = "unable-to-migrate-to-self"
    template = "instance {instance_id} is on host {host} already and cannot be migrated to it"


class ResizeError(ComputeError):
    """The instance cannot be given the size that was asked for."""

    code, exit_code = "resize-error", 95
    template = "the instance cannot be resized: {reason}"


class MigrationPreCheckError(ComputeError):
    """A migration is not even begun, because it would not succeed."""

    code, exit_code = "migration-pre-check-error", 95
    template = "the migration would not succeed: {reason}"


class InvalidLocalStorage(ComputeError):
    """Storage that would have to be shared between two hosts is local."""

    code, exit_code = "invalid-local-storage", 95
    template = "{path} is not on local storage: {reason}"


class InvalidSharedStorage(ComputeError):
    """Storage that would have to be local is shared between two hosts."""

    code, exit_code = "invalid-shared-storage", 95
    template = "{path} is not on shared storage: {reason}"


# -------------------------------------------------------------------------------------------------- what is not there


class NotFound(ComputeError):
    """Something that was asked for is not there."""

    code, exit_code, http_status = "not-found", 90, 404
    template = "it could not be found"


class InstanceNotFound(NotFound):
    """The hypervisor knows no such instance."""

    code = "instance-not-found"
    template = "instance {instance_id} could not be found"


class ImageNotFound(NotFound):
    """The image is gone, or was never there."""

    code = "no-such-image"
    template = "image {image_id} could not be found"


class DiskNotFound(NotFound):
    """There is no disk at this place."""

    code = "no-such-disk"
    template = "no disk at {location}"


class VolumeDriverNotFound(NotFound):
    """Volumes of this kind cannot be attached here."""

    code = "volume-driver-not-found"
    template = "volumes of the kind {driver_type} cannot be attached here"


class ConsoleNotAvailable(NotFound):
    """The instance has no device whose output is kept."""

    code = "console-not-available"
    template = "the guest has no console whose output is kept"


class InstanceExists(ComputeError):
    """There is an instance of this name already."""

    code, exit_code = "instance-exists", 91
    template = "instance {name} already exists"


# -------------------------------------------------------------------------------------------- the state of an instance


class InstanceNotRunning(Invalid):
    """The instance would have to run."""

    code, exit_code = "instance-not-running", 92
    template = "instance {instance_id} is not running"


class InstanceNotRescuable(Invalid):
    """The instance cannot be rescued as it is."""

    code, exit_code = "instance-not-rescuable", 92
    template = "instance {instance_id} cannot be rescued: {reason}"


# ------------------------------------------------------------------------------------------------ what is not supported


class NotSupported(Invalid):
    """This driver, or this guest, cannot do that."""

    code, exit_code = "not-supported", 93
    template = "this is not supported"


class PreserveEphemeralNotSupported(NotSupported):
    """A rebuild cannot keep the ephemeral disk."""

    code = "preserve-ephemeral-not-supported"
    template = "the ephemeral disk cannot be kept over a rebuild"


class TriggerCrashDumpNotSupported(NotSupported):
    """A crash dump cannot be triggered."""

    code = "trigger-crash-dump-not-supported"
    template = "a crash dump cannot be triggered"


class SetAdminPasswdNotSupported(NotSupported):
    """The administrator's password cannot be set."""

    code = "set-admin-passwd-not-supported"
    template = "the administrator's password cannot be set"


class InstanceQuiesceNotSupported(NotSupported):
    """The file systems of this guest cannot be frozen."""

    code = "instance-quiesce-not-supported"
    template = "the file systems of instance {instance_id} cannot be frozen"


class ExtendVolumeNotSupported(NotSupported):
    """A volume of this kind cannot grow while it is attached."""

    code = "extend-volume-not-supported"
    template = "the volume cannot grow while it is attached"


class ConsoleTypeUnavailable(NotSupported):
    """There is no console of this type."""

    code = "console-type-unavailable"
    template = "there is no console of the type {console_type}"


class AgentMissing(NotSupported):
    """An agent in the guest would have to help."""

    code, exit_code = "agent-missing", 94
    template = "the guest has no agent"


class InstanceAgentNotEnabled(AgentMissing):
    """The guest has no agent."""

    code = "instance-agent-not-enabled"
    template = "the guest has no agent that is enabled"


class QemuGuestAgentNotEnabled(AgentMissing):
    """The guest was not given a device for QEMU's agent."""

    code = "qemu-guest-agent-not-enabled"
    template = "the guest has no device for QEMU's agent"


# --------------------------------------------------------------------------------------------------------- what failed


class OperationFailed(ComputeError):
    """It was tried, and failed."""

    code, exit_code = "operation-failed", 96
    template = "the operation failed"


class InternalError(OperationFailed):
    """Something that should not be: an unknown type of interface, a snapshot without its id."""

    code = "internal-error"
    template = "{err}"


class InstanceRebootFailure(OperationFailed, Invalid):
    """The instance could not be rebooted."""

    code = "instance-reboot-failure"
    template = "the instance could not be rebooted: {reason}"


class InstancePowerOffFailure(OperationFailed, Invalid):
    """The instance could not be stopped."""

    code = "instance-power-off-failure"
    template = "the instance could not be powered off: {reason}"


class InstanceQuiesceFailed(OperationFailed, Invalid):
    """The guest's file systems could not be frozen or thawed."""

    code, http_status = "instance-quiesce-failed", 409
    template = "the instance could not be quiesced: {reason}"


class InterfaceAttachFailed(OperationFailed):
    """An interface could not be attached."""

    code = "interface-attach-failed"
    template = "no interface could be attached to {instance_uuid}"


class InterfaceDetachFailed(OperationFailed, Invalid):
    """An interface could not be detached."""

    code = "interface-detach-failed"
    template = "no interface could be detached from {instance_uuid}"


class VirtualInterfacePlugException(OperationFailed):
    """The host's side of an interface could not be made or removed."""

    code = "virtual-interface-plug-exception"
    template = "a virtual interface could not be plugged"


class VolumeAttachFailed(OperationFailed, Invalid):
    """A volume could not be attached."""

    code = "volume-attach-failed"
    template = "volume {volume_id} could not be attached: {reason}"


class DeviceDetachFailed(OperationFailed):
    """The guest, or the hypervisor, did not let go of a device."""

    code = "device-detach-failed"
    template = "device {device} could not be detached: {reason}"


class DiskInfoReadWriteFail(OperationFailed, Invalid):
    """What is recorded of an instance's disks could not be read or written."""

    code = "disk-info-read-write-fail"
    template = "the record of the disks could not be read or written: {reason}"


class ReshapeFailed(OperationFailed):
    """Inventory could not be moved between resource providers."""

    code = "reshape-failed"
    template = "the resource providers could not be reshaped: {error}"


class HypervisorUnavailable(ComputeError):
    """The hypervisor cannot be reached, or does not answer; it may soon."""

    code, exit_code, http_status, transient = "hypervisor-unavailable", 96, 500, True
    template = "the hypervisor does not answer"


class ReshapeNeeded(ComputeError):
    """Inventory has to move between resource providers, and the caller must come again with the allocations."""

    code, exit_code = "reshape-needed", 97
    template = "inventory must move between resource providers, which needs their allocations"


class InstanceFaultRollback(ComputeError):
    """The operation failed and changed nothing: the instance goes back to the state that it had.

    Attributes:
        inner_exception: why.
    """

    code, exit_code = "instance-fault-rollback", 98
    template = "the instance is as it was: {inner_exception}"

    def __init__(self, inner_exception: BaseException | None = None, *, hint: str | None = None) -> None:
        super().__init__(hint=hint, inner_exception=inner_exception)
        self.inner_exception = inner_exception
