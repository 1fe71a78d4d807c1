"""What an ingest lets others hear of: steps for the observer, progress for it and for those who wait."""

import time
from dataclasses import dataclass

from underlay.contracts import Observer
from underlay.model import Event, Level, Progress
from underlay.order import Order
from underlay.store import staging as stagings
from underlay.store.staging import Staging

PROGRESS_INTERVAL = 0.2  # seconds


@dataclass(slots=True)
class Meter:
    """Tells how far the work has come, to the observer and to those who wait for it, a few times a second."""

    ref: str
    total: int | None
    staging: Staging
    observer: Observer
    _next: float = 0.0

    def advance(self, stage: str, done: int) -> None:
        """The work has come to ``done`` bytes."""
        now = time.monotonic()
        if now < self._next and done != self.total:
            return
        self._next = now + PROGRESS_INTERVAL
        progress = Progress(ref=self.ref, stage=stage, done=done, total=self.total)
        self.observer.progress(progress)
        stagings.write_progress(self.staging, progress)


def tell(
    observer: Observer, order: Order, code: str, *, level: Level = Level.DEBUG, detail: str = "", **facts: str | int | None
) -> None:
    """Let the observer hear of one step."""
    observer.event(Event(code=code, level=level, detail=detail, fields={"ref": order.what, **facts}))
