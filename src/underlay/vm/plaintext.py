"""What a guest has written, as text: without what a terminal would obey, or answer as if somebody had typed it.

For who reads what was written, and is at no serial line: there, the guest and the terminal are to understand each other.
Sequences as in ECMA-48: CSI, then the strings (OSC, DCS, SOS, PM, APC) up to their end, then all other escapes.
"""

import re
from codecs import IncrementalDecoder, getincrementaldecoder
from dataclasses import dataclass, field

_SEQUENCES = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)


def _decoder() -> IncrementalDecoder:
    return getincrementaldecoder("utf-8")("replace")


@dataclass(frozen=True, slots=True)
class PlainText:
    """Takes what was written a piece at a time. Of a sequence between two pieces, letters may be left, which do nothing."""

    _decoder: IncrementalDecoder = field(default_factory=_decoder)

    def of(self, piece: bytes) -> bytes:
        """The text of the next piece; a character is whole, or comes with the next."""
        return re.sub(_SEQUENCES, "", self._decoder.decode(piece)).encode()
