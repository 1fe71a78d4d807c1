"""Whether a body still comes: bytes a second over a window, of the time that was spent waiting for them."""

import msgspec

from underlay.errors import SourceUnavailable


class Pace(msgspec.Struct):
    """The pace of one body. What the reader does between two pieces does not count against the server.

    Attributes:
        what, host: whose body it is, for messages.
        limit: bytes a second that are too few over ``window`` seconds; 0: any pace will do.
    """

    what: str
    host: str
    limit: int
    window: float
    _waited: float = 0.0
    _received: int = 0

    def check(self, received: int, waited: float) -> None:
        """Note that so many bytes came after so many seconds.

        Raises:
            SourceUnavailable: too few have come for too long.
        """
        self._received += received
        self._waited += waited
        if self._waited < self.window:
            return
        too_slow = self._received < self.limit * self._waited
        self._waited, self._received = 0.0, 0
        if too_slow:
            slow = f"it sends fewer than {self.limit} bytes a second for {self.window:g} s"
            raise SourceUnavailable(f"{self.what}: {self.host}: {slow}", hint="try again later")
