"""Buffers on their way round: everybody reads all of them, nobody one that is filled anew, and no thread is left."""

import hashlib
import os
import resource
import threading
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from children import start, tell
from underlay.pipeline import BUFFER_BYTES, BUFFERS, Consumer, Pipeline, running

WAIT = 30.0  # seconds; only a broken test waits for so long
A_USER = 70_000  # from here on, nobody has these numbers
BODY = os.urandom(3 * BUFFERS * BUFFER_BYTES + 12345)


def pass_all(pipeline: Pipeline, body: bytes = BODY) -> None:
    """Hand the body over, buffer by buffer."""
    for start_ in range(0, len(body), BUFFER_BYTES):
        buffer, piece = pipeline.empty(), body[start_ : start_ + BUFFER_BYTES]
        buffer.memory[: len(piece)] = piece
        buffer.length = len(piece)
        pipeline.pass_on(buffer)
    pipeline.finish()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("underlay-stream")]


@dataclass
class Hashing:
    """Takes its time, so that others are ahead of it."""

    pause: float = 0.0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    threads: set[int] = field(default_factory=set)

    def feed(self, chunk: memoryview, /) -> None:
        time.sleep(self.pause)
        self.digest.update(chunk)
        self.threads.add(threading.get_ident())


@dataclass
class Meeting:
    """Waits, at each piece, for the others of its kind: without a thread for each of them none gets on."""

    barrier: threading.Barrier
    pieces: int = 0

    def feed(self, _: memoryview, /) -> None:
        self.barrier.wait(WAIT)
        self.pieces += 1


@dataclass
class Failing:
    """Raises at one of its pieces."""

    at: int
    pieces: int = 0

    def feed(self, _: memoryview, /) -> None:
        self.pieces += 1
        if self.pieces == self.at:
            raise ArithmeticError("that is enough")


@pytest.mark.parametrize("pauses", [(0.0,), (0.0, 0.01), (0.01, 0.0, 0.003, 0.0)])
def test_everybody_reads_every_byte_however_slow_the_others_are(pauses: Sequence[float]) -> None:
    consumers = [Hashing(pause) for pause in pauses]
    with running(consumers) as pipeline:
        pass_all(pipeline)

    assert [hashlib.sha256(BODY).digest()] * len(pauses) == [consumer.digest.digest() for consumer in consumers]
    assert [] == threads()


def test_everybody_has_a_thread_of_their_own() -> None:
    barrier = threading.Barrier(4)
    consumers = [Meeting(barrier) for _ in range(4)]
    with running(consumers) as pipeline:
        pass_all(pipeline)

    assert [3 * BUFFERS + 1] * 4 == [consumer.pieces for consumer in consumers]


def test_however_long_the_stream_and_many_the_readers_there_are_only_so_many_buffers() -> None:
    body = bytes(BUFFER_BYTES)
    tracemalloc.start()
    try:
        with running([Hashing(0.001), Hashing(), Hashing()]) as pipeline:
            for _ in range(10 * BUFFERS):
                buffer = pipeline.empty()
                buffer.length = len(body)
                pipeline.pass_on(buffer)
            pipeline.finish()
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert BUFFERS * BUFFER_BYTES <= peak <= BUFFERS * BUFFER_BYTES + (1 << 20)


@pytest.mark.parametrize("at", [1, 2, BUFFERS, 3 * BUFFERS + 1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_one_of_them_raises_is_heard_and_the_threads_of_all_end(place: int, at: int) -> None:
    consumers: list[Consumer] = [Hashing(0.001), Hashing()]
    consumers.insert(place, failing := Failing(at))
    with pytest.raises(ArithmeticError), running(consumers) as pipeline:
        pass_all(pipeline)

    assert at == failing.pieces
    assert [] == threads()


def test_what_is_refused_at_the_first_buffer_costs_no_second() -> None:
    other = Hashing()
    with pytest.raises(ArithmeticError), running([Failing(1), other]) as pipeline:
        pass_all(pipeline)
    assert hashlib.sha256(BODY[:BUFFER_BYTES]).digest() == other.digest.digest()


def test_an_interrupt_of_who_fills_ends_all_threads() -> None:
    with pytest.raises(KeyboardInterrupt), running([Hashing(), Hashing(), Hashing()]) as pipeline:
        interrupted(pipeline)
    assert [] == threads()


def interrupted(pipeline: Pipeline) -> None:
    pipeline.pass_on(pipeline.empty())
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------- a machine without threads


def hash_with(threads: str, failing: str) -> None:
    """In a child that is a user of its own, who may have so many threads beside the first."""
    allowed = 1 + int(threads)
    resource.setrlimit(resource.RLIMIT_NPROC, (allowed, allowed))
    consumers = [Hashing(), Hashing(), Hashing()]
    try:
        with running([*consumers, *([Failing(2)] if failing else [])]) as pipeline:
            pass_all(pipeline)
    except ArithmeticError as error:
        tell(f"{error}; {threads_left()} threads are left")
    else:
        right = [consumer.digest.digest() for consumer in consumers].count(hashlib.sha256(BODY).digest())
        tell(f"{right} are right, by {len(set().union(*(consumer.threads for consumer in consumers)))} threads")


def threads_left() -> int:
    return threading.active_count() - 1


@pytest.mark.component("root")
@pytest.mark.parametrize("allowed", range(3))
def test_who_gets_no_thread_is_fed_by_who_fills(allowed: int) -> None:
    with start(hash_with, allowed, "", user=A_USER + os.getpid()) as child:
        assert f"3 are right, by {min(3, allowed + 1)} threads" == child.hear()


@pytest.mark.component("root")
@pytest.mark.parametrize("allowed", [0, 2])
def test_what_it_raises_then_is_heard_as_well(allowed: int) -> None:
    with start(hash_with, allowed, "failing", user=A_USER + os.getpid()) as child:
        assert "that is enough; 0 threads are left" == child.hear()
