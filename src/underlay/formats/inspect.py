"""What a stream of bytes is, and whether any tool may ever open it: decided while it arrives, before anything else.

A format is recognised by its signature and, as a second opinion, by oslo.utils' inspectors; more than one is refused. The
rules are ours, because theirs pass what is dangerous and refuse what is legitimate:

* a qcow2 is judged by its own header (`underlay.formats.qcow2`): theirs refuse extended L2 and pass encryption;
* a VMDK is judged by its descriptor as QEMU reads it (`underlay.formats.vmdk`): theirs pass text descriptors and headers
  that make QEMU open the files they name;
* a differencing VHD, VHDX or VDI is refused: theirs do not look;
* a file with a format's signature is of that format, however broken: theirs call it raw;
* a partition table, a hybrid one, a FAT boot sector or a bare boot signature is raw: tools get ``-f raw``, so its content
  can do nothing to them, and theirs refuse three of the four.

The verdict hangs on the bytes alone, not on the pieces in which they come. Making an `Inspector` costs nothing; oslo.utils is
imported when the first one has something to recognise.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from underlay.errors import FormatMismatch, UnsafeImage, VirtualSizeRefused
from underlay.formats import qcow2, vdi, vhd, vhdx, vmdk
from underlay.model import DEFAULT_VIRTUAL_SIZE_LIMIT, ImageFacts

if TYPE_CHECKING:
    from oslo_utils.imageutils.format_inspector import FileInspector

BEGINNING_BYTES = 64 << 10
"""What tells a format and, except of a VHDX, its rules. Every reader that wants a beginning is content with this much."""

_SIGNATURES = (
    ("qcow2", 0, qcow2.MAGIC),
    ("vmdk", 0, vmdk.MAGIC),
    ("vhd", 0, vhd.COOKIE),
    ("vhdx", 0, vhdx.MAGIC),
    ("vdi", vdi.MAGIC_OFFSET, vdi.MAGIC),
    ("qed", 0, b"QED\0"),
    ("luks", 0, b"LUKS\xba\xbe"),
)
_SECOND_OPINIONS = ("qcow2", "vhd", "vhdx", "vdi", "qed", "iso", "gpt", "luks")
_QEMU_NAMES = {"gpt": "raw", "iso": "raw", "vhd": "vpc"}
_RAW_LABELS = frozenset({"raw", "gpt"})
_PIECE = 4096  # what oslo.utils' inspectors are built for: a structure found in one piece is looked for in the next
_SECTOR = 512
_TAIL_BYTES = max(vmdk.FOOTER_BYTES, vhd.FOOTER_BYTES)


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
    _tail: bytes = b""
    _found: str = ""  # by the format's name in image services; empty until the beginning is here
    _virtual_size: int | None = None
    _vhdx: vhdx.Reader | None = None
    _sparse: vmdk.Sparse | None = None
    _least_size: int = 0

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused: as soon as the bytes so far tell.
        """
        position = self._size
        self._size += len(chunk)
        self._tail = (self._tail + bytes(chunk[-_TAIL_BYTES:]))[-_TAIL_BYTES:]
        if not self._found:
            missing = BEGINNING_BYTES - len(self._beginning)
            self._beginning += chunk[:missing]
            if len(self._beginning) < BEGINNING_BYTES:
                return
            self._recognise()
        if self._vhdx is not None:
            self._vhdx.feed(chunk, position)
        self._judge_early()

    def finish(self) -> ImageFacts:
        """The verdict over the whole stream.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused
        """
        if self._size == 0:
            raise self._refused("empty", "it has no bytes")
        if not self._found:
            self._recognise()
        self._judge_end()
        return self._facts()

    # ------------------------------------------------------------------------------------------------------------ the beginning

    def _recognise(self) -> None:
        beginning = bytes(self._beginning)
        if vmdk.is_descriptor(beginning):
            raise self._refused("vmdk-descriptor", "it is a VMDK descriptor, which names files of the host")
        self._found = self._one_of(_signatures(beginning) | _second_opinion(beginning))
        self._check_format(beginning)
        if not self._may_be_fixed_vhd():
            self._check_label()

    def _one_of(self, names: set[str]) -> str:
        if names == {"iso", "gpt"}:  # a bootable ISO has a partition table for when it is written to a disk
            return "iso"
        if len(names) > 1:
            raise self._refused("ambiguous", f"it is {' and '.join(sorted(names))} at once")
        return names.pop() if names else "raw"

    def _check_label(self) -> None:
        if self.label in (None, self._found) or {self.label, self._found} <= _RAW_LABELS:
            return
        raise FormatMismatch(
            f"{self.what} is expected to be {self.label}, but its content is {self._found}",
            hint="correct its label, or what is asked for",
        )

    def _may_be_fixed_vhd(self) -> bool:
        """A fixed VHD is a raw disk until its footer, so only the label and the end can tell it."""
        return self.label == "vhd" and self._format() == "raw"

    def _check_format(self, beginning: bytes) -> None:
        match self._found:
            case "qcow2":
                header = qcow2.parse_header(beginning, what=self.what)
                qcow2.check_safety(header, what=self.what)
                self._virtual_size = header.size // _SECTOR * _SECTOR  # QEMU shows a guest whole sectors
            case "vmdk":
                self._sparse = vmdk.check_sparse(beginning, what=self.what)
                self._virtual_size = self._sparse.virtual_size
            case "vdi":
                found = vdi.check_header(beginning, what=self.what)
                self._virtual_size, self._least_size = found.virtual_size, found.file_size
            case "vhd":
                self._check_virtual_size(vhd.check_header(beginning, what=self.what))
            case "vhdx":
                self._vhdx = vhdx.Reader.start(self.what)
            case "qed":
                raise self._refused("qed", "the qed format can name a backing file and is no longer maintained")
            case "luks":
                raise self._refused("encrypted", "encrypted images are not supported")

    # --------------------------------------------------------------------------------------------------- the rest of the stream

    def _judge_early(self) -> None:
        if self._vhdx is not None:
            self._virtual_size = self._vhdx.virtual_size
            if self._virtual_size is None:
                return
        self._check_virtual_size(self._size if self._format() == "raw" else self._virtual_size)
        if self.early is None and not self._may_be_fixed_vhd():
            self.early = self._facts()

    def _judge_end(self) -> None:
        if self._may_be_fixed_vhd() and vhd.is_fixed_footer(self._tail[-vhd.FOOTER_BYTES :]):
            self._found = "vhd"
        self._check_label()
        if self._vhdx is not None:
            self._virtual_size = self._vhdx.virtual_size
            if self._virtual_size is None:
                raise self._refused("cut-short", "it ends before its metadata")
        if self._sparse is not None and self._sparse.has_footer:
            self._virtual_size = vmdk.check_footer(bytes(self._beginning), self._tail, what=self.what).virtual_size
        if self._size < self._least_size:
            raise self._refused("cut-short", f"its header promises {self._least_size} bytes, it has {self._size}")
        if self._format() == "raw":
            self._virtual_size = self._size
        self._check_virtual_size(self._virtual_size)

    def _format(self) -> str:
        return _QEMU_NAMES.get(self._found, self._found)

    def _facts(self) -> ImageFacts:
        return ImageFacts(format=self._format(), label=self._found, virtual_size=self._virtual_size)

    def _check_virtual_size(self, size: int | None) -> None:
        if size == 0:
            raise self._refused("empty", "its virtual size is 0 bytes")
        if size is not None:
            check_virtual_size(self.what, size, limit=self.virtual_size_limit)

    def _refused(self, rule: str, why: str) -> UnsafeImage:
        return UnsafeImage(self.what, rule=rule, why=why)


