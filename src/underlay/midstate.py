"""sha256 that can be put down in the middle and taken up again by another process.

hashlib does not give the state of a running digest away, and without it a scrub that has stopped would have to read an image
from its beginning. OpenSSL's ``SHA256_CTX`` has kept it in the open since its first version: eight words, the number of bits,
the bytes of a block that is not full. It is used through the very library that this Python hashes with, at the same speed
(measured: within a hundredth), and only once it was seen to give hashlib's answers. What is put down is the standard's own
value, the intermediate hash of FIPS 180-4 (6.2.2), so any implementation could go on from it.
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import msgspec

_BLOCK = 64
_WORDS = 8
_SPARE = (
    512  # bytes: the functions may be another library's of that name, whose context or digest is larger, until it was tried
)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A sha256 that was put down.

    Attributes:
        words: the intermediate hash, 64 hexadecimal digits. length: bytes that it has taken.
        rest: those at the end that fill no block, in hexadecimal.
    """

    words: str
    length: int
    rest: str


class _Context(ctypes.Structure):  # openssl/sha.h, SHA256state_st
    _fields_ = (
        ("words", ctypes.c_uint32 * _WORDS),
        ("bits_low", ctypes.c_uint32),
        ("bits_high", ctypes.c_uint32),
        ("block", ctypes.c_uint8 * _BLOCK),
        ("filled", ctypes.c_uint),
        ("digest_length", ctypes.c_uint),
        ("spare", ctypes.c_uint8 * _SPARE),
    )


@dataclass(frozen=True, slots=True)
class _Library:
    init: Callable[..., int]
    update: Callable[..., int]
    final: Callable[..., int]


@dataclass(slots=True)
class Sha256:
    """A sha256 by OpenSSL whose state can be read. Not safe to share between threads; `new` and `resumed` make one."""

    library: _Library
    context: _Context = field(default_factory=_Context)

    def update(self, content: memoryview | bytes, /) -> None:
        """Take the next bytes; a memoryview must be writable, as a buffer is."""
        length = len(content)
        place = (ctypes.c_char * length).from_buffer(content) if isinstance(content, memoryview) else content
        self.library.update(ctypes.byref(self.context), place, length)  # without the interpreter's lock

    def digest(self) -> bytes:
        """The digest of all that came so far."""
        finished, digest = _Context.from_buffer_copy(self.context), ctypes.create_string_buffer(_SPARE)
        self.library.final(digest, ctypes.byref(finished))
        return digest.raw[: _WORDS * 4]

    def copy(self) -> "Sha256":
        """Another that goes on from here."""
        return Sha256(self.library, _Context.from_buffer_copy(self.context))

    def state(self) -> State:
        """What to put down."""
        context = self.context
        length = ((context.bits_high << 32) | context.bits_low) >> 3
        words = b"".join(word.to_bytes(4, "big") for word in context.words)
        return State(words=words.hex(), length=length, rest=bytes(context.block[: context.filled]).hex())


def new() -> Sha256 | None:
    """A new digest; None where this Python's OpenSSL does not let its state be read."""
    library = _library()
    if library is None:
        return None
    begun = Sha256(library)
    library.init(ctypes.byref(begun.context))
    return begun


def resumed(state: State) -> Sha256 | None:
    """The digest that was put down; None where it cannot be gone on from, or is none."""
    taken = new()
    if taken is None:
        return None
    try:
        words, rest = bytes.fromhex(state.words), bytes.fromhex(state.rest)
    except ValueError:
        return None
    if len(words) != 4 * _WORDS or state.length < 0 or len(rest) != state.length % _BLOCK:
        return None
    bits = (state.length - len(rest)) << 3
    context = taken.context
    context.words[:] = [int.from_bytes(words[start : start + 4], "big") for start in range(0, len(words), 4)]
    context.bits_low, context.bits_high = bits & 0xFFFFFFFF, (bits >> 32) & 0xFFFFFFFF
    taken.update(rest)
    return taken


@cache
def _library() -> _Library | None:
    """OpenSSL's functions, where they are and do as hashlib does."""
    extension = getattr(sys.modules.get("_hashlib"), "__file__", None)
    if extension is None:  # a Python with it built in: what the process has under these names may be anybody's
        return None
    try:
        found = ctypes.CDLL(extension)  # its libraries come along
        library = _Library(found.SHA256_Init, found.SHA256_Update, found.SHA256_Final)
    except (OSError, AttributeError):
        return None
    library.update.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)  # type: ignore[attr-defined]
    return library if _does_as_hashlib(library) else None


def _does_as_hashlib(library: _Library) -> bool:
    # Two blocks and a half, so that each field of the structure has a part in the answer.
    content = bytes(range(5 * _BLOCK // 2))
    ours = Sha256(library)
    library.init(ctypes.byref(ours.context))
    ours.update(content)
    is_as_told = ours.context.filled == len(content) % _BLOCK and ours.context.bits_low == len(content) * 8
    return is_as_told and ours.digest() == hashlib.sha256(content).digest()
