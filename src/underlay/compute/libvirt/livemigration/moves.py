"""The moves that are under way in this process: what is asked of those from here meanwhile, and which guests are expected."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from underlay.compute.errors import OperationFailed


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """One move.

    Attributes:
        abort: it is to end, and the guest to stay. complete: it is to come to its end at the cost of a pause.
    """

    abort: threading.Event = field(default_factory=threading.Event)
    complete: threading.Event = field(default_factory=threading.Event)


class Moves:
    """All of a driver's, by the instances' UUIDs. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moves: dict[str, Move] = {}
        self._expected: dict[str, ExitStack] = {}

    @contextmanager
    def begun(self, uuid: str) -> Iterator[Move]:
        """One more, for as long as the block lasts.

        Raises:
            OperationFailed: the instance is being moved already.
        """
        with self._lock:
            if uuid in self._moves:
                raise OperationFailed(f"the instance {uuid} is being migrated already")
            move = self._moves[uuid] = Move()
        try:
            yield move
        finally:
            with self._lock:
                del self._moves[uuid]

    def of(self, uuid: str) -> Move | None:
        """That of an instance; None when it is not moved from here."""
        with self._lock:
            return self._moves.get(uuid)

    def expect(self, uuid: str, holding: ExitStack) -> None:
        """A guest is expected here; what is held for it stays so until it is settled, or this process ends."""
        with self._lock:
            before, self._expected[uuid] = self._expected.get(uuid), holding
        if before is not None:
            before.close()

    def settled(self, uuid: str) -> None:
        """It has come, or stays away."""
        with self._lock:
            holding = self._expected.pop(uuid, None)
        if holding is not None:
            holding.close()

    def forget_expected(self) -> None:
        """Let go of what is held, as at the end of this process."""
        for uuid in [*self._expected]:
            self.settled(uuid)
