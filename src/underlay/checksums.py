"""Checksums as people write them, and the files that list them: text in, digests out. No I/O.

A list of checksums holds one checksum alone, or a line for each file as ``sha256sum`` writes it, with or without ``--tag``, and
as the BSDs' ``sha256`` and ``openssl dgst`` do: ``HEX  NAME``, ``HEX *NAME``, ``ALGORITHM (NAME) = HEX``. GNU's tools begin a
line by a backslash when its name has escapes (coreutils manual, md5sum). A line that begins with ``#`` says nothing. Of a text
with its signature in it only what is signed is read, and the signature is somebody else's to verify.
"""

import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from underlay.errors import InvalidDigest
from underlay.model import DIGEST_LENGTHS, Digest

_BY_LENGTH = {length: algorithm for algorithm, length in DIGEST_LENGTHS.items()}
_PLAIN = re.compile(r"(\\?)([0-9A-Fa-f]+)(?: \*|[ \t]+)(.*\S)")
_TAGGED = re.compile(r"(\\?)([A-Za-z0-9-]+) *\((.*)\) *= *([0-9A-Fa-f]+)")
_ESCAPES = MappingProxyType({r"\\": "\\", r"\n": "\n", r"\r": "\r"})
_NO_NAMES = frozenset({"-", "stdin"})  # what sha256sum and openssl call their standard input
_BLANKS = " \t\r"  # not every white space of Unicode: a name may have it
_SIGNED, _SIGNATURE = "-----BEGIN PGP SIGNED MESSAGE-----", "-----BEGIN PGP SIGNATURE-----"
_MARK = "\ufeff"  # some editors put it before a text in UTF-8


def algorithm_of(checksum: str, *, algorithm: str | None = None) -> str:
    """The algorithm of a checksum: the one that is given, else the one that it begins with, else the one of its length.

    Raises:
        InvalidDigest: that is none that we know.
    """
    prefix, colon, digits = checksum.strip().rpartition(":")
    named = (algorithm or (prefix if colon else "")).strip().lower()
    if named in DIGEST_LENGTHS:
        return named
    if named:
        raise InvalidDigest(f"{named!r} is no algorithm of checksums", hint=f"use one of {', '.join(DIGEST_LENGTHS)}")
    if len(digits) in _BY_LENGTH:
        return _BY_LENGTH[len(digits)]
    raise InvalidDigest(f"{checksum!r} is as long as no checksum that we know", hint="write ALGORITHM:HEX")


def parse_checksum(checksum: str, *, algorithm: str | None = None) -> Digest:
    """A checksum in any case, with or without its algorithm before it.

    Args:
        algorithm: comes before what the checksum says itself.

    Raises:
        InvalidDigest: an unknown algorithm, or digits that are not its.
    """
    digits = checksum.strip().rpartition(":")[2]
    return Digest.parse(f"{algorithm_of(checksum, algorithm=algorithm)}:{digits}")


def is_checksum_url(checksum: str) -> bool:
    """Whether what stands in a checksum's place is the URL of a list of checksums."""
    return checksum.strip().lower().startswith(("http://", "https://"))


def name_in_url(url: str) -> str:
    """The file name at the end of an image's URL, which a list of checksums lists it by."""
    return urlsplit(url).path.rpartition("/")[2]


def find_checksum(text: str, name: str, *, what: str = "the list of checksums") -> Digest:
    """The checksum of a file in a list of checksums: of several algorithms the one with the most digits.

    A file of one checksum that names no file is taken for any.

    Args:
        name: as in the URL of the file; the list may have it as it is quoted there, or not quoted. Only this very name is
            found: neither a pattern nor the end of a path. A ``./`` before it does not matter.
        what: how messages call the list of checksums.

    Raises:
        InvalidDigest: it lists no such file, or lists it twice with digests that disagree.
    """
    lines = _lines(text)
    if len(lines) == 1 and not re.search(r"\s", lines[0]):
        return parse_checksum(lines[0])
    listed = list(_listed(lines))
    if len(lines) == 1 and listed and listed[0][0] in _NO_NAMES:
        return listed[0][1]
    found = {digest for listed_name, digest in listed if listed_name in (name, unquote(name))}
    if not found:
        raise _absent(what, name, listed)
    if len({digest.algorithm for digest in found}) < len(found):
        raise InvalidDigest(f"{what} lists {name!r} twice, with digests that disagree", hint="ask its publisher which is right")
    return max(found, key=lambda digest: len(digest.hex))


def _absent(what: str, name: str, listed: Sequence[tuple[str, Digest]]) -> InvalidDigest:
    if not listed:
        return InvalidDigest(f"{what} lists no checksums at all", hint="check its URL: many servers answer a web page instead")
    others = f"it lists {listed[0][0][:80]!r}" + (f" and {len(listed) - 1} more" if len(listed) > 1 else "")
    return InvalidDigest(f"{what} does not list {name!r}", hint=f"check its URL and the image's: {others}")


def _lines(text: str) -> list[str]:
    """The lines that say something. They end where sha256sum ends them: a name may have any other separator of Unicode's."""
    lines = [line.strip(_BLANKS) for line in text.removeprefix(_MARK).split("\n")]
    return [line for line in _signed(lines) if line and not line.startswith("#")]


def _signed(lines: Sequence[str]) -> Sequence[str]:
    """What an in-line signature covers, its escapes undone; of another text, all (RFC 9580, 7)."""
    first = next((number for number, line in enumerate(lines) if line), 0)
    if not lines[first:] or lines[first] != _SIGNED:
        return lines
    after_headers = next((number for number, line in enumerate(lines) if number > first and not line), len(lines))
    signed = lines[after_headers:]
    end = signed.index(_SIGNATURE) if _SIGNATURE in signed else len(signed)
    return [line.removeprefix("- ") for line in signed[:end]]


def _listed(lines: Sequence[str]) -> Iterator[tuple[str, Digest]]:
    """The names and checksums of all lines that hold both."""
    for line in lines:
        if match := _TAGGED.fullmatch(line):
            escaped, algorithm, name, digits = match[1], _tag(match[2]), match[3], match[4]
        elif match := _PLAIN.fullmatch(line):
            escaped, algorithm, name, digits = match[1], _BY_LENGTH.get(len(match[2]), ""), match[3], match[2]
        else:
            continue
        plain = _unescaped(name) if escaped else name
        if plain is not None and DIGEST_LENGTHS.get(algorithm) == len(digits):
            yield plain.removeprefix("./"), Digest(algorithm, digits.lower())


def _tag(algorithm: str) -> str:
    """An algorithm as we call it: SHA-256 and OpenSSL's SHA2-256 are sha256."""
    return algorithm.lower().replace("sha2-", "sha").replace("-", "")


def _unescaped(name: str) -> str | None:
    """A name whose escapes are undone; None when it has one that GNU's tools do not write."""
    parts = re.findall(r"\\.?|[^\\]+", name)
    if any(part.startswith("\\") and part not in _ESCAPES for part in parts):
        return None
    return "".join(_ESCAPES.get(part, part) for part in parts)
