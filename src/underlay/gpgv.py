"""gpgv: whether a text is signed by a key of the keyrings that are named. Bytes in, who signed out.

What gpgv returns says little: it is 0 for a key that has expired or been revoked too. So its status lines are read, one group
for each signature (GnuPG's doc/DETAILS). Of several signatures one good one is enough, as where a publisher changes keys,
unless another one was made by a known key of other bytes. Nobody's own keyring is ever asked.
"""

import base64
import binascii
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from underlay.errors import ConfigError, SignatureRefused
from underlay.files import open_regular
from underlay.run import Limits, failed, run_to_end

MAX_SIGNATURE = 64 << 10
"""Bytes of a detached signature; a dozen signatures take a tenth of it."""

_MAX_KEYRING = 64 << 20  # bytes; the keyring of all Debian developers has 5 MiB
_LIMITS = Limits(seconds=30, memory=1 << 30, cpu_seconds=20)
_STATUS = "[GNUPG:] "
_ARMOR = re.compile(rb"^-----BEGIN PGP ([A-Z ]+)-----[ \t\r]*$", re.MULTILINE)
_KEY_BLOCK = re.compile(
    rb"^-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t\r]*\n"
    rb"(?:[A-Za-z]+: [^\n]*\n)*[ \t\r]*\n"  # the armor's own headers, up to an empty line
    rb"([A-Za-z0-9+/=\s]*?)"
    rb"(?:^=[A-Za-z0-9+/]{4}[ \t\r]*\n)?"  # a checksum, which is not to be relied upon (RFC 9580, 6.1)
    rb"^-----END PGP PUBLIC KEY BLOCK-----[ \t\r]*$",
    re.MULTILINE,
)
_INLINE, _DETACHED = b"SIGNED MESSAGE", b"SIGNATURE"
_PUBLIC_KEY, _SIGNATURE = 6, 2  # packet types (RFC 9580, 5)
_WEAK = MappingProxyType({"1": "MD5", "2": "SHA-1", "3": "RIPEMD-160"})
# The numbers of hash algorithms (RFC 9580, 9.5) that no signature is to be made by any more.
_NO_SUCH_KEY = "9"  # as the reason of an ERRSIG


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Whose signature a text has.

    Attributes:
        key: fingerprint of the key that made it, which may be a subkey. primary: fingerprint of the key that this belongs to.
        name: the primary key's user ID.
    """

    key: str
    primary: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.primary})"


def is_inline(text: bytes) -> bool:
    """Whether a text begins as one with its signature in itself (RFC 9580, 7)."""
    return _kind(text) == _INLINE


def is_signature(content: bytes) -> bool:
    """Whether a content begins as a detached signature does, in either encoding. Many a server answers a web page instead."""
    return _kind(content) == _DETACHED or _packet_type(content) == _SIGNATURE


def verify_detached(signed: bytes, signature: bytes, *, keyrings: Sequence[Path], what: str) -> Signer:
    """Who signed ``signed``, by its detached signature, binary or armored.

    Args:
        keyrings: files of public keys, binary or armored; a key of any of them will do.
        what: how messages call what is signed.

    Raises:
        SignatureRefused: it is not signed by any of these keys, or by one that has expired or been revoked; or ``signature`` is
            none, or longer than `MAX_SIGNATURE`.
        ConfigError: no keyring is given, or one cannot be used. ToolMissing, ToolFailed, ToolTimedOut
    """
    if not is_signature(signature) or len(signature) > MAX_SIGNATURE:
        raise SignatureRefused(f"what was given as the signature of {what} is none", hint="check its URL")
    with _workplace(keyrings) as (directory, arguments):
        (directory / "signed").write_bytes(signed)
        (directory / "signature").write_bytes(signature)
        lines = _status([*arguments, directory / "signature", directory / "signed"])
    return _judged(lines, what, keyrings)


def verify_inline(text: bytes, *, keyrings: Sequence[Path], what: str) -> tuple[bytes, Signer]:
    """The part of a text that its in-line signature covers, and who signed it.

    What stands before, behind and between is not part of the answer.

    Raises:
        as `verify_detached`
    """
    if len(_ARMOR.findall(text)) != 2 or not is_inline(text):  # the message and its signature
        raise SignatureRefused(f"{what} is not one text with its signature in it", hint="check its URL")
    with _workplace(keyrings) as (directory, arguments):
        (directory / "message").write_bytes(text)
        lines = _status([*arguments, "--output", directory / "signed", directory / "message"])
        signer = _judged(lines, what, keyrings)
        return (directory / "signed").read_bytes(), signer


# ------------------------------------------------------------------------------------------------------------ asking gpgv


@contextmanager
def _workplace(keyrings: Sequence[Path]) -> Iterator[tuple[Path, list[str | Path]]]:
    """A private directory, and gpgv's name with the arguments that have it look at the keyrings and nowhere else."""
    if not keyrings:
        raise ConfigError(
            "no keyring says whose signature to trust", hint="name files of public keys as keyrings under [checksums]"
        )
    with tempfile.TemporaryDirectory(prefix="underlay-gpgv-") as name:
        directory = Path(name)
        (directory / "home").mkdir(mode=0o700)
        arguments: list[str | Path] = ["gpgv", "--status-fd", "1", "--homedir", directory / "home"]
        for number, keyring in enumerate(keyrings):
            copy = directory / f"keyring-{number}.gpg"
            copy.write_bytes(_keys(keyring))
            arguments += ["--keyring", copy]
        yield directory, arguments


def _status(argv: Sequence[str | Path]) -> list[str]:
    ended = run_to_end(argv, limits=_LIMITS)
    # Nothing but a line feed ends a line: a key's user ID may have what Python's text takes for the end of one as well.
    lines = [line.decode(errors="replace") for line in ended.output.split(b"\n")]
    told = [line.removeprefix(_STATUS) for line in lines if line.startswith(_STATUS)]
    if ended.status < 0 or not told:
        raise failed("gpgv", ended)
    return told


