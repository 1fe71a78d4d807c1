"""The documents of a stream: an index of product lists, and product lists with their versions and items.

The format is Simple Streams 1.0 (``doc/README`` of the project simplestreams), as it is published at cloud-images.ubuntu.com,
images.maas.io and images.linuxcontainers.org. What we do not need is passed over, what has another kind than it must have is
refused, and a path never leaves the stream's own directory.
"""

from typing import Annotated, TypeVar
from urllib.parse import quote, unquote, urljoin

import msgspec

from underlay.errors import InvalidDigest, SourceRefused
from underlay.model import DIGEST_LENGTHS, Digest
from underlay.web import printable

DOWNLOADS, PRODUCTS = "image-downloads", "products:1.0"
_STRONG = frozenset({"sha256", "sha384", "sha512"})
_ARMOR = b"-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = b"\n-----BEGIN PGP SIGNATURE-----"
_SIZES = Annotated[int, msgspec.Meta(ge=0)]


class IndexEntry(msgspec.Struct, frozen=True):
    """One product list, as the index has it."""

    path: str
    datatype: str = ""
    format: str = PRODUCTS
    products: tuple[str, ...] | None = None


class Index(msgspec.Struct, frozen=True):
    """All product lists of a stream, by what they contain."""

    index: dict[str, IndexEntry]
    format: str = "index:1.0"


class Item(msgspec.Struct, frozen=True):
    """One file of a version; some streams write its size as text."""

    path: str | None = None
    ftype: str | None = None
    size: _SIZES | str | None = None
    md5: str | None = None
    sha256: str | None = None
    sha384: str | None = None
    sha512: str | None = None


class Version(msgspec.Struct, frozen=True):
    """One version of a product."""

    items: dict[str, Item] = {}


class Product(msgspec.Struct, frozen=True):
    """One product, with the tags that it is chosen by."""

    versions: dict[str, Version] = {}
    os: str = ""
    release: str = ""
    release_title: str = ""
    version: str = ""
    arch: str = ""
    variant: str = ""
    aliases: str = ""


class Products(msgspec.Struct, frozen=True):
    """A product list."""

    products: dict[str, Product]
    format: str = PRODUCTS
    content_id: str = ""


def read_index(text: bytes, *, what: str) -> Index:
    """The index in a document.

    Raises:
        SourceRefused
    """
    found = _decoded(text, Index, f"the index of {what}")
    if found.format != "index:1.0":
        raise SourceRefused(f"the index of {what} has the format {printable(found.format)}, not index:1.0")
    return found


def read_products(text: bytes, *, what: str) -> Products:
    """The product list in a document.

    Raises:
        SourceRefused
    """
    found = _decoded(text, Products, f"a product list of {what}")
    if found.format != PRODUCTS:
        raise SourceRefused(f"a product list of {what} has the format {printable(found.format)}, not {PRODUCTS}")
    return found


def is_signed(text: bytes) -> bool:
    """Whether a document has its signature in itself (RFC 9580, 7), whoever made it."""
    return text.lstrip().startswith(_ARMOR)


def without_signature(text: bytes) -> bytes:
    """A document without the signature that it may have in itself, which nobody has verified."""
    if not is_signed(text):
        return text
    _, _, body = text.lstrip().replace(b"\r\n", b"\n").partition(b"\n\n")
    return body.rpartition(_SIGNATURE)[0].replace(b"\n- ", b"\n")


def place(base: str, path: str, *, what: str) -> str:
    """Where a file of a stream is: below the base, whatever the path says.

    Raises:
        SourceRefused: the path names another place.
    """
    parts = unquote(path).split("/")
    if (
        not path
        or ":" in parts[0]
        or path.startswith("/")
        or ".." in parts
        or set(path) & set("\\?#")
        or not path.isprintable()
    ):
        raise SourceRefused(f"{what} has the path {printable(path)!r}, which is none below its base")
    return urljoin(base, quote(path, safe="/%:@+,;=~!$&'()*"))


def digests_of(item: Item, *, what: str) -> tuple[Digest, ...]:
    """The digests that a stream promises of a file, the strongest first.

    Raises:
        SourceRefused: one is none.
    """
    promised = {"sha512": item.sha512, "sha384": item.sha384, "sha256": item.sha256, "md5": item.md5}
    try:
        return tuple(Digest.parse(f"{name}:{value}") for name, value in promised.items() if value and name in DIGEST_LENGTHS)
    except InvalidDigest as error:
        raise SourceRefused(f"{what} has a digest that is none: {error}") from error


def is_strong(digest: Digest) -> bool:
    """Whether nobody can make other bytes with this digest."""
    return digest.algorithm in _STRONG


def size_of(item: Item, *, what: str) -> int | None:
    """Bytes of a file, when the stream says how many.

    Raises:
        SourceRefused
    """
    if item.size is None or isinstance(item.size, int):
        return item.size
    if not (item.size.isascii() and item.size.isdigit() and len(item.size) <= 18):
        raise SourceRefused(f"{what} has the size {printable(item.size)!r}, which is none")
    return int(item.size)


_Document = TypeVar("_Document", Index, Products)


def _decoded(text: bytes, kind: type[_Document], what: str) -> _Document:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise SourceRefused(f"{what} is not in the format of Simple Streams: {printable(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        looks_like = "a web page" if text.lstrip()[:1] == b"<" else "no JSON"
        raise SourceRefused(f"{what} is {looks_like}", hint="check the URL: streams/v1 must lie directly below it") from error
