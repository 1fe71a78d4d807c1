"""Consoles, and what can be told of a guest from outside."""

from collections.abc import Mapping
from typing import Any

from underlay.compute.arguments import Context, Instance
from underlay.compute.consoles import ConsoleMKS, ConsoleRDP, ConsoleSerial, ConsoleSpice, ConsoleVNC
from underlay.compute.diagnostics import Diagnostics


class Diagnosis:
    """Where a guest's consoles are, what it has written, and its counters."""

    def get_console_output(self, context: Context, instance: Instance) -> bytes | str:
        """The last 102400 bytes of what a guest wrote to its console; nothing while it has not written.

        Raises:
            ConsoleNotAvailable: it has no device whose output is kept. InstanceNotFound.
        """
        raise NotImplementedError

    def get_console_pool_info(self, console_type: str) -> Mapping[str, Any]:
        """``address``, ``username`` and ``password`` of the pool of consoles that this host belongs to."""
        raise NotImplementedError

    def get_vnc_console(self, context: Context, instance: Instance) -> ConsoleVNC:
        """Where the guest's screen is, by VNC.

        Raises:
            ConsoleTypeUnavailable: it has none. InstanceNotFound.
        """
        raise NotImplementedError

    def get_spice_console(self, context: Context, instance: Instance) -> ConsoleSpice:
        """Where the guest's screen is, by SPICE. Raises as `get_vnc_console`."""
        raise NotImplementedError

    def get_rdp_console(self, context: Context, instance: Instance) -> ConsoleRDP:
        """Where the guest's screen is, by RDP. Raises as `get_vnc_console`."""
        raise NotImplementedError

    def get_serial_console(self, context: Context, instance: Instance) -> ConsoleSerial:
        """Where the guest's serial line is. Raises as `get_vnc_console`."""
        raise NotImplementedError

    def get_mks_console(self, context: Context, instance: Instance) -> ConsoleMKS:
        """Where the guest's screen is, by MKS. Raises as `get_vnc_console`."""
        raise NotImplementedError

    def get_diagnostics(self, instance: Instance) -> dict[str, Any]:
        """A guest's counters in a flat mapping, whose keys are the hypervisor's own.

        Of libvirt: ``cpu<N>_time`` (ns); per disk ``<device>_read_req``, ``_read``, ``_write_req``, ``_write`` (bytes) and
        ``_errors``; per interface ``<interface>_rx``, ``_rx_packets``, ``_rx_errors``, ``_rx_drop``, and ``_tx`` so; ``memory``
        (KiB) and ``memory-<statistic>``. A counter that cannot be read is left out.

        Raises:
            InstanceNotFound
        """
        raise NotImplementedError

    def get_instance_diagnostics(self, instance: Instance) -> Diagnostics:
        """The same in the shape of every hypervisor.

        Raises:
            InstanceNotFound
        """
        raise NotImplementedError