def check_virtual_size(what: str, size: int, *, limit: int) -> None:
    """Refuse an image that would show a guest more than ``limit`` bytes.

    Raises:
        VirtualSizeRefused
    """
    if size > limit:
        raise VirtualSizeRefused(
            f"{what} has a virtual size of {size} bytes, over the limit of {limit} bytes",
            hint="raise virtual_size_limit in the configuration if that is right",
        )


def _signatures(beginning: bytes) -> set[str]:
    return {name for name, offset, signature in _SIGNATURES if beginning.startswith(signature, offset)}


def _second_opinion(beginning: bytes) -> set[str]:
    return {name for name in _SECOND_OPINIONS if _matches(_new(name), beginning)}


def _matches(inspector: "FileInspector", beginning: bytes) -> bool:
    try:
        for start in range(0, len(beginning), _PIECE):
            inspector.eat_chunk(beginning[start : start + _PIECE])
        inspector.finish()
        return inspector.format_match
    except Exception:  # noqa: BLE001 - whatever an inspector raises over untrusted bytes means: not this format
        return False


def _new(name: str) -> "FileInspector":
    # Imported late: it takes a tenth of a second, which a command that finds its image cached need not spend.
    from oslo_utils.imageutils.format_inspector import get_inspector

    inspector = get_inspector(name)
    assert inspector is not None
    return inspector()
