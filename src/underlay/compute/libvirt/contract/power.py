"""The power of guests."""

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
from underlay.compute.contract.power import Power
from underlay.compute.libvirt import power, rescuing
from underlay.compute.libvirt.contract.located import Located


class LibvirtPower(Power, Located):
    """Power of libvirt's domains."""

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
        """As the contract has it; a guest has ``wait_soft_reboot`` to shut down by itself.

        With ``bad_volumes_callback`` one that is cut starts without the volumes that cannot be attached.
        """
        power.reboot(self.site, instance, network_info, block_device_info, kind=reboot_type, bad_volumes=bad_volumes_callback)

    def pause(self, instance: Instance) -> None:
        """As the contract has it. Raises InstanceNotRunning of one that is off."""
        power.pause(self.site, instance)

    def unpause(self, instance: Instance) -> None:
        """As the contract has it. Raises InstanceNotRunning of one that is off."""
        power.unpause(self.site, instance)

    def suspend(self, context: Context, instance: Instance) -> None:
        """As the contract has it: libvirt keeps the memory, and the state is that of a guest that is off."""
        power.suspend(self.site, instance)

    def resume(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """As the contract has it."""
        power.resume(self.site, instance, network_info)

    def resume_state_on_host_boot(
        self,
        context: Context,
        instance: Instance,
        network_info: NetworkInfo,
        block_device_info: BlockDeviceInfo | None = None,
        *,
        share_info: ShareInfo = None,
    ) -> None:
        """As the contract has it."""
        power.resume_state(self.site, instance, network_info, block_device_info)

    def power_off(self, instance: Instance, timeout: float = 0, retry_interval: float = 0) -> None:
        """As the contract has it; a guest is asked by its power button."""
        power.power_off(self.site, instance, timeout=timeout, retry_interval=retry_interval)

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
        """As the contract has it; a guest that is paused goes on."""
        power.power_on(self.site, instance, network_info, block_device_info)

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
        """As the contract has it."""
        rescuing.rescue(self.site, instance, network_info, image_meta, block_device_info, password=rescue_password)

    def unrescue(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        refuse_other_than_instance(instance, method="unrescue")
        rescuing.unrescue(self.site, instance)

    def soft_delete(self, instance: Instance) -> None:
        """As the contract has it: its power is cut."""
        power.power_off(self.site, instance, timeout=0, retry_interval=0)

    def restore(self, instance: Instance) -> None:
        """As the contract has it."""
        power.power_on(self.site, instance)

    def trigger_crash_dump(self, instance: Instance) -> None:
        """As the contract has it."""
        power.interrupt(self.site, instance)

    def poll_rebooting_instances(self, timeout: float, instances: Sequence[Instance]) -> None:
        """As the contract has it: those that do not run are started."""
        power.start_all(self.site, instances)
