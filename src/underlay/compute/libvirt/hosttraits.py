"""The host's traits, by which a scheduler chooses it (os-traits): only those that are the driver's to say."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from underlay.compute.capabilities import known_traits, traits_of
from underlay.compute.libvirt import devicenames, enabling
from underlay.compute.libvirt.guestplan import cpu_mode_of
from underlay.compute.libvirt.hostcapabilities import domain_capabilities, host_capabilities
from underlay.compute.libvirt.site import Site

# Features that libvirt calls otherwise than the trait.
_FEATURES = MappingProxyType({"pclmuldq": "clmul", "sha-ni": "sha", "aes": "aesni", "fma": "fma3", "bmi1": "bmi", "rtm": "tsx"})
_BUS, _SCREEN, _CPU, _HOST = "COMPUTE_STORAGE_BUS_", "COMPUTE_GRAPHICS_MODEL_", "HW_CPU_X86_", "HW_ARCH_"
_DISABLED = "COMPUTE_STATUS_DISABLED"
_ITS_OWN = ("host-model", "host-passthrough", "maximum")  # modes in which a guest has what the host's processor has


def traits_of_site(site: Site, capabilities: Mapping[str, bool]) -> dict[str, bool]:
    """Each trait that is the driver's to say, with whether the host has it.

    Processor features are told where guests run on the host's own processor and get its features. That the host is disabled is
    told once somebody has said whether it is.

    Args:
        capabilities: of the driver.

    Raises:
        ExtraMissing: os-traits is not installed. OperationFailed, HypervisorUnavailable
    """
    options, excluded = site.options, site.host.config.compute.image_type_exclude_list
    host = host_capabilities(site.connection.ask(lambda handle: handle.getCapabilities()))
    domain = domain_capabilities(
        site.connection.ask(
            lambda handle: handle.getDomainCapabilities(
                None, host.architecture or None, options.machine_type or None, site.virt_type, 0
            )
        )
    )
    own = site.virt_type == "kvm" and cpu_mode_of(options, site.virt_type) in _ITS_OWN
    enabled = enabling.is_enabled(site)
    return {
        **traits_of(capabilities, excluded_image_types=excluded),
        **named(_HOST, [host.architecture]),
        **named(_CPU, host.features if own else ()),
        **named(_BUS, domain.buses & devicenames.BUSES),
        **named(_SCREEN, domain.screens if options.vnc_enabled else ("none",)),
        **({} if enabled is None else {_DISABLED: not enabled}),
    }


def named(prefix: str, names: Iterable[str]) -> dict[str, bool]:
    """The known traits of one kind, each with whether it is among these names of libvirt's."""
    wanted = {_plain(_FEATURES.get(name, name)) for name in names}
    return {trait: _plain(trait.removeprefix(prefix)) in wanted for trait in known_traits(prefix)}


def _plain(name: str) -> str:
    """libvirt writes sse4.1 and avx512-vpopcntdq where a trait says SSE41 and AVX512VPOPCNTDQ."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
