"""The fake driver's consoles and diagnostics."""

from typing import Any

from underlay.compute import states
from underlay.compute.arguments import Context, Instance
from underlay.compute.consoles import ConsoleMKS, ConsoleRDP, ConsoleSerial, ConsoleSpice, ConsoleVNC
from underlay.compute.contract.diagnosis import Diagnosis
from underlay.compute.diagnostics import Diagnostics, MemoryDiagnostics
from underlay.compute.errors import ConsoleTypeUnavailable
from underlay.testing.fakedriver.running import Running

_LOG_BYTES = 102_400
_FIRST_PORT = 5900


class FakeDiagnosis(Diagnosis, Running):
    """Consoles of the machines in memory. Nobody listens where they are said to be."""

    def get_console_output(self, context: Context, instance: Instance) -> bytes | str:
        """As the contract has it."""
        return self.hypervisor.machine(instance).console[-_LOG_BYTES:]

    def get_vnc_console(self, context: Context, instance: Instance) -> ConsoleVNC:
        """As the contract has it."""
        return ConsoleVNC(self.hypervisor.address, self._port(instance, "vnc"))

    def get_spice_console(self, context: Context, instance: Instance) -> ConsoleSpice:
        """As the contract has it."""
        port = self._port(instance, "spice")
        return ConsoleSpice(self.hypervisor.address, port, port + 1)

    def get_rdp_console(self, context: Context, instance: Instance) -> ConsoleRDP:
        """As the contract has it."""
        return ConsoleRDP(self.hypervisor.address, self._port(instance, "rdp"))

    def get_serial_console(self, context: Context, instance: Instance) -> ConsoleSerial:
        """As the contract has it."""
        return ConsoleSerial(self.hypervisor.address, self._port(instance, "serial"))

    def get_mks_console(self, context: Context, instance: Instance) -> ConsoleMKS:
        """As the contract has it."""
        return ConsoleMKS(self.hypervisor.address, self._port(instance, "mks"))

    def get_diagnostics(self, instance: Instance) -> dict[str, Any]:
        """As the contract has it."""
        machine = self.hypervisor.machine(instance)
        counters = {f"cpu{number}_time": 0 for number in range(machine.vcpus)}
        for vif in machine.vifs.values():
            counters |= {f"{vif['devname']}_rx": 0, f"{vif['devname']}_tx": 0}
        return {**counters, "memory": machine.memory_mb << 10}

    def get_instance_diagnostics(self, instance: Instance) -> Diagnostics:
        """As the contract has it. It says that it is libvirt's, because the contract knows no fake."""
        machine = self.hypervisor.machine(instance)
        diagnostics = Diagnostics(
            state=states.STATE_MAP[machine.state],
            driver="libvirt",
            config_drive=False,
            hypervisor="fake",
            memory_details=MemoryDiagnostics(maximum=machine.memory_mb, used=machine.memory_mb),
        )
        for number in range(machine.vcpus):
            diagnostics.add_cpu(id=number, time=0)
        for vif in machine.vifs.values():
            diagnostics.add_nic(mac_address=vif["address"], rx_octets=0, tx_octets=0)
        for _ in (*machine.disks, *machine.volumes):
            diagnostics.add_disk(read_bytes=0, write_bytes=0)
        return diagnostics

    def _port(self, instance: Instance, kind: str) -> int:
        run = self.hypervisor.machine(instance).internal_id
        if run is None:
            raise ConsoleTypeUnavailable(console_type=kind)
        return _FIRST_PORT + run
