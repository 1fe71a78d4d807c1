"""A connection to a Ceph: opened for one piece of work, asked within bounded time, its errors translated.

librados and librbd wait without end for a Ceph that is gone, unless they are told how long: ``client_mount_timeout``,
``rados_mon_op_timeout`` and ``rados_osd_op_timeout`` (docs.ceph.com, "Ceph client configuration"). These bound a request, but
not every one: that which registers a watch, for one, waits on. Each call is therefore made in a thread that is left behind when
it is late, and with it the connection.

A pool without room makes a write wait as well, until there is room or the time is over. ``set_osdmap_full_try`` asks for the
error instead.
"""

import errno
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from underlay.contracts import StorageRoom
from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    ExtraMissing,
    InsufficientSpace,
    StorageFailed,
    UnderlayError,
)
from underlay.waiting import Pulse, within

_Answer = TypeVar("_Answer")

_UNANSWERED = frozenset(
    {errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EROFS}  # EROFS: its lock
)
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_BUSY = frozenset({errno.EBUSY, errno.ENOTEMPTY})
_LIBRARIES_HINT = "apt-get install python3-rados python3-rbd, for the Python of the distribution (see the guide on Ceph)"


class CallFailed(Exception):
    """What a call that is not waited for has returned: a number of errno(3).

    Attributes:
        errno: the number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


@dataclass(frozen=True, slots=True)
class Library:
    """The bindings of librados and of librbd."""

    rados: Any
    rbd: Any


def library() -> Library:
    """The bindings.

    Raises:
        ExtraMissing
    """
    try:
        return Library(import_module("rados"), import_module("rbd"))
    except ImportError as error:
        raise ExtraMissing(f"the rbd backend needs Ceph's Python modules: {error}", hint=_LIBRARIES_HINT) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a Ceph is reached, and as whom.

    Attributes:
        user: without its ``client.``; None: as the configuration or the environment of Ceph has it, else admin.
        conf: Ceph's configuration file; None: where Ceph looks for it.
        connect_timeout, operation_timeout: seconds for a connection, and for each request.
        host: this one, as other hosts know it.
    """

    user: str | None
    conf: Path | None
    connect_timeout: float
    operation_timeout: float
    host: str

    @property
    def spoken(self) -> str:
        """As messages call it."""
        return f"the Ceph of {self.conf}" if self.conf else "the Ceph"

    @property
    def patience(self) -> float:
        """Seconds for a call that shows no progress; it makes several requests, and the first that is not answered ends it."""
        return self.connect_timeout + 2 * self.operation_timeout


