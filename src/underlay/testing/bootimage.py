"""A disk image of our own which really boots: its guest writes one line to the serial console and powers the machine off.

It is one boot sector, assembled below, in a raw or qcow2 image of any virtual size. Every test that asks "does it really
boot?" boots it; the same arguments always give the same image, byte for byte. A guest that stays powers off when the machine's
power button is pressed, and writes `INTERRUPTED` at each non-maskable interrupt.
"""

import contextlib
import json
import os
import random
import selectors
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from underlay.errors import ToolFailed, ToolMissing, ToolTimedOut
from underlay.run import Limits, run

PREFIX = "UNDERLAY BOOTED"
"""How the guest's line begins."""

SECTOR = 512
SMALLEST = 16 * 63 * SECTOR
"""Bytes of the smallest disk that boots: a BIOS wants a whole cylinder."""

INTERRUPTED = "!"
"""What a guest that stays writes at a non-maskable interrupt."""

PAYLOAD_OFFSET = 1 << 16
"""Where the pseudo-random payload begins, on a cluster of its own for every usual cluster size."""

_LOAD_ADDRESS = 0x7C00  # where a BIOS puts the boot sector and jumps to
_PARTITION_TABLE = 446
_SIGNATURE = b"\x55\xaa"
_PIECE = 1 << 20
_CONSOLE_LIMIT = 1 << 20  # bytes; a guest gone astray writes without end
_LINE_LIMIT, _ERRORS_LIMIT = 200, 2000  # characters that a message quotes of the console's last line, of QEMU's own words
_QEMU_IMG = Limits(seconds=600)
_QEMU = "qemu-system-x86_64"


def boot_line(message: str) -> str:
    """What the guest of ``message`` writes, without its line end."""
    return f"{PREFIX} {message}"


def boot_sector(message: str, *, size: int = SECTOR, stays: bool = False) -> bytes:
    """A boot sector whose guest writes `boot_line` of ``message`` and powers off, or stays until its power button is pressed.

    One that stays lets go of devices that are unplugged, as a guest with ACPI does, on QEMU's q35 machines.

    It is a valid MBR too: on a disk of ``size`` bytes, one active partition spans what follows the sector, if anything does.

    Raises:
        ValueError: a message that is not one line of printable ASCII, or too long for the sector.
    """
    if not (message.isascii() and message.isprintable()):
        raise ValueError(f"{message!r} is not one line of printable ASCII")
    code = _program(text=_LOAD_ADDRESS + len(_program(text=0, stays=stays)), stays=stays)
    text = f"{boot_line(message)}\r\n".encode("ascii") + b"\0"
    room = _PARTITION_TABLE - len(code)
    if len(text) > room:
        raise ValueError(f"the message is {len(text) - room} bytes too long for a boot sector")
    return (code + text).ljust(_PARTITION_TABLE, b"\0") + _partition_table(size) + _SIGNATURE


def write_raw(path: Path, *, size: int, message: str, payload: int = 0, stays: bool = False) -> None:
    """Write a sparse raw image of ``size`` bytes, ``payload`` of them pseudo-random (the same ones each time).

    Raises:
        ValueError: the size is not a number of sectors or has no room for the payload, or as `boot_sector`.
    """
    _check_size(size, payload=payload)
    sector = boot_sector(message, size=size, stays=stays)
    with path.open("wb") as file:
        file.write(sector)
        file.truncate(size)
        file.seek(PAYLOAD_OFFSET)
        for piece in _payload(payload):
            file.write(piece)


