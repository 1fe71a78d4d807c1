"""A guest that never rests: it counts on its serial line, writes to memory all the time, and what it counts to its disk.

So it can be seen to go on elsewhere, a copy of its memory has something to catch up with, and its disk something that its image
does not. It is one boot sector, assembled below, in 16-bit real mode.
"""

import struct
from pathlib import Path

from underlay.testing.bootimage import PREFIX, SECTOR

COUNTED_AT = 8 * SECTOR
"""Where on its disk is what it has counted, every eighth time: two bytes, the lower first."""

DIRTIED = 448 << 10
"""Bytes of memory, each page of which it changes 18 times a second."""

_SIGNATURE = b"\x55\xaa"
_CODE = b"".join(
    (
        b"\xfa\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c\xfc",  # cli; xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00; cld
        b"\x88\x16\x00\x05",                  # mov [0x500], dl          the disk, as the BIOS counts it
        b"\xba\xfb\x03\xb0\x03\xee",          # mov dx, 0x3fb; mov al, 3; out dx, al    the line is 8n1
        b"\xbe\x99\x7c",                      # mov si, text
        b"\xac\x84\xc0\x74\x05",              # next: lodsb; test al, al; jz booted
        b"\xe8\x59\x00\xeb\xf6",              # call put; jmp next
        b"\xc7\x06\x04\x05\x00\x00",          # booted: mov word [0x504], 0             the count
        b"\xfb\xf4",                          # tick: sti; hlt           the BIOS's clock wakes it 18 times a second
        b"\xb8\x00\x20",                      # mov ax, 0x2000
        b"\x8e\xc0\x8b\x1e\x04\x05",          # page: mov es, ax; mov bx, [0x504]
        b"\x26\x89\x1e\x00\x00",              # mov es:[0], bx
        b"\x05\x00\x01\x3d\x00\x90\x72\xed",  # add ax, 0x100; cmp ax, 0x9000; jb page
        b"\xff\x06\x04\x05",                  # inc word [0x504]
        b"\xb9\x04\x00\x8b\x1e\x04\x05",      # mov cx, 4; mov bx, [0x504]
        b"\xc1\xc3\x04\x88\xd8\x24\x0f",      # digit: rol bx, 4; mov al, bl; and al, 15
        b"\x3c\x0a\x72\x02\x04\x07\x04\x30",  # cmp al, 10; jb small; add al, 7; small: add al, '0'
        b"\xe8\x1c\x00\xe2\xec",              # call put; loop digit
        b"\xb0\x0a\xe8\x15\x00",              # mov al, 10; call put
        b"\xf6\x06\x04\x05\x07\x75\xbd",      # test byte [0x504], 7; jnz tick
        b"\xbe\x89\x7c\x8a\x16\x00\x05",      # mov si, packet; mov dl, [0x500]
        b"\xb8\x00\x43\xcd\x13\xeb\xaf",      # mov ax, 0x4300; int 0x13; jmp tick      INT 13h, extended write
        b"\x88\xc4\xba\xfd\x03",              # put: mov ah, al; mov dx, 0x3fd
        b"\xec\xa8\x20\x74\xfb",              # wait: in al, dx; test al, 0x20; jz wait
        b"\x88\xe0\xb2\xf8\xee\xc3",          # mov al, ah; mov dl, 0xf8; out dx, al; ret
        struct.pack("<BBHHHQ", 16, 0, 1, 0x504, 0, COUNTED_AT // SECTOR),  # packet: one sector from 0x504
        f"{PREFIX} and counts\n".encode() + b"\0",
    )
)  # fmt: skip


def write_raw(path: Path, *, size: int, payload: bytes = b"") -> None:
    """Write a sparse raw image from which it boots, with something else in its second 64 KiB."""
    with path.open("wb") as file:
        file.write(_CODE.ljust(SECTOR - len(_SIGNATURE), b"\0") + _SIGNATURE)
        file.truncate(size)
        file.seek(1 << 16)
        file.write(payload)


def counts(console: str) -> list[int]:
    """What it has counted so far, in the order in which it did; the last line may be half written."""
    _, _, counted = console.partition("counts\n")
    return [int(line, 16) for line in counted.split("\n")[:-1] if len(line) == 4]
