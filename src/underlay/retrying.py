"""The pause before what broke is tried again, told to the observer."""

import time
from typing import TYPE_CHECKING

from underlay import later
from underlay.contracts import Observer
from underlay.errors import SourceError
from underlay.model import Event, Level
from underlay.policy.retry import Tries

if TYPE_CHECKING:
    import random
else:
    random = later.module("random")  # nothing has to be tried again, as a rule


def pause(tries: Tries, error: SourceError, *, what: str, reached: int, observer: Observer) -> None:
    """Wait until it is time to try again; where it is not to be tried again, raise the error.

    Args:
        what: is tried, for the observer. reached: bytes that have come so far.
    """
    seconds = tries.pause(error, reached=reached, chance=random.random())
    if seconds is None:
        raise error
    told = f"{error.message}; tried again in {seconds:.1f} s" + (f" from byte {reached} on" if reached else "")
    observer.event(Event(code="retrying", level=Level.WARNING, detail=told, fields={"ref": what, "size": reached}))
    time.sleep(seconds)
