"""Following refs: the newest version is here ahead of need, and pins hold it and some older ones.

The pins of a ref have a holder of its own. They move only once a new version is published: it is pinned first, and what is
older than what is kept is let go after that, so that a prune may take it. Nothing is removed here.
"""

from underlay.following.moves import Refreshed, each, look, refresh
from underlay.following.unfollow import look_unfollowed, unfollow
from underlay.following.versions import Following, holder_of

__all__ = ["Following", "Refreshed", "each", "holder_of", "look", "look_unfollowed", "refresh", "unfollow"]