@dataclass(slots=True)
class Cluster:
    """A connection, for one thread.

    Attributes:
        address: ours, by which others see who watches an image.
        is_stuck: a call did not return, so nothing of this connection may be closed: that would wait as well.
        is_silent: a call was not answered in time, or not waited for.
    """

    access: Access
    library: Library
    rados: Any
    address: str = ""
    is_stuck: bool = False
    is_silent: bool = False
    stack: ExitStack = field(default_factory=ExitStack)

    def ask(self, question: Callable[[], _Answer], *, of: str, pulse: Pulse | None = None) -> _Answer:
        """What a call returns.

        Args:
            of: what it is about, as messages call it.
            pulse: of long work.

        Raises:
            DiskNotFound: it is not there. DiskExists: it is. DiskInUse: others use it.
            BackendUnavailable, InsufficientSpace, StorageFailed
        """
        returned = threading.Event()

        def asked() -> _Answer:
            try:
                return question()
            finally:
                returned.set()

        try:
            return within(self.access.patience, asked, pulse=pulse)
        except (self.library.rados.Error, self.library.rbd.Error, CallFailed) as error:
            raise self._translated(error, of) from error
        except BaseException as error:  # not waited for any longer, unless the question itself raised it
            if not returned.is_set():
                self.is_stuck = self.is_silent = True
                if isinstance(error, TimeoutError):
                    raise self._unanswered(of) from error
            raise

    def pool(self, name: str) -> Any:
        """A pool, open until the connection ends.

        Raises:
            BackendUnavailable: there is none of this name, or it is not answered for.
        """
        try:
            pool = self.ask(lambda: self.rados.open_ioctx(name), of=f"the pool {name}")
        except DiskNotFound as error:
            hint = f"make it: ceph osd pool create {name}; rbd pool init {name}"
            raise BackendUnavailable(f"{self.access.spoken} has no pool {name}", hint=hint) from error
        pool.set_osdmap_full_try()
        self.stack.callback(self.close, pool)
        return pool

    def fsid(self) -> str:
        """The id of the Ceph. The connection knows it as well, but now and then only after its first request."""
        found: str = self.command(prefix="fsid")["fsid"]
        return found

    def room(self, pool: str) -> StorageRoom:
        """What a pool has stored, and what it may still take.

        Raises:
            as `ask`; BackendUnavailable: there is no such pool.
        """
        self.pool(pool)
        for told in self.command(prefix="df")["pools"]:
            if told["name"] == pool:
                stored, free = int(told["stats"]["stored"]), int(told["stats"]["max_avail"])
                return StorageRoom(total=stored + free, free=free)
        what = f"{self.access.spoken} does not tell how large the pool {pool} is"
        raise BackendUnavailable(what, hint="see that its ceph-mgr runs: ceph -s")

    def command(self, **words: str) -> Any:
        """What the monitors answer to a command.

        Raises:
            as `ask`; StorageFailed: the command failed.
        """
        text = json.dumps({**words, "format": "json"})
        status, output, said = self.ask(lambda: self.rados.mon_command(text, b""), of=f"'{words['prefix']}'")
        if status != 0:
            raise self._translated(CallFailed(-status), f"'{words['prefix']}' ({said or 'which said nothing'})")
        return json.loads(output)

    def close(self, opened: Any) -> None:
        """Close something. What was written is acknowledged already, so an error tells nothing but that Ceph is gone."""
        if not self.is_stuck:
            with suppress(UnderlayError):
                self.ask(opened.close, of=self.access.spoken)

    def _unanswered(self, of: str) -> BackendUnavailable:
        self.is_silent = True
        what = f"{self.access.spoken} does not answer about {of}"
        return BackendUnavailable(what, hint="see that its monitors and OSDs run: ceph -s")

    def _translated(self, error: Any, of: str) -> UnderlayError:
        number = abs(getattr(error, "errno", None) or errno.EIO)
        if number in _UNANSWERED:
            return self._unanswered(of)
        if number in _FORBIDDEN:
            return _forbidden(self.access, of)
        if number in _NO_ROOM:
            return InsufficientSpace(f"the pool of {of}", needed=None, free=0, reclaimable={})
        if number in _BUSY:
            return DiskInUse(f"{of} is in use", hint="stop who uses it: rbd status, rbd children")
        if number == errno.ENOENT:
            return DiskNotFound(f"there is no {of}")
        if number == errno.EEXIST:
            return DiskExists(f"{of} is there", hint="remove it, or choose another name")
        return StorageFailed(f"{self.access.spoken} failed on {of}: {os.strerror(number)}", hint="see ceph -s, and its log")


@contextmanager
def connected(access: Access) -> Iterator[Cluster]:
    """A connection, which ends with the block.

    Raises:
        ExtraMissing; BackendUnavailable: it cannot be made.
    """
    found = library()
    cluster = Cluster(access, found, None)
    try:
        cluster.rados = cluster.ask(lambda: _connection(found, access), of="a connection")
        cluster.address = cluster.ask(cluster.rados.get_addrs, of="a connection")
    except DiskNotFound as error:
        raise _unreadable(access) from error
    try:
        with cluster.stack:
            yield cluster
    finally:
        if not cluster.is_stuck:
            with suppress(UnderlayError):  # as when something is closed
                cluster.ask(cluster.rados.shutdown, of=access.spoken)


def _connection(found: Library, access: Access) -> Any:
    options = {
        "client_mount_timeout": _seconds(access.connect_timeout),
        "rados_mon_op_timeout": _seconds(access.operation_timeout),
        "rados_osd_op_timeout": _seconds(access.operation_timeout),
        "rbd_cache": "false",  # a write that is acknowledged is durable, and none is tried again behind our back
        "log_to_stderr": "false",
        "err_to_stderr": "false",
    }
    conf = "" if access.conf is None else os.fspath(access.conf)
    rados = found.rados.Rados(rados_id=access.user, conffile=conf, conf=options)
    rados.connect(timeout=access.connect_timeout)
    return rados


def _seconds(value: float) -> str:
    return str(math.ceil(value))  # none of them takes a part of a second


def _unreadable(access: Access) -> BackendUnavailable:
    conf = access.conf or "Ceph's configuration"
    who = f"the keyring of client.{access.user}" if access.user else "the user's keyring"
    hint = "set ceph_conf and user under [disks.rbd]"
    return BackendUnavailable(f"{access.spoken} cannot be reached: {conf} or {who} is not there", hint=hint)


def _forbidden(access: Access, of: str) -> BackendUnavailable:
    who = f"client.{access.user}" if access.user else "the user that it is asked as"
    what = f"{access.spoken} refuses {of} to {who}: its key is another, or its capabilities are too few"
    hint = "ceph auth caps client.USER mon 'profile rbd' osd 'profile rbd pool=POOL'"
    return BackendUnavailable(what, hint=hint)