def write_qcow2(
    path: Path,
    *,
    size: int,
    message: str,
    payload: int = 0,
    compressed: bool = False,
    cluster_size: int = 1 << 16,
    stays: bool = False,
) -> None:
    """Write a qcow2 image of the virtual size ``size``, with the content that `write_raw` writes. Needs qemu-img.

    Raises:
        ValueError: as `write_raw`. ToolMissing, ToolFailed, ToolTimedOut
    """
    _check_size(size, payload=payload)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bootimage-") as directory:
        raw = Path(directory) / "raw"
        # Only the beginning goes through qemu-img, so the virtual size may be more than any file here can have.
        with raw.open("wb") as file:
            file.write(boot_sector(message, size=size, stays=stays))
            file.seek(PAYLOAD_OFFSET)
            file.writelines(_payload(payload))
            file.truncate(_beginning(size, payload=payload))
        compression = ["-c"] if compressed else []
        options = ["-o", f"cluster_size={cluster_size}"]
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *compression, *options, raw, path.absolute()], limits=_QEMU_IMG)
    run(["qemu-img", "resize", "-q", "-f", "qcow2", path.absolute(), str(size)], limits=_QEMU_IMG)


def boot(
    disk: Path,
    *,
    format: str,  # noqa: A002 - QEMU's own word
    seconds: float = 30,
    until: str | None = None,
    memory: int = 64 << 20,
    user: int | None = None,
) -> str:
    """Boot a disk in QEMU, without KVM, until the guest powers off, and return what its serial console said.

    A disk from which nothing boots ends the machine at once and says nothing.

    Args:
        disk: raw, qcow2 or another format; the guest may write to it, as on a real machine.
        format: the disk's format, never probed.
        until: the machine is stopped as soon as the console has said this.
        memory: bytes.
        user: uid and gid that QEMU runs as, without further groups. The caller must be root.

    Raises:
        ToolMissing, ToolFailed (QEMU could not start), ToolTimedOut (the message ends with the console's last line)
    """
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile() as errors:
        with _machine(_argv(disk, format=format, memory=memory), user=user, errors=errors) as machine:
            console = _console(machine, until=until, deadline=deadline)
            if until is not None and until in console:
                return console
            if not _ends(machine, deadline=deadline):
                raise ToolTimedOut(f"{_QEMU} was killed after {seconds:g} s; the console ended with {_last_line(console)!r}")
        if machine.returncode != 0:
            errors.seek(0)
            raise ToolFailed(f"{_QEMU} failed: {errors.read().decode(errors='replace')[-_ERRORS_LIMIT:]}")
    return console


# --------------------------------------------------------------------------------------------------------------- the code


def _program(*, text: int, stays: bool) -> bytes:
    """The program, in 16-bit real mode. It writes what begins at the address ``text``, up to a zero byte, and powers off."""
    writing = _writing(text=text)
    return writing + (_staying(_LOAD_ADDRESS + len(writing)) if stays else b"") + _powering_off()


def _writing(*, text: int) -> bytes:
    """Writes the text, and goes on with what follows.

    COM1's registers are those of the 16550.
    """
    return b"".join(
        (
            b"\xfa",                                # cli              nothing shall interrupt us
            b"\x31\xc0",                            # xor ax, ax
            b"\x8e\xd8",                            # mov ds, ax       the text is addressed from 0
            b"\x8e\xd0",                            # mov ss, ax
            b"\xbc" + _word(_LOAD_ADDRESS),         # mov sp, 0x7c00   the stack grows down from our code
            b"\xfc",                                # cld              lodsb goes forward
            # Set COM1 up: 115200 baud, 8 bits, no parity, 1 stop bit, no interrupts.
            b"\xba\xf9\x03\xee",                    # mov dx, 0x3f9; out dx, al    interrupts off (al is 0)
            b"\xba\xfb\x03\xb0\x80\xee",            # mov dx, 0x3fb; mov al, 0x80; out dx, al    divisor latch on
            b"\xba\xf8\x03\xb0\x01\xee",            # mov dx, 0x3f8; mov al, 1; out dx, al       divisor 1, low byte
            b"\xba\xf9\x03\xb0\x00\xee",            # mov dx, 0x3f9; mov al, 0; out dx, al       and high byte
            b"\xba\xfb\x03\xb0\x03\xee",            # mov dx, 0x3fb; mov al, 3; out dx, al       8n1, latch off
            # Write the text.
            b"\xbe" + _word(text),                  # mov si, text
            b"\xac",                                # next: lodsb      al = [si], si += 1
            b"\x84\xc0",                            # test al, al
            b"\x74\x11",                            # jz off           the zero byte ends the text
            b"\x88\xc4",                            # mov ah, al
            b"\xba\xfd\x03",                        # mov dx, 0x3fd    the line status
            b"\xec",                                # wait: in al, dx
            b"\xa8\x20",                            # test al, 0x20    is the transmitter empty?
            b"\x74\xfb",                            # jz wait
            b"\x88\xe0",                            # mov al, ah
            b"\xb2\xf8",                            # mov dl, 0xf8     dx = 0x3f8
            b"\xee",                                # out dx, al
            b"\xeb\xea",                            # jmp next         what follows is off
        )
    )  # fmt: skip


