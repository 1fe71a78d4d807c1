"""One thread fills buffers, several others each read every one of them: a stream is received while it is hashed and written.

The library calls below release the interpreter's lock, so where there are cores enough, receiving, each digest and writing take
about as long as the slowest of them. The buffers are few, so whoever is fast waits for whoever is slow; and the first is read
by everybody before a second is filled, so what is refused by its beginning costs no more of the transfer.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

BUFFER_BYTES = 512 << 10
"""Bytes of one buffer: what fits a core's cache. Measured, 256 KiB to 1 MiB do equally well, and 4 MiB much worse."""
BUFFERS = 8


class Consumer(Protocol):
    """Reads a stream in pieces, in order, in a thread of its own."""

    def feed(self, chunk: memoryview, /) -> None:
        """Take the next bytes; they are not there any more afterwards."""
        ...


@dataclass(slots=True, eq=False)
class Buffer:
    """Memory that is filled, and how far."""

    memory: memoryview
    length: int = 0
    readers: int = 0

    @property
    def free(self) -> memoryview:
        """What is still to be filled."""
        return self.memory[self.length :]


@dataclass(slots=True)
class Pipeline:
    """The buffers on their way round. `running` makes one."""

    _consumers: Sequence[Consumer]
    _free: "SimpleQueue[Buffer | BaseException]" = field(default_factory=SimpleQueue)
    _queues: "list[SimpleQueue[Buffer | None]]" = field(default_factory=list)
    _threads: list[Future[None]] = field(default_factory=list)
    _without: list[Consumer] = field(default_factory=list)  # a thread of their own: they are fed by who passes on
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _spare: int = BUFFERS - 1

    def empty(self) -> Buffer:
        """A buffer to fill, as soon as there is one.

        Raises:
            what a consumer has raised
        """
        buffer = self._free.get()
        if isinstance(buffer, BaseException):
            raise buffer
        buffer.length = 0
        return buffer

    def pass_on(self, buffer: Buffer) -> None:
        """Let every consumer read the buffer.

        Raises:
            what a consumer raises that has no thread of its own
        """
        buffer.readers = len(self._queues) + 1
        for queue in self._queues:
            queue.put(buffer)
        for consumer in self._without:
            consumer.feed(buffer.memory[: buffer.length])
        self._release(buffer)

    def finish(self) -> None:
        """Wait until the consumers have read all that was passed on.

        Raises:
            what a consumer has raised
        """
        self.end()
        for thread in self._threads:
            thread.result()

    def start(self, pool: ThreadPoolExecutor) -> None:
        """Begin to read, in threads of this pool, as far as the machine has any more."""
        self._free.put(_buffer())
        for consumer in self._consumers:
            queue: SimpleQueue[Buffer | None] = SimpleQueue()
            self._queues.append(queue)  # first: whatever happens now, `end` reaches the thread
            try:
                self._threads.append(pool.submit(self._consume, consumer, queue))
            except RuntimeError:  # "can't start new thread"
                self._queues.remove(queue)
                queue.put(None)  # the pool has taken the work all the same, and gives it to the next thread that has none
                self._without.append(consumer)

    def end(self) -> None:
        """Nothing more is passed on."""
        for queue in self._queues:
            queue.put(None)

    def _consume(self, consumer: Consumer, queue: "SimpleQueue[Buffer | None]") -> None:
        try:
            while (buffer := queue.get()) is not None:
                consumer.feed(buffer.memory[: buffer.length])
                self._release(buffer)
        except BaseException as error:
            self._free.put(error)  # whoever waits for a buffer hears it
            raise

    def _release(self, buffer: Buffer) -> None:
        with self._lock:
            buffer.readers -= 1
            if buffer.readers:
                return
            spare, self._spare = self._spare, 0
        for one in (buffer, *(_buffer() for _ in range(spare))):
            self._free.put(one)


def _buffer() -> Buffer:
    return Buffer(memoryview(bytearray(BUFFER_BYTES)))


@contextmanager
def running(consumers: Sequence[Consumer]) -> Iterator[Pipeline]:
    """A pipeline to these consumers, whose threads have ended when the context has."""
    with ThreadPoolExecutor(len(consumers), "underlay-stream") as pool:
        pipeline = Pipeline(consumers)
        try:
            pipeline.start(pool)
            yield pipeline
        finally:
            pipeline.end()
