"""Which file of a stream a ref means: one product, the greatest of its versions, one item. No I/O."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from underlay.errors import ImageNotFound, SourceRefused
from underlay.sources.simplestreams.documents import Item, Product, Version
from underlay.web import printable

# The disk images of virtual machines, the most usual first: Ubuntu's, CirrOS's and LXD's names for them.
DISKS = ("disk1.img", "disk.img", "disk-kvm.img", "uefi1.img")
_SHOWN = 5  # names that a message lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a ref asks of a stream.

    Attributes:
        product: its whole name, or None: then os, release and arch tell, in lower case.
        ftype: the kind of file; None: a virtual machine's disk image.
    """

    product: str | None = None
    os: str = ""
    release: str = ""
    arch: str = ""
    ftype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The file that is meant.

    Attributes:
        listed: which list had its product, by its place among those that were read.
    """

    listed: int
    product: str
    version: str
    item: Item


def wanted_of(text: str) -> Wanted:
    """What stands behind the ``#`` of a ref, as `underlay.refs` lets it pass."""
    if text.startswith("product="):
        product, _, ftype = text.removeprefix("product=").partition(";ftype=")
        return Wanted(product=product, ftype=ftype or None)
    os, release, arch, *kind = text.split(":")
    return Wanted(os=os, release=release, arch=arch, ftype=kind[0] if kind else None)


def choose(lists: Sequence[Mapping[str, Product]], wanted: Wanted, *, what: str) -> Chosen:
    """The file that is meant in some product lists.

    Raises:
        ImageNotFound: there is no such product, or none of its versions has such a file; the hint lists near ones.
        SourceRefused: several are meant; the hint lists them.
    """
    found = _plain([(number, name, one) for number, products in enumerate(lists) for name, one in _meant(products, wanted)])
    if not found:
        raise ImageNotFound(f"{what}: the stream has no such product", hint=_near(lists, wanted))
    if len(found) > 1:
        names = _listed([name for _, name, _ in found])
        raise SourceRefused(f"{what} means {len(found)} products", hint=f"write #product=NAME with one of {names}")
    [(number, name, product)] = found
    version, item = _newest(product, wanted, what)
    return Chosen(listed=number, product=name, version=version, item=item)


def _meant(products: Mapping[str, Product], wanted: Wanted) -> list[tuple[str, Product]]:
    if wanted.product is not None:
        return [(wanted.product, products[wanted.product])] if wanted.product in products else []
    return [(name, product) for name, product in products.items() if _is_meant(product, wanted)]


def _is_meant(product: Product, wanted: Wanted) -> bool:
    if (product.os.lower(), product.arch.lower()) != (wanted.os, wanted.arch):
        return False
    return wanted.release in _releases(product)


def _releases(product: Product) -> set[str]:
    """Everything that a product's release is called, in lower case."""
    names = (product.version, product.release, product.release_title, *product.aliases.split(","))
    return {name.strip().lower() for name in names if name.strip()}


def _plain(found: list[tuple[int, str, Product]]) -> list[tuple[int, str, Product]]:
    """Of several variants of a product, the plain one, where there is one."""
    plain = [one for one in found if one[2].variant in ("", "default")]
    return plain if len(plain) == 1 else found


def _newest(product: Product, wanted: Wanted, what: str) -> tuple[str, Item]:
    """The greatest version that has the file: their names sort as text, and one that is still being made lacks files."""
    for version in sorted(product.versions, reverse=True):
        if found := _items(product.versions[version], wanted):
            if len(found) > 1:
                hint = f"write the file type as one of {_listed(sorted(found))}"
                raise SourceRefused(f"{what} means {len(found)} files of version {printable(version)}", hint=hint)
            return version, next(iter(found.values()))
    has = sorted({name for version in product.versions.values() for name in _types(version)})
    kind = wanted.ftype or "disk image"
    raise ImageNotFound(f"{what}: no version of the product has a {kind}", hint=f"it has {_listed(has)}" if has else None)


def _items(version: Version, wanted: Wanted) -> dict[str, Item]:
    for kind in DISKS if wanted.ftype is None else (wanted.ftype,):
        found = {name: item for name, item in version.items.items() if item.path and kind in (name, item.ftype)}
        if found:
            return {kind: found[kind]} if kind in found else found
    return {}


def _types(version: Version) -> set[str]:
    return {item.ftype or name for name, item in version.items.items() if item.path}


def _near(lists: Sequence[Mapping[str, Product]], wanted: Wanted) -> str:
    every = [one for products in lists for one in products.items()]
    if wanted.product is not None:
        known, text = [name for name, _ in every], wanted.product
    else:
        known = [f"{one.os}:{one.version or one.release}:{one.arch}".lower() for _, one in every]
        text = f"{wanted.os}:{wanted.release}:{wanted.arch}"
    near = difflib.get_close_matches(text, sorted(set(known)), n=_SHOWN, cutoff=0.5)
    return f"it has {_listed(near or sorted(set(known)))}" if known else "it lists no images at all"


def _listed(names: Sequence[str]) -> str:
    shown = [re.sub(r"\s", "", printable(name)) for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
