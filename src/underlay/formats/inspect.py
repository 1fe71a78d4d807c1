"""What a stream of bytes is, and whether any tool may ever open it: decided while it arrives, before anything else.

oslo.utils' inspectors recognise the formats; the rules are ours where theirs have gaps or refuse what is legitimate:

* qcow2 is judged by its own header (`underlay.formats.qcow2`): theirs refuse extended L2 and pass encryption;
* a text VMDK descriptor is refused: theirs call it raw and safe;
* a partition table, a hybrid one, a FAT boot sector or a bare boot signature is raw: tools get ``-f raw``, so its content
  can do nothing to them, and theirs refuse three of the four;
* a differencing VHD is refused: theirs do not look.
"""

import struct
from dataclasses import dataclass, field

from oslo_utils.imageutils.format_inspector import FileInspector, get_inspector

from underlay.errors import FormatMismatch, UnsafeImage, VirtualSizeRefused
from underlay.formats import qcow2, text
from underlay.model import ImageFacts

DEFAULT_VIRTUAL_SIZE_LIMIT = 10 << 40
"""Bytes: 10 TiB."""

_KNOWN = ("qcow2", "vhd", "vhdx", "vmdk", "vdi", "qed", "iso", "gpt", "luks")
_QEMU_NAMES = {"gpt": "raw", "iso": "raw", "vhd": "vpc"}
_FORBIDDEN = {
    "qed": ("qed", "the qed format can name a backing file and is no longer maintained"),
    "luks": ("encrypted", "encrypted images are not supported"),
}
_RAW_LABELS = frozenset({"raw", "gpt"})
_PIECE = 4096  # what oslo.utils' inspectors are built for: a structure found in one piece is looked for in the next
_VHD_TYPE_OFFSET, _VHD_DIFFERENCING = 60, 4


@dataclass(slots=True)
class Inspector:
    """Inspects one stream: `feed` it every byte in order, then ask it to `finish`.

    Attributes:
        what: how messages call the image.
        label: the format that the source claims, in Glance's words, or None.
        virtual_size_limit: bytes.
        early: what is known already before the end; enough to reserve space by. None until then.
    """

    what: str
    label: str | None = None
    virtual_size_limit: int = DEFAULT_VIRTUAL_SIZE_LIMIT
    early: ImageFacts | None = None
    _size: int = 0
    _beginning: bytearray = field(default_factory=bytearray)
    _undecided: dict[str, FileInspector] = field(default_factory=lambda: {name: _new(name) for name in _KNOWN})
    _matched: dict[str, FileInspector] = field(default_factory=dict)

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused: as soon as the bytes so far tell.
        """
        if len(self._beginning) < qcow2.HEADER_BYTES:
            self._beginning += chunk[: qcow2.HEADER_BYTES - len(self._beginning)]
        # Only a VMDK's footer keeps an inspector undecided to the end; it is glad of large pieces.
        piece = _PIECE if len(self._undecided) > 1 else len(chunk)
        for start in range(0, len(chunk), piece):
            if not self._undecided:
                break
            self._take(bytes(chunk[start : start + piece]))
        self._size += len(chunk)
        if self.early is None and (not self._undecided or self._waits_for_footer()):
            self.early = self._decide()

    def finish(self) -> ImageFacts:
        """The verdict over the whole stream.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused
        """
        if self._size == 0:
            raise self._refused("empty", "it has no bytes")
        for name, inspector in list(self._undecided.items()):
            inspector.finish()
            self._settle(name, inspector)
        facts = self._decide()
        if facts.format != "raw":
            return facts
        self._check_virtual_size(self._size)
        return ImageFacts(format="raw", label=facts.label, virtual_size=self._size)

    def _take(self, piece: bytes) -> None:
        for name, inspector in list(self._undecided.items()):
            try:
                inspector.eat_chunk(piece)
            except Exception:  # noqa: BLE001 - whatever an inspector raises over untrusted bytes means: not this format
                del self._undecided[name]
                continue
            if inspector.complete:
                self._settle(name, inspector)

    def _settle(self, name: str, inspector: FileInspector) -> None:
        self._undecided.pop(name, None)
        if inspector.complete and _matches(inspector):
            self._matched[name] = inspector

    def _waits_for_footer(self) -> bool:
        return self._undecided.keys() == {"vmdk"} and _matches(self._undecided["vmdk"])

    def _decide(self) -> ImageFacts:
        matched = self._matched | (self._undecided if self._waits_for_footer() else {})
        found = self._one_of(matched)
        if found in _FORBIDDEN:
            rule, why = _FORBIDDEN[found]
            raise self._refused(rule, why)
        if found == "raw" and text.is_vmdk_descriptor(bytes(self._beginning)):
            raise self._refused("vmdk-descriptor", "it is a VMDK descriptor, which names files of the host")
        self._check_label(found)
        virtual_size = self._check_format(found, matched.get(found))
        if virtual_size is not None:
            self._check_virtual_size(virtual_size)
        return ImageFacts(format=_QEMU_NAMES.get(found, found), label=found, virtual_size=virtual_size)

    def _one_of(self, matched: dict[str, FileInspector]) -> str:
        names = set(matched)
        if names == {"iso", "gpt"}:  # a bootable ISO has a partition table for when it is written to a disk
            return "iso"
        if len(names) > 1:
            raise self._refused("ambiguous", f"it is {' and '.join(sorted(names))} at once")
        return names.pop() if names else "raw"

    def _check_label(self, found: str) -> None:
        if self.label is None or self.label == found or {self.label, found} <= _RAW_LABELS:
            return
        raise FormatMismatch(f"{self.what} is labelled {self.label}, but its content is {found}", hint="correct its label")

    def _check_format(self, found: str, inspector: FileInspector | None) -> int | None:
        """The virtual size that the header tells, after the format's own rules; None where only a tool can tell it."""
        if found == "qcow2":
            header = qcow2.parse_header(bytes(self._beginning))
            qcow2.check_safety(header)
            if header.size == 0:
                raise self._refused("empty", "its virtual size is 0 bytes")
            return header.size
        if found == "vhd" and self._vhd_type() == _VHD_DIFFERENCING:
            raise self._refused("backing-file", "it is a differencing disk, which names a parent")
        if found == "vmdk" and inspector is not None and inspector.complete:
            self._check_vmdk(inspector)
        return None

    def _check_vmdk(self, inspector: FileInspector) -> None:
        try:
            inspector.safety_check()
        except Exception as error:
            raise self._refused("vmdk-descriptor", "its descriptor names other files or is of a kind that may") from error

    def _vhd_type(self) -> int:
        return int(struct.unpack_from(">I", self._beginning, _VHD_TYPE_OFFSET)[0])

    def _check_virtual_size(self, size: int) -> None:
        if size > self.virtual_size_limit:
            raise VirtualSizeRefused(
                f"{self.what} has a virtual size of {size} bytes, over the limit of {self.virtual_size_limit} bytes",
                hint="raise virtual_size_limit in the configuration if that is right",
            )

    def _refused(self, rule: str, why: str) -> UnsafeImage:
        return UnsafeImage(self.what, rule=rule, why=why)


def _matches(inspector: FileInspector) -> bool:
    try:
        return inspector.format_match
    except AttributeError:  # the vmdk inspector, asked before it has seen a whole descriptor
        return False


def _new(name: str) -> FileInspector:
    inspector = get_inspector(name)
    assert inspector is not None
    return inspector()