# ------------------------------------------------------------------------------------------------------ what its lines mean


def _judged(lines: Sequence[str], what: str, keyrings: Sequence[Path]) -> Signer:
    signatures = list(_signatures(lines))
    if not signatures:
        raise SignatureRefused(f"the signature of {what} cannot be read", hint="check its URL")
    known = [(signature, _refusal(signature, what)) for signature in signatures if _missing_key(signature) is None]
    good = [signature for signature, refusal in known if refusal is None]
    refusals = [refusal for _, refusal in known if refusal is not None]
    altered = [refusal for refusal in refusals if refusal.altered]
    if good and not altered:
        return _signer(good[0])
    if refusals:
        raise (altered or refusals)[0]
    raise _unknown([key for signature in signatures if (key := _missing_key(signature))], what, keyrings)


def _signatures(lines: Sequence[str]) -> Iterator[dict[str, str]]:
    """The status lines of each signature, by their keywords."""
    found: dict[str, str] | None = None
    for line in lines:
        keyword, _, rest = line.partition(" ")
        if keyword == "NEWSIG":
            if found is not None:
                yield found
            found = {}
        elif found is not None:
            found[keyword] = rest
    if found is not None:
        yield found


def _refusal(signature: dict[str, str], what: str) -> SignatureRefused | None:
    """Why a signature by a known key does not count; None when it does."""
    if rest := signature.get("BADSIG"):
        return SignatureRefused(
            f"the signature of {what} by {_named(rest)} is of other bytes",
            hint="the one or the other was altered, or is stale",
            altered=True,
        )
    if "ERRSIG" in signature:
        key, *_, reason = signature["ERRSIG"].split()[:6]
        return SignatureRefused(f"the signature of {what} by the key {key} cannot be checked (gpgv's reason {reason})")
    for keyword, why in (
        ("REVKEYSIG", "key was revoked"),
        ("EXPKEYSIG", "key has expired"),
        ("EXPSIG", "signature has expired"),
    ):
        if rest := signature.get(keyword):
            return SignatureRefused(
                f"{what} is signed by {_named(rest)}, whose {why}",
                hint="get the publisher's keyring as it is now, or a newer list",
            )
    if "GOODSIG" not in signature or len(signature.get("VALIDSIG", "").split()) < 10:
        return SignatureRefused(f"the signature of {what} could not be verified")
    if weak := _WEAK.get(signature["VALIDSIG"].split()[7]):
        return SignatureRefused(
            f"the signature of {what} is by {weak}, which can be forged", hint="ask the publisher for another"
        )
    return None


def _missing_key(signature: dict[str, str]) -> str | None:
    """The key that made a signature, by its fingerprint when that is told, when it is in no keyring; else None."""
    fields = signature.get("ERRSIG", "").split()
    if len(fields) < 6 or fields[5] != _NO_SUCH_KEY:
        return None
    return fields[6] if len(fields) > 6 and fields[6] != "-" else fields[0]


def _unknown(keys: Sequence[str], what: str, keyrings: Sequence[Path]) -> SignatureRefused:
    asked = ", ".join(os.fspath(keyring) for keyring in keyrings)
    signed, are = ("the key", "is") if len(keys) == 1 else ("the keys", "are")
    return SignatureRefused(
        f"{what} is signed by {signed} {', '.join(keys)}, which {are} in none of the keyrings: {asked}",
        hint="if that is the publisher's, name its keyring as one of the keyrings in the configuration",
    )


def _signer(signature: dict[str, str]) -> Signer:
    fields = signature["VALIDSIG"].split()
    return Signer(key=fields[0], primary=fields[9], name=signature["GOODSIG"].partition(" ")[2])


def _named(rest: str) -> str:
    key, _, name = rest.partition(" ")
    return f"{name} (key {key})"


# --------------------------------------------------------------------------------------------------------------- keyrings


def _keys(keyring: Path) -> bytes:
    """A keyring's keys as gpgv reads them, which knows no armor."""
    content = _read(keyring)
    if _packet_type(content) == _PUBLIC_KEY or content[8:12] == b"KBXf":
        return content
    keys = b"".join(_dearmored(keyring, block) for block in _KEY_BLOCK.findall(content))
    if _packet_type(keys) != _PUBLIC_KEY:
        raise ConfigError(f"the keyring {keyring} holds no public keys", hint="make it by: gpg --export KEY > keyring.gpg")
    return keys


def _dearmored(keyring: Path, block: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(block.split()), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"the armor of the keyring {keyring} is damaged", hint="get the keyring again") from error


def _read(keyring: Path) -> bytes:
    try:
        with os.fdopen(open_regular(Path(os.path.realpath(keyring))), "rb") as file:
            content = file.read(_MAX_KEYRING + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"the keyring {keyring} cannot be read: {why}", hint="correct keyrings in the configuration"
        ) from error
    if len(content) > _MAX_KEYRING:
        raise ConfigError(
            f"the keyring {keyring} is longer than {_MAX_KEYRING} bytes", hint="name one of the publisher's keys alone"
        )
    return content


def _kind(text: bytes) -> bytes | None:
    """What the armor that a text begins with says it is; None: it begins with none."""
    match = _ARMOR.match(text.lstrip())
    return match[1] if match else None


def _packet_type(content: bytes) -> int | None:
    """The type of the packet that a content begins with, in the old or the new form (RFC 9580, 4.2); None: it is text."""
    first = content[0] if content else 0
    if not first & 0x80:
        return None
    return first & 0x3F if first & 0x40 else (first & 0x3C) >> 2
