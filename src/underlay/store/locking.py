"""The locks of an image's name: ours, which excludes Underlays, then Nova's beside a Nova, which excludes a Nova."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from underlay import locks
from underlay.errors import LockTimeout
from underlay.files import make_directory, translated
from underlay.naming import lock_name, nova_lock
from underlay.store.layout import Store

_POLL = 0.05  # seconds between tries of a lock that is not ours to wait for

_Take = Callable[[Path], AbstractContextManager[locks.Lock | None]]


@contextmanager
def shared(store: Store, name: str) -> Iterator[list[locks.Lock]]:
    """Hold the name together with others.

    Raises:
        LockTimeout, CacheNotWritable
    """
    with _taken(store, name, lambda path: locks.shared(path, timeout=store.lock_timeout), patient=True) as taken:
        assert taken is not None
        yield taken


@contextmanager
def exclusive(store: Store, name: str) -> Iterator[list[locks.Lock]]:
    """Hold the name alone.

    Raises:
        LockTimeout, CacheNotWritable
    """
    with _taken(store, name, lambda path: locks.exclusive(path, timeout=store.lock_timeout), patient=True) as taken:
        assert taken is not None
        yield taken


@contextmanager
def try_exclusive(store: Store, name: str) -> Iterator[list[locks.Lock] | None]:
    """Hold the name alone if nobody holds it now, else yield None.

    Raises:
        CacheNotWritable
    """
    with _taken(store, name, locks.try_exclusive, patient=False) as taken:
        yield taken


@contextmanager
def writing_records(store: Store) -> Iterator[None]:
    """Be the only writer of the cache's small records: leases, and what a prune notes.

    Raises:
        LockTimeout, CacheNotWritable
    """
    with ExitStack() as stack:
        with translated(store.paths.records_lock):
            stack.enter_context(locks.exclusive(store.paths.records_lock, timeout=store.lock_timeout))
        yield


@contextmanager
def _taken(store: Store, name: str, take: _Take, *, patient: bool) -> Iterator[list[locks.Lock] | None]:
    with ExitStack() as stack:
        with translated(store.paths.locks):
            taken = [stack.enter_context(take(store.paths.image_lock(lock_name(name))))]
            if None not in taken and store.nova_locks is not None and store.rival_lock is None:
                make_directory(store.nova_locks, 0o755)
                path = nova_lock(store.nova_locks, prefix=store.nova_lock_prefix, name=lock_name(name))
                taken.append(stack.enter_context(take(path)))
        if None not in taken and store.rival_lock is not None and not _rival(store, name, stack, patient=patient):
            taken.append(None)
        yield None if None in taken else [lock for lock in taken if lock is not None]


def _rival(store: Store, name: str, stack: ExitStack, *, patient: bool) -> bool:
    """Take the rival's lock by its own means; only its holder's process knows how."""
    assert store.rival_lock is not None
    deadline = time.monotonic() + (store.lock_timeout if patient else 0)
    while True:
        with ExitStack() as attempt:
            if attempt.enter_context(store.rival_lock(lock_name(name))):
                stack.push(attempt.pop_all())
                return True
        if not patient:
            return False
        if time.monotonic() >= deadline:
            raise LockTimeout(f"the lock of {name} is held since {store.lock_timeout:g} s", hint="try again later")
        time.sleep(_POLL)
