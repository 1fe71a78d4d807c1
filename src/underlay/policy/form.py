"""In which form an image is kept, and whether one that is kept is what was asked for. Facts in, decisions out; no I/O."""

import msgspec

from underlay.contracts import BackendTraits
from underlay.errors import InvalidForm
from underlay.model import BaseImage, Digest, Form, ImageFacts, ImageRecord, Reason
from underlay.naming import CacheKind, named_format

# Kernels and ramdisks are files to hand to a hypervisor, never disks to convert.
EXEMPT_FORMATS = frozenset({"aki", "ari", "ami"})
SERVED_FORMATS = frozenset({"raw", "gpt", "iso", "qcow2", "vmdk", "vhd", "vhdx", "vdi"})
"""What inspection may find and let pass, as image services say it."""
_RAW_LABELS = frozenset({"raw", "gpt"})  # a disk with a partition table is a raw disk, and is called either


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of an image, beside its ref.

    Attributes:
        checksum: of the bytes as served.
        disk_format: what the bytes as served must be, as image services say it; ``raw`` and ``gpt`` are one, kernels and
            ramdisks (aki, ari, ami) may be anything.
        raw: True: in raw form; False: byte for byte as it is served; None: as the cache keeps images.
        traits: of the backend that it is for; one that needs raw images gets one.
        decompress: which compressions of the bytes as served are undone; None: all, unless it is wanted byte for byte.
        formats: what the image may be, as image services say it; None: anything that is safe.
    """

    checksum: Digest | None = None
    disk_format: str | None = None
    raw: bool | None = None
    traits: BackendTraits | None = None
    decompress: frozenset[str] | None = None
    formats: frozenset[str] | None = None

    def undoes(self, compression: str) -> bool:
        """Whether an image that is compressed so is decompressed."""
        return self.raw is not False if self.decompress is None else compression in self.decompress

    def raw_only(self, *, force_raw: bool) -> bool:
        """Whether nothing but a raw image will do, in a cache that forces raw or not. A kernel is never converted."""
        if self.disk_format in EXEMPT_FORMATS:
            return False
        needs_raw = self.traits is not None and self.traits.needs_raw
        return needs_raw or (force_raw if self.raw is None else self.raw)


def check_want(want: Want, *, kind: CacheKind, force_raw: bool) -> None:
    """Refuse what no cache of this kind can ever answer.

    Raises:
        InvalidForm
    """
    if want.disk_format is not None and want.disk_format not in EXEMPT_FORMATS | SERVED_FORMATS:
        known = ", ".join(sorted(EXEMPT_FORMATS | SERVED_FORMATS))
        raise InvalidForm(f"{want.disk_format!r} is no disk format", hint=f"known formats: {known}")
    if want.raw is False and want.traits is not None and want.traits.needs_raw:
        raise InvalidForm(f"the {want.traits.name} backend reads raw images only")
    if want.raw is False and kind is CacheKind.BASE and force_raw:
        raise InvalidForm("this cache keeps raw images only (force_raw_images)", hint="use a cache of kind masters")


def choose_form(facts: ImageFacts, want: Want, *, label: str | None, force_raw: bool) -> tuple[Form, Reason]:
    """Whether an image is kept raw or as it was served, and why.

    Args:
        facts: what inspection found.
        label: the source's disk format.
        force_raw: the cache's ``force_raw_images``.
    """
    if label in EXEMPT_FORMATS:
        return Form.AS_SERVED, Reason("exempt", f"{label} images are kept as served")
    if facts.format == "raw":
        return Form.AS_SERVED, Reason("already-raw", f"the image is {facts.label}, which is raw to QEMU")
    if want.raw:
        return Form.RAW, Reason("raw-wanted", "its raw form was asked for")
    if force_raw and want.raw is None:
        return Form.RAW, Reason("force-raw", "the cache keeps raw images (force_raw_images)")
    if want.traits is not None and want.traits.needs_raw:
        return Form.RAW, Reason("backend-needs-raw", f"the {want.traits.name} backend reads raw images only")
    return Form.AS_SERVED, Reason("as-served", f"the cache keeps {facts.format} images as they are")


def fits(image: BaseImage, want: Want, *, kind: CacheKind, force_raw: bool) -> bool:
    """Whether an image that a cache of this kind keeps has the form that is asked for."""
    named_raw = named_format(image.name, kind=kind) == "raw"
    if want.raw_only(force_raw=force_raw):
        # A master that was not inspected is called raw too, and may be anything.
        is_sure = kind is CacheKind.BASE or named_raw or is_inspected(image)
        return image.format == "raw" and is_sure
    if want.raw is False:
        return not named_raw if image.record is None else _is_as_served(image.record, want)
    return True


def _is_as_served(record: ImageRecord, want: Want) -> bool:
    """Whether the stored bytes are those as served, but for a compression that may be undone."""
    return record.as_served and (record.compression is None or want.undoes(record.compression))


def may_be_converted(image: BaseImage) -> bool:
    """Whether an image is kept byte for byte as it was served, and passed the inspection that a tool's input has to."""
    return image.record is not None and image.record.as_served and is_inspected(image)


def is_inspected(image: BaseImage) -> bool:
    """Whether inspection has found what the bytes as served are, as opposed to a source's word that it is a kernel."""
    return image.served_format is not None and image.served_format not in EXEMPT_FORMATS


def has_format(image: BaseImage, disk_format: str | None) -> bool | None:
    """Whether the bytes as served were of the format that is asked for; None when nothing tells."""
    if disk_format is None or disk_format in EXEMPT_FORMATS:
        return True
    found = image.served_format if is_inspected(image) else None
    return None if found is None else found == disk_format or {found, disk_format} <= _RAW_LABELS
