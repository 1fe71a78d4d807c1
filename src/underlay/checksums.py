"""Checksums as people write them, and the files that list them: text in, digests out. No I/O.

A file of checksums holds one checksum alone, or a line for each file as ``sha256sum`` writes it, with or without ``--tag``:
``HEX  NAME``, ``HEX *NAME``, ``ALGORITHM (NAME) = HEX``. A line that begins with ``#`` says nothing.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from underlay.errors import InvalidDigest
from underlay.model import DIGEST_LENGTHS, Digest

_BY_LENGTH = {length: algorithm for algorithm, length in DIGEST_LENGTHS.items()}
_PLAIN = re.compile(r"([0-9A-Fa-f]+)\s[ *]?(.*\S)\s*")
_TAGGED = re.compile(r"([A-Za-z0-9-]+)\s*\((.*)\)\s*=\s*([0-9A-Fa-f]+)\s*")


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
    """Whether what stands in a checksum's place is the URL of a file of checksums."""
    return checksum.strip().lower().startswith(("http://", "https://"))


def name_in_url(url: str) -> str:
    """The file name at the end of an image's URL, which a file of checksums lists it by."""
    return urlsplit(url).path.rpartition("/")[2]


def find_checksum(text: str, name: str) -> Digest:
    """The checksum of a file in a file of checksums: of several algorithms the one with the most digits.

    Args:
        name: as in the URL of the file. Only this very name is found: neither a pattern nor the end of a path.

    Raises:
        InvalidDigest: it lists no such file.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) == 1 and not re.search(r"\s", lines[0]):
        return parse_checksum(lines[0])
    found = [digest for listed, digest in _listed(lines) if listed in (name, unquote(name))]
    if not found:
        raise InvalidDigest(f"the file of checksums does not list {name!r}", hint="check its URL and the image's")
    return max(found, key=lambda digest: len(digest.hex))


def _listed(lines: list[str]) -> Iterator[tuple[str, Digest]]:
    """The names and checksums of all lines that hold both."""
    for line in lines:
        if match := _TAGGED.fullmatch(line):
            algorithm, name, digits = match[1].lower().replace("-", ""), match[2], match[3]
            if DIGEST_LENGTHS.get(algorithm) == len(digits):
                yield name, Digest(algorithm, digits.lower())
        elif (match := _PLAIN.fullmatch(line)) and len(match[1]) in _BY_LENGTH:
            yield match[2], Digest(_BY_LENGTH[len(match[1])], match[1].lower())
