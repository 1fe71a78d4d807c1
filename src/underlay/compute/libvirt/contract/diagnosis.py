"""Consoles and counters of guests."""

from underlay.compute.arguments import Context, Instance
from underlay.compute.consoles import ConsoleSerial, ConsoleVNC
from underlay.compute.contract.diagnosis import Diagnosis
from underlay.compute.diagnostics import Diagnostics
from underlay.compute.libvirt import consolelines, diagnosing
from underlay.compute.libvirt.contract.located import Located


class LibvirtDiagnosis(Diagnosis, Located):
    """Consoles of libvirt's domains."""

    def get_console_output(self, context: Context, instance: Instance) -> bytes:
        """As the contract has it: what was written since the guest was started."""
        return consolelines.output(self.site, instance)

    def get_vnc_console(self, context: Context, instance: Instance) -> ConsoleVNC:
        """As the contract has it."""
        return consolelines.vnc(self.site, instance)

    def get_serial_console(self, context: Context, instance: Instance) -> ConsoleSerial:
        """As the contract has it."""
        return consolelines.serial(self.site, instance)

    def get_diagnostics(self, instance: Instance) -> dict[str, int]:
        """As the contract has it; a guest that is off has few counters."""
        return diagnosing.flat(self.site, instance)

    def get_instance_diagnostics(self, instance: Instance) -> Diagnostics:
        """As the contract has it."""
        return diagnosing.shaped(self.site, instance)
