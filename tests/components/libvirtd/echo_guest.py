"""A guest that writes a line to its serial line and then sends back what is typed to it, in one boot sector."""

from pathlib import Path

from underlay.testing.bootimage import PREFIX, SECTOR, SMALLEST

GREETING = f"{PREFIX} and listens"
_LOAD_ADDRESS, _TEXT = 0x7C00, 57

_CODE = b"".join(
    (
        b"\xfa\x31\xc0\x8e\xd8\xfc",                  # cli; xor ax, ax; mov ds, ax; cld
        b"\xba\xfb\x03\xb0\x03\xee",                  # mov dx, 0x3fb; mov al, 3; out dx, al: 8n1
        b"\xbe" + (_LOAD_ADDRESS + _TEXT).to_bytes(2, "little"),  # mov si, the greeting
        b"\xac\x84\xc0\x74\x05",                      # next: lodsb; test al, al; jz echo
        b"\xe8\x12\x00\xeb\xf6",                      # call write; jmp next
        b"\xba\xfd\x03\xec\xa8\x01\x74\xf8",          # echo: mov dx, 0x3fd; in al, dx; test al, 1; jz echo
        b"\xb2\xf8\xec\xe8\x02\x00\xeb\xf0",          # mov dl, 0xf8; in al, dx; call write; jmp echo
        b"\x88\xc4\xba\xfd\x03\xec\xa8\x20\x74\xfb",  # write: mov ah, al; mov dx, 0x3fd; in al, dx; test al, 0x20; jz
        b"\x88\xe0\xb2\xf8\xee\xc3",                  # mov al, ah; mov dl, 0xf8; out dx, al; ret
    )
)  # fmt: skip


def write_echo_image(path: Path) -> None:
    """Write a raw image of it."""
    assert _TEXT == len(_CODE)
    text = f"{GREETING}\r\n".encode() + b"\0"
    sector = (_CODE + text).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
    with path.open("wb") as file:
        file.write(sector)
        file.truncate(SMALLEST)
