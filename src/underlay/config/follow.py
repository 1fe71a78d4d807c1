"""The ``[follow]`` table: the refs whose newest versions a refresh brings ahead of need."""

from collections.abc import Collection
from typing import Annotated

import msgspec

from underlay.config import values
from underlay.errors import InvalidRef
from underlay.model import ImageRef
from underlay.refs import parse_ref

_Count = Annotated[int, msgspec.Meta(ge=0)]


class FollowTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is followed, as it is written."""

    refs: list[str] = []
    cache: str | None = None
    keep: _Count = 1
    max_age: str | int = "1d"


class Follow(msgspec.Struct, frozen=True, kw_only=True):
    """The refs that are followed.

    Attributes:
        cache: the name of the cache that keeps them; None: the first.
        keep: how many older versions are held beside the newest.
        max_age: seconds for which a fetch takes what the last refresh found, instead of asking the source itself.
    """

    refs: tuple[ImageRef, ...] = ()
    cache: str | None = None
    keep: int = 1
    max_age: float = 86400.0


def follow_of(table: FollowTable, caches: Collection[str]) -> Follow:
    """What a table means, with each ref once.

    Args:
        caches: the names of those that are configured.

    Raises:
        WrongValue
    """
    if table.cache is not None and table.cache not in caches:
        known = ", ".join(caches)
        raise values.WrongValue("follow.cache", f"there is no cache {table.cache!r}", hint=f"configured caches: {known}")
    return Follow(
        refs=tuple({ref.canonical: ref for ref in map(_ref, table.refs)}.values()),
        cache=table.cache,
        keep=table.keep,
        max_age=values.duration(table.max_age, "follow.max_age"),
    )


def _ref(text: str) -> ImageRef:
    try:
        return parse_ref(text)
    except InvalidRef as error:
        raise values.WrongValue("follow.refs", str(error), hint=error.hint) from error
