"""A kernel that is none: it has the header of Linux's boot protocol (Documentation/arch/x86/boot.rst), so that a hypervisor
loads it with its command line and its ramdisk, and it writes both to the serial line and powers off."""

import struct

from underlay.testing.bootimage import PREFIX

RAMDISK_SEEN = "with a ramdisk"
_SETUP = 0x200  # the second sector, whose code is entered; the header lies in it
_CODE = 0x80  # in that sector, behind the header
_RAMDISK_SIZE, _COMMAND_LINE = 0x1C, 0x28  # where a loader writes these, in that sector (0x21c, 0x228)


def kernel_image() -> bytes:
    """The kernel: a boot sector, one sector of setup, and something to be loaded high."""
    setup = bytearray(512)
    setup[0:2] = b"\xeb" + bytes([_CODE - 2])  # jmp to the code
    struct.pack_into("<4sH", setup, 0x02, b"HdrS", 0x0206)  # the magic, and protocol 2.06
    setup[0x11] = 1  # LOADED_HIGH
    struct.pack_into("<I", setup, 0x14, 0x100000)  # code32_start
    struct.pack_into("<I", setup, 0x2C, 0x37FFFFFF)  # initrd_addr_max
    struct.pack_into("<I", setup, 0x38, 255)  # cmdline_size
    code = _program()
    assert len(code) <= len(setup) - _CODE
    setup[_CODE : _CODE + len(code)] = code
    boot = bytearray(512)
    boot[0x1F1] = 1  # setup_sects
    boot[0x1FE:] = b"\x55\xaa"
    return bytes(boot + setup) + bytes(4096)


def _program() -> bytes:
    texts = (f"{PREFIX} kernel: ".encode() + b"\0", f"; {RAMDISK_SEEN}\r\n".encode() + b"\0")
    body = _body(0, 0, 0)
    write = _CODE + len(body)
    first = write + len(_WRITE)
    return _body(write, first, first + len(texts[0])) + _WRITE + b"".join(texts)


def _body(write: int, first: int, second: int) -> bytes:
    code = b"".join(
        (
            b"\xfa\xfc\x8c\xc8\x8e\xd8",                                    # cli; cld; mov ax, cs; mov ds, ax
            b"\xba\xfb\x03\xb0\x03\xee",                                    # the line is 8n1
            b"\x8c\xd8\x8e\xc0\xbf" + _word(first) + _CALL,                 # es:di = the first text
            b"\x66\xa1" + _word(_COMMAND_LINE) + b"\x89\xc7\x83\xe7\x0f",   # mov eax, [command line]; di = its low four bits
            b"\x66\xc1\xe8\x04\x8e\xc0" + _CALL,                            # shr eax, 4; mov es, ax
            b"\x66\x83\x3e" + _word(_RAMDISK_SIZE) + b"\x00\x74\x0a",       # cmp dword [ramdisk size], 0; jz off
            b"\x8c\xd8\x8e\xc0\xbf" + _word(second) + _CALL,                # es:di = the second text
            b"\xba\x04\x06\xb8\x00\x20\xef\xfa\xf4",                        # off: ACPI's S5; cli; hlt
        )
    )  # fmt: skip
    at = 0
    while (at := code.find(_CALL, at)) >= 0:  # calls are relative to what follows them
        code = code[:at] + b"\xe8" + _word((write - (_CODE + at + 3)) & 0xFFFF) + code[at + 3 :]
    return code


_CALL = b"\xe8\xca\x11"
_WRITE = b"".join(
    (
        b"\x26\x8a\x05\x84\xc0\x74\x12\x47\x88\xc4",  # next: mov al, es:[di]; test al, al; jz done; inc di; mov ah, al
        b"\xba\xfd\x03\xec\xa8\x20\x74\xfb",          # mov dx, 0x3fd; wait: in al, dx; test al, 0x20; jz wait
        b"\x88\xe0\xb2\xf8\xee\xeb\xe7\xc3",          # mov al, ah; mov dl, 0xf8; out dx, al; jmp next; done: ret
    )
)  # fmt: skip


def _word(value: int) -> bytes:
    return struct.pack("<H", value)
