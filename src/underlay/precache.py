"""Pre-caching: images made present before they are needed, several at once, and what came of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from underlay.cache import Ensured
from underlay.errors import UnderlayError, UnknownScheme
from underlay.model import BaseImage, ImageRef
from underlay.refs import parse_ref, shown
from underlay.threads import each


@dataclass(frozen=True, slots=True)
class Precached:
    """What came of pre-caching one image.

    Attributes:
        outcome: cached (it was fetched), existing, unsupported (no source serves it) or error.
    """

    ref: str
    outcome: str
    image: BaseImage | None = None
    error: UnderlayError | None = None


def precache(refs: Sequence[str | ImageRef], fetch: Callable[[ImageRef], Ensured], *, jobs: int) -> list[Precached]:
    """Fetch images, ``jobs`` at once, in their order; one that fails does not keep the others."""
    return each(lambda ref: _precache(ref, fetch), refs, threads=max(1, jobs))


def _precache(ref: str | ImageRef, fetch: Callable[[ImageRef], Ensured]) -> Precached:
    told = shown(str(ref))
    try:
        ref = parse_ref(ref) if isinstance(ref, str) else ref
        told = str(ref)
        ensured = fetch(ref)
    except UnknownScheme as error:
        return Precached(told, "unsupported", error=error)
    except UnderlayError as error:
        return Precached(told, "error", error=error)
    return Precached(told, "cached" if ensured.reason.code == "fetched" else "existing", image=ensured.image)
