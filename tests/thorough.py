"""How thorough a test is: as CI has time for it, or more with ``UNDERLAY_LONG_TESTS=1``."""

import os

LONG = "UNDERLAY_LONG_TESTS"


def thorough(usual: int, long: int) -> int:
    """A number of examples, or of steps between two: the usual one, or that of who has the time."""
    return long if os.environ.get(LONG) else usual
