"""The caches of a conductor: classes that register themselves as their modules are imported, as Ironic's own do."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

LOG = logging.getLogger("ironic.drivers.modules.image_cache")
"""The logger of the module whose place is taken, so that its configured level and format hold."""

_cache_cleanup_list: list[tuple[int, type[Any]]] = []
"""Classes with their priorities, highest first; those of one priority in the order in which they came."""

_Class = TypeVar("_Class", bound=type[Any])


def cleanup(priority: int) -> Callable[[_Class], _Class]:
    """A class decorator: the class, which is made without arguments, is a cache that can be cleaned up.

    Args:
        priority: those of the highest give up their images first.
    """

    def register(cache: _Class) -> _Class:
        _cache_cleanup_list.append((priority, cache))
        _cache_cleanup_list.sort(reverse=True, key=lambda entry: entry[0])
        return cache

    return register


def registered() -> Iterator[tuple[int, Any]]:
    """The registered caches with their priorities, highest first; a cache that two classes describe alike comes once.

    In the place of one that cannot be made comes one that has nothing.
    """
    seen = set()
    for priority, kind in tuple(_cache_cleanup_list):
        cache = made(kind)
        key = _key(cache) or kind
        if key not in seen:
            seen.add(key)
            yield priority, cache


@dataclass(frozen=True, slots=True)
class NoCache:
    """What stands in for a cache that cannot be made: it has nothing."""

    master_dir: None = None

    def clean_up(self, amount: int | None = None) -> None:
        """There is nothing to do."""


def made(kind: type[Any]) -> Any:
    """A cache of a registered class; what keeps one from being made is logged."""
    try:
        return kind()
    except Exception:  # anybody's class; the others go on
        LOG.exception("The image cache %s cannot be made", kind.__name__)
        return NoCache()


@contextmanager
def logged(cache: Any) -> Iterator[None]:
    """Log what a clean-up of a cache fails with; whatever called for it goes on."""
    try:
        yield
    except Exception:
        LOG.exception("The image cache %s could not be cleaned up", cache.master_dir)


def _key(cache: Any) -> object:
    """What two caches have in common that are one: their directory, and the limits by which it is cleaned up."""
    limits = (getattr(cache, "_cache_size", None), getattr(cache, "_cache_ttl", None))
    is_one_of_many = cache.master_dir is None or None in limits
    return None if is_one_of_many else (os.path.realpath(cache.master_dir), *limits)
