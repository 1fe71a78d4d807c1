"""What only a disk in a Ceph has: a clone of Glance's own image, and a snapshot that a resize is taken back to."""

from importlib import import_module
from typing import Any

from underlay.contracts import BackendTraits
from underlay.errors import Unsupported
from underlay.model import DiskSpec, ImageVersion
from underlay.openstack.nova.around import Around
from underlay.openstack.nova.imageservice import NovaImages
from underlay.refs import parse_ref


def version_of(around: Around, context: Any, image_id: str) -> ImageVersion:
    """What Glance says of an image, with its locations.

    Raises:
        InvalidRef; as `underlay.ImageSource.describe`
    """
    ref = parse_ref(image_id)
    if around.conf is None:
        return around.parts.source(ref.scheme).describe(ref)
    return NovaImages(context=context).described(ref, with_locations=True)


def snap(around: Around, spec: DiskSpec, traits: BackendTraits, what: str, *arguments: Any) -> None:
    """Have Nova's own client of Ceph do something about a snapshot of the disk; of disks elsewhere nothing is kept, as in Nova.

    Args:
        what: create_snap, remove_snap or rollback_to_snap.

    Raises:
        Unsupported: there is no Nova around us.
    """
    if traits.on_host_filesystem or not traits.clones:
        return
    if around.conf is None:
        raise Unsupported(traits.name, "keep a snapshot of a disk outside of a Nova", hint="use 'underlay disk snapshot'")
    getattr(import_module("nova.storage.rbd_utils").RBDDriver(), what)(spec.path.name, *arguments)
