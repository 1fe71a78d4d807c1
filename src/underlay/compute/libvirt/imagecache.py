"""The host's images, as a compute service looks after them."""

from collections.abc import Sequence

from underlay.compute.arguments import Instance
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.site import Site
from underlay.model import InstanceRecord
from underlay.refs import parse_ref

_HERE = frozenset({"hit", "revalidated", "source-unavailable"})


def fetch(site: Site, image_id: str) -> bool:
    """Have an image here; whether it had to be fetched.

    Raises:
        as `underlay.compute.libvirt.localdisks.translated`
    """
    with translated():
        traits = site.host.parts.backend(site.options.images_type).traits
        ensured = site.host.fetch(parse_ref(image_id), cache=site.options.cache, traits=traits)
    return ensured.reason.code not in _HERE


def prune(site: Site, instances: Sequence[Instance]) -> None:
    """Remove what none of these instances, none of the configured inventory and nothing on this host needs, and is old enough.

    Nothing goes while the inventory does not answer: there may be instances on this host that no compute service knows.

    Raises:
        as `underlay.compute.libvirt.localdisks.translated`
    """
    with translated():
        site.host.apply(site.host.plan_prune(beside=[_record(instance) for instance in instances]))


def _record(instance: Instance) -> InstanceRecord:
    return InstanceRecord(
        uuid=instance.uuid,
        name=instance.name,
        host=instance.host,
        image_ref=instance.image_ref or None,
        kernel_id=instance.kernel_id or None,
        ramdisk_id=instance.ramdisk_id or None,
        vm_state=instance.vm_state,
        task_state=instance.task_state,
        os_type=instance.os_type,
        swap_mib=(instance.flavor.swap,) if instance.flavor.swap else (),
    )
