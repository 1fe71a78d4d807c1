"""The fake driver's power."""

from collections.abc import Callable, Sequence
from typing import Any

from underlay.compute import events, states
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
from underlay.compute.errors import ComputeError, InstanceNotRescuable, InstanceNotRunning, InstanceRebootFailure
from underlay.testing.fakedriver.running import Running


class FakePower(Power, Running):
    """Power of the machines in memory. What takes time elsewhere is done at once."""

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
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if reboot_type not in ("SOFT", "HARD"):
            raise InstanceRebootFailure(reason=f"{reboot_type!r} is neither SOFT nor HARD")
        self._stop(machine)
        try:
            self._start(machine)
        except ComputeError as error:
            raise InstanceRebootFailure(reason=str(error)) from error

    def pause(self, instance: Instance) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        self._must_be(instance, states.RUNNING, states.PAUSED)
        machine.state = states.PAUSED
        self._tell(machine, events.EVENT_LIFECYCLE_PAUSED)

    def unpause(self, instance: Instance) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        self._must_be(instance, states.RUNNING, states.PAUSED)
        machine.state = states.RUNNING
        self._tell(machine, events.EVENT_LIFECYCLE_RESUMED)

    def suspend(self, context: Context, instance: Instance) -> None:
        """As the contract has it; the state is that of libvirt's saved domains, which is off."""
        machine = self.hypervisor.machine(instance)
        self._must_be(instance, states.RUNNING, states.PAUSED)
        machine.state, machine.internal_id = states.SHUTDOWN, None
        self._tell(machine, events.EVENT_LIFECYCLE_SUSPENDED)

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
        self._start(self.hypervisor.machine(instance))

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
        machine = self.hypervisor.machine(instance)
        if machine.state not in (states.RUNNING, states.PAUSED, states.SUSPENDED):
            self._start(machine)

    def power_off(self, instance: Instance, timeout: float = 0, retry_interval: float = 0) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        if timeout and self.hypervisor.guests_answer and machine.state == states.RUNNING:
            machine.console += f"{machine.name} shuts down\n".encode()
        self._stop(machine)

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
        """As the contract has it."""
        self._start(self.hypervisor.machine(instance))

    def power_update_event(self, instance: Instance, target_power_state: str) -> None:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        (self._start if target_power_state == "POWER_ON" else self._stop)(machine)
        instance.task_state = None

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
        machine = self.hypervisor.machine(instance)
        if machine.rescued_by is not None:
            raise InstanceNotRescuable(instance_id=instance.uuid, reason="it is being rescued already")
        self._stop(machine)
        machine.rescued_by = image_meta.id
        self._start(machine)

    def unrescue(self, instance: Instance, network_info: NetworkInfo) -> None:
        """As the contract has it."""
        refuse_other_than_instance(instance, method="unrescue")
        machine = self.hypervisor.machine(instance)
        self._stop(machine)
        machine.rescued_by = None
        self._start(machine)

    def soft_delete(self, instance: Instance) -> None:
        """As the contract has it."""
        self.power_off(instance)

    def restore(self, instance: Instance) -> None:
        """As the contract has it."""
        self._start(self.hypervisor.machine(instance))

    def trigger_crash_dump(self, instance: Instance) -> None:
        """As the contract has it."""
        self._must_be(instance, states.RUNNING)
        self.hypervisor.machine(instance).console += b"NMI received\n"

    def poll_rebooting_instances(self, timeout: float, instances: Sequence[Instance]) -> None:
        """As the contract has it: starts those that do not run."""
        for instance in instances:
            self._start(self.hypervisor.machine(instance))

    def _must_be(self, instance: Instance, *wanted: int) -> None:
        if self.hypervisor.machine(instance).state not in wanted:
            raise InstanceNotRunning(instance_id=instance.uuid)
