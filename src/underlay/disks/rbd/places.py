"""What images are called: those of disks, those on their way, and those that a location names. Pure."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

BACKEND = "rbd"
"""How the backend is called."""

_SCHEME = "rbd://"
_DEVICES = Path("/dev/rbd")


def image_name(instance: str, name: str) -> str:
    """The image of a disk, as Nova calls it: ``INSTANCE_disk``.

    The last underscore is where the two meet. One in the disk's name becomes ``=``, which no name has, so that no two disks
    have one image.
    """
    return f"{instance}_{name.replace('_', '=')}"


def device(pool: str, image: str) -> Path:
    """The path by which the disk is called: the device that Ceph's udev rule names, were it mapped."""
    return _DEVICES / pool / image


def image_of(path: Path) -> str:
    """The image of the disk that is called so."""
    return path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A snapshot of an image, as Glance's store writes it: ``rbd://FSID/POOL/IMAGE/SNAPSHOT``, each part percent-encoded.

    Attributes:
        fsid: the id of the Ceph.
    """

    fsid: str
    pool: str
    image: str
    snapshot: str

    @property
    def url(self) -> str:
        """As it is written."""
        return _SCHEME + "/".join(quote(part, safe="") for part in (self.fsid, self.pool, self.image, self.snapshot))

    @property
    def spoken(self) -> str:
        """As Ceph's own tools write it, without the id of the Ceph."""
        return f"{self.pool}/{self.image}@{self.snapshot}"


def parse_location(url: str) -> Location | None:
    """The snapshot that a location names; None when it names none."""
    if not url.startswith(_SCHEME):
        return None
    parts = [unquote(part) for part in url.removeprefix(_SCHEME).split("/")]
    # A slash or an at sign within a part would mean something else to Ceph.
    if len(parts) != 4 or not all(part and part.isprintable() and not {"/", "@"} & set(part) for part in parts):
        return None
    fsid, pool, image, snapshot = parts
    return Location(fsid=fsid, pool=pool, image=image, snapshot=snapshot)