def _staying(address: int) -> bytes:
    """Waits until the power button was pressed (ACPI: PM1a_EN and PM1a_STS, bit 8, where QEMU's machines have them).

    The clock's interrupt, which the BIOS sees to, wakes it eighteen times a second; meanwhile the processor rests. Each time it
    ejects what it is asked to let go of: QEMU's specification "acpi_pci_hotplug" has the registers, and a q35's are at 0xcc0.
    Where nothing is at those ports, nothing happens.

    Args:
        address: at which this code is.
    """
    interrupted = b"".join(
        (
            b"\x50\x52",                            # push ax; push dx
            b"\xba\xf8\x03\xb0" + INTERRUPTED.encode() + b"\xee",  # mov dx, 0x3f8; mov al, '!'; out dx, al
            b"\x5a\x58\xcf",                        # pop dx; pop ax; iret
        )
    )  # fmt: skip
    skip = b"\xeb" + bytes([len(interrupted)])  # jmp over it
    ejecting = b"".join(
        (
            b"\x66\xb9\x20\x00\x00\x00",            # mov ecx, 32      so many buses
            b"\x66\x49",                            # next: dec ecx
            b"\xba\xd0\x0c\x66\x89\xc8\x66\xef",    # mov dx, 0xcd0; mov eax, ecx; out dx, eax     this bus
            b"\xb2\xc4\x66\xed",                    # mov dl, 0xc4; in eax, dx       the slots to be emptied
            b"\x66\x85\xc0\x74\x04",                # test eax, eax; jz none
            b"\xb2\xc8\x66\xef",                    # mov dl, 0xc8; out dx, eax      are
            b"\x66\x85\xc9\x75\xe4",                # none: test ecx, ecx; jnz next
        )
    )  # fmt: skip
    looking = b"".join(
        (
            b"\xba\x00\x06\xed",                    # mov dx, 0x600; in ax, dx
            b"\xf6\xc4\x01",                        # test ah, 1       was it pressed?
        )
    )  # fmt: skip
    again = bytes([0x100 - len(ejecting) - len(looking) - 4])
    return skip + interrupted + b"".join(
        (
            b"\xc7\x06\x08\x00" + _word(address + len(skip)),  # mov word [0x08], interrupted   the vector of NMI
            b"\xc7\x06\x0a\x00\x00\x00",            # mov word [0x0a], 0
            b"\xba\x02\x06\xb8\x00\x01\xef",        # mov dx, 0x602; mov ax, 0x100; out dx, ax    the button may tell
            b"\xfb\xf4",                            # wait: sti; hlt
            ejecting,
            looking,
            b"\x74" + again,                        # jz wait
        )
    )  # fmt: skip


