"""When what broke is tried again: so often without getting further, after growing pauses. Values in, decisions out."""

import msgspec

from underlay.errors import SourceUnavailable, UnderlayError


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and after which pauses.

    Attributes:
        attempts: how many in a row that get no further, the first among them.
        first_wait, longest_wait: seconds; each pause is twice as long as the one before.
    """

    attempts: int
    first_wait: float = 0.5
    longest_wait: float = 30.0


LEAST_PROGRESS = 64 << 10
"""Bytes that an attempt has to bring to have got further: a server that gives a few at a time would be asked for ever."""

NO_RETRIES = Retries(attempts=1)
"""Once, and no more."""


class Tries(msgspec.Struct):
    """How the attempts at one thing have gone so far."""

    retries: Retries
    _failures: int = 0
    _reached: int = 0

    def pause(self, error: UnderlayError, *, reached: int, chance: float) -> float | None:
        """Seconds to wait before the next attempt after this failure; None: there is none.

        Args:
            reached: bytes that have come; an attempt that brought `LEAST_PROGRESS` more starts the count anew.
            chance: from 0 to 1, drawn by the caller, which spreads the attempts of many.
        """
        if not error.transient:
            return None
        gets_further = reached >= self._reached + LEAST_PROGRESS
        self._failures = 1 if gets_further else self._failures + 1
        self._reached = reached if gets_further else self._reached
        if self._failures >= self.retries.attempts:
            return None
        wait = min(self.retries.longest_wait, self.retries.first_wait * 2.0 ** (self._failures - 1)) * (0.5 + chance / 2)
        asked = error.retry_after if isinstance(error, SourceUnavailable) else None
        if asked is not None and asked > self.retries.longest_wait:
            return None  # a server that says that it will take longer than we wait is not asked again in vain
        return max(wait, asked or 0.0)
