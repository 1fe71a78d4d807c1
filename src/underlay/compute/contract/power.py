"""Starting and stopping guests, and everything between."""

from collections.abc import Callable, Sequence
from typing import Any

from underlay.compute.arguments import (
    AccelInfo,
    BlockDeviceInfo,
    Context,
    ImageMeta,
    Instance,
    NetworkInfo,
    ShareInfo,
    refuse_other_than_instance,
)


class Power:
    """The power of guests: on, off, paused, suspended, rescued."""

    def reboot(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        reboot_type: str,
        block_device_info: BlockDeviceInfo | None = None,
        bad_volumes_callback: Callable[[list[str]], Any] | None = None,
        accel_info: AccelInfo | None = None,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """Start a guest anew, also one that is paused or stopped. It runs when this returns.

        Args:
            reboot_type: ``SOFT`` asks the guest, and makes it a hard one when that does not help in time; ``HARD`` cuts the
                power and makes the virtual machine again from what it is to have.
            bad_volumes_callback: told the names of devices whose volumes could not be attached.

        Raises:
            InstanceRebootFailure: it does not start. InstanceNotFound.
        """
        raise NotImplementedError

    def pause(self, instance: Instance) -> None:
        """Stop a guest's CPUs. Its memory stays on the host."""
        raise NotImplementedError

    def unpause(self, instance: Instance) -> None:
        """Let a paused guest go on."""
        raise NotImplementedError

    def suspend(self, context: Context, instance: Instance) -> None:
        """Stop a guest and write its memory to disk, so that it takes no memory."""
        raise NotImplementedError

    def resume(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """Let a suspended guest go on where it was."""
        raise NotImplementedError

    def resume_state_on_host_boot(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """Start a guest that ran before its host was switched off. One that runs, or is paused or suspended, stays as it is."""
        raise NotImplementedError

    def power_off(self, instance: Instance, timeout: float = 0, retry_interval: float = 0) -> None:
        """Stop a guest. One that is stopped stays so.

        Args:
            timeout: seconds that the guest has to shut down by itself before its power is cut; 0 cuts it at once.
            retry_interval: seconds between the times that it is asked to.

        Raises:
            InstancePowerOffFailure: it did not stop. InstanceNotFound.
        """
        raise NotImplementedError

    def power_on(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        accel_info: AccelInfo | None = None,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """Start a guest that is stopped. One that runs goes on.

        Raises:
            InstanceNotFound
        """
        raise NotImplementedError

    def power_update_event(self, instance: Instance, target_power_state: str) -> None:
        """The power of an instance was changed from outside; follow it.

        The driver sets the instance's ``task_state`` back to None when it has.

        Args:
            target_power_state: ``POWER_ON`` or ``POWER_OFF``.
        """
        raise NotImplementedError

    def rescue(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        image_meta: ImageMeta,
        rescue_password: str | None,
        block_device_info: BlockDeviceInfo | None,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """Start a guest from another image, with its own disk as a further one.

        Args:
            image_meta: of the image to rescue by. rescue_password: for the rescue system.

        Raises:
            InstanceNotRescuable: as it is, it cannot be.
        """
        raise NotImplementedError

    def unrescue(self, instance: Instance, network_info: NetworkInfo) -> None:
        """Put a rescued instance back to what it was before.

        Raises:
            TypeError: the first argument is no instance. A newer caller passes the context and the instance, which would
                otherwise be taken for the instance and its network.
        """
        refuse_other_than_instance(instance, method="unrescue")
        raise NotImplementedError

    def soft_delete(self, instance: Instance) -> None:
        """Stop an instance whose deletion can still be undone; its disks stay.

        A driver that leaves this out says that its caller is to power it off instead.
        """
        raise NotImplementedError

    def restore(self, instance: Instance) -> None:
        """Undo `soft_delete`: start it again. A driver that leaves this out says that its caller is to power it on instead."""
        raise NotImplementedError

    def set_bootable(self, instance: Instance, is_bootable: bool) -> None:
        """Say whether a guest may be started."""
        raise NotImplementedError

    def trigger_crash_dump(self, instance: Instance) -> None:
        """Send a guest a non-maskable interrupt, at which its kernel may write a dump.

        Raises:
            TriggerCrashDumpNotSupported: not by this hypervisor. InstanceNotRunning: it does not run.
        """
        raise NotImplementedError

    def poll_rebooting_instances(self, timeout: float, instances: Sequence[Instance]) -> None:
        """See to guests that have been rebooting for too long.

        Args:
            timeout: seconds after which they have. instances: those, and no others.
        """
        raise NotImplementedError