def _powering_off() -> bytes:
    """ACPI's S5 (PM1a_CNT, SLP_TYP 0, SLP_EN) where QEMU's machines have it, then APM 1.2's "set power state" for others."""
    return b"".join(
        (
            b"\xba\x04\x06",                        # off: mov dx, 0x604
            b"\xb8\x00\x20",                        # mov ax, 0x2000
            b"\xef",                                # out dx, ax       ACPI S5; QEMU ends here
            b"\xb8\x01\x53\x31\xdb\xcd\x15",        # mov ax, 0x5301; xor bx, bx; int 0x15       APM: connect
            b"\xb8\x0e\x53\xb9\x02\x01\xcd\x15",    # mov ax, 0x530e; mov cx, 0x0102; int 0x15   APM: we speak 1.2
            b"\xb8\x07\x53\xbb\x01\x00",            # mov ax, 0x5307; mov bx, 1                  APM: all devices
            b"\xb9\x03\x00\xcd\x15",                # mov cx, 3; int 0x15                        off
            b"\xfa",                                # halt: cli        nothing could power us off
            b"\xf4",                                # hlt
            b"\xeb\xfc",                            # jmp halt
        )
    )  # fmt: skip


def _word(value: int) -> bytes:
    return struct.pack("<H", value)


def _partition_table(size: int) -> bytes:
    sectors = min(size // SECTOR - 1, 0xFFFFFFFF)
    if sectors <= 0:
        return bytes(64)
    # Active, type 0x83; the cylinder, head and sector fields say "use the block addresses".
    entry = struct.pack("<B3sB3sII", 0x80, b"\x00\x02\x00", 0x83, b"\xfe\xff\xff", 1, sectors)
    return entry.ljust(64, b"\0")


def _check_size(size: int, *, payload: int) -> None:
    if size < SECTOR or size % SECTOR:
        raise ValueError(f"{size} bytes are no whole number of sectors")
    if payload and PAYLOAD_OFFSET + payload > size:
        raise ValueError(f"{size} bytes have no room for a payload of {payload} bytes from byte {PAYLOAD_OFFSET} on")


def _beginning(size: int, *, payload: int) -> int:
    used = PAYLOAD_OFFSET + payload if payload else SECTOR
    return min(size, -(-used // SECTOR) * SECTOR)


def _payload(length: int) -> Iterator[bytes]:
    source = random.Random("underlay")  # the same bytes each time
    for start in range(0, length, _PIECE):
        yield source.randbytes(min(_PIECE, length - start))


# ------------------------------------------------------------------------------------------------------------ the machine


def _argv(disk: Path, *, format: str, memory: int) -> list[str]:  # noqa: A002
    # As JSON, so that no character of the path means anything to QEMU.
    node = {"driver": format, "node-name": "disk", "file": {"driver": "file", "filename": os.fspath(disk.absolute())}}
    return [
        _QEMU, "-nodefaults", "-no-user-config", "-accel", "tcg", "-M", "pc", "-m", f"{memory >> 20}M",
        "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=disk",
        "-display", "none", "-serial", "stdio",
        "-no-reboot", "-boot", "reboot-timeout=0",
    ]  # fmt: skip


@contextlib.contextmanager
def _machine(argv: list[str], *, user: int | None, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    groups = None if user is None else ()
    try:
        machine = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            user=user,
            group=user,
            extra_groups=groups,
        )
    except FileNotFoundError as error:
        raise ToolMissing(f"{argv[0]} is not installed", hint="install it: apt-get install qemu-system-x86") from error
    with machine:
        try:
            yield machine
        finally:
            machine.kill()  # does nothing to one that has ended and been waited for


def _console(machine: subprocess.Popen[bytes], *, until: str | None, deadline: float) -> str:
    """What the console says until its end, ``until`` or the deadline."""
    assert machine.stdout is not None
    console = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(machine.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            piece = os.read(machine.stdout.fileno(), 1 << 16)
            console += piece
            if not piece or (until is not None and until.encode() in console):
                break
            if len(console) > _CONSOLE_LIMIT:
                raise ToolFailed(f"the guest wrote more than {_CONSOLE_LIMIT} bytes to its console")
    return console.decode(errors="replace")


def _ends(machine: subprocess.Popen[bytes], *, deadline: float) -> bool:
    """Whether it ends by itself until the deadline; the end of its console comes a moment before."""
    try:
        machine.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:_LINE_LIMIT] if lines else ""
