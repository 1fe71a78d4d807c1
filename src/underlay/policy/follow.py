"""Which versions of a followed ref are held in a cache, and which are let go. Facts in, decisions out; no I/O.

What counts is what is here: a version that was refused, or never published, or has been removed since, keeps no older one out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from underlay.model import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedVersion:
    """A version that a followed ref has meant.

    Attributes:
        id: its version id; None when nothing tells it.
        is_here: its image is in the cache, or would be after the fetch that is planned.
        name: of that image; None when there is none yet.
        held: the names that are held for the ref because of this version.
    """

    id: str | None
    is_here: bool = False
    name: str | None = None
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldVerdict:
    """What becomes of one version: its image is held, or let go so that a prune may take it; and why."""

    version: FollowedVersion
    holds: bool
    reason: Reason


def plan_holds(versions: Sequence[FollowedVersion], *, keep: int) -> list[HoldVerdict]:
    """The verdicts on the versions of one ref, newest first; one that is neither here nor held has none.

    Args:
        versions: newest last. keep: how many are held beside the newest of those that are here.
    """
    verdicts = []
    newer = 0  # versions that are here and newer than the one in hand
    for version in reversed(versions):
        if not version.is_here:
            verdict = _let_go(version, Reason("evicted", "it is in the cache no more")) if version.held else None
        elif newer == 0:
            verdict = HoldVerdict(version=version, holds=True, reason=Reason("newest", "the newest version that is here"))
        elif newer <= keep:
            verdict = HoldVerdict(version=version, holds=True, reason=Reason("kept-old", f"older versions are kept: {keep}"))
        else:
            verdict = _let_go(version, Reason("superseded", f"newer versions are here: {newer}; older ones are kept: {keep}"))
        newer += version.is_here
        verdicts += [verdict] if verdict is not None and (verdict.holds or version.held) else []
    return verdicts


def plan_unfollow(names: Sequence[str]) -> list[HoldVerdict]:
    """The verdicts on the images that are held for a ref which is followed no more."""
    reason = Reason("unfollowed", "its ref is followed no more")
    return [_let_go(FollowedVersion(id=None, is_here=True, name=name, held=(name,)), reason) for name in names]


def _let_go(version: FollowedVersion, reason: Reason) -> HoldVerdict:
    return HoldVerdict(version=version, holds=False, reason=reason)
