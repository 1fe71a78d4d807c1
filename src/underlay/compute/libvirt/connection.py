"""A connection to libvirt: opened when it is first asked, opened again after libvirt went away, and never waited for for ever.

The one place where libvirt's errors become ours. What goes wrong between us and libvirt is `HypervisorUnavailable`, whatever
was asked; what libvirt answers is `OperationFailed`, with its own words.
"""

import threading
from collections.abc import Callable
from traceback import clear_frames
from typing import Any, TypeVar

from underlay.compute.errors import ComputeError, HypervisorUnavailable, OperationFailed
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.line import Line
from underlay.compute.libvirt.questions import Deadline, Questions
from underlay.waiting import within

_Answer = TypeVar("_Answer")
_HINT = "see that libvirt runs and that the user that runs this may use it"
_MOST = 16  # questions that libvirt has not answered in time and that still wait for it
_MOST_ABOUT = 2  # of those about one guest, whose QEMU may hang by itself
_PROBES = 5  # that libvirt may leave unanswered until it is taken for gone


class Connection:
    """One libvirt, which any thread may ask. For one in another process an `EventLoop` runs.

    Attributes:
        uri: as libvirt has it.
        timeout: seconds that one answer may take, and after about which a libvirt that says nothing at all is taken for gone.
        opened: called with each new handle, before anybody else has it; it returns what is to be called before that is closed.
    """

    def __init__(self, uri: str, *, timeout: float, opened: Callable[[Any], Callable[[], object]] | None = None) -> None:
        self.uri = uri
        self.timeout = timeout
        self.opened = opened
        self._questions = Questions(most=_MOST, most_about=_MOST_ABOUT)
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._is_closed = False

    def ask(
        self,
        question: Callable[[Any], _Answer],
        *,
        of: Callable[[Any], Any] | None = None,
        missing: ComputeError | None = None,
        seconds: float | None = None,
        about: str | None = None,
    ) -> _Answer:
        """What a question to libvirt answers. It is not begun any more when its time is over.

        Args:
            question: called with what is asked, in another thread. What it answers is nothing of libvirt's own.
            of: finds that by the handle of the connection (virConnect) and changes nothing; None: it is the handle.
            missing: raised when libvirt says that there is no such domain.
            seconds: that both may take; None: as the connection has it.
            about: the UUID of a guest whose QEMU has to answer as well. When it hangs, its questions are soon refused, and no
                others are.

        Raises:
            HypervisorUnavailable: libvirt cannot be reached, goes away meanwhile, or does not answer in time.
            OperationFailed: it answers that it failed. ExtraMissing
        """
        libvirt = library()
        limit = self.timeout if seconds is None else seconds
        try:
            return self._questions.ask(
                lambda deadline: self._asked(libvirt, question, of, deadline), seconds=limit, about=about
            )
        except TimeoutError as error:
            raise self._unavailable(str(error)) from error
        except RuntimeError as error:  # "can't start new thread"
            raise self._unavailable(f"cannot be asked: {error}") from error
        except libvirt.libvirtError as error:
            raise self._meaning(libvirt, error, missing) from error

    def close(self) -> None:
        """Let go of it, for good."""
        self._is_closed = True  # first: who is opening it looks again when that is done
        if not self._lock.acquire(timeout=self.timeout):
            return
        try:
            line, self._line = self._line, None
        finally:
            self._lock.release()
        if line is not None:
            try:
                within(self.timeout, line.give_up)
            except (TimeoutError, RuntimeError):
                return  # nobody can make it go

    # A domain of libvirt keeps its connection open and closes it in whatever thread forgets it last, which waits for libvirt
    # then. So none outlives the question that found it, not even in the frames of an error.
    def _asked(
        self, libvirt: Any, question: Callable[[Any], _Answer], of: Callable[[Any], Any] | None, deadline: Deadline
    ) -> _Answer:
        line, asked = self._taken(libvirt, deadline), None
        try:
            asked = line.handle if of is None else of(line.handle)
            deadline.confirm()
            return question(asked)
        except libvirt.libvirtError as error:
            clear_frames(error.__traceback__)
            raise
        finally:
            asked = None
            line.leave()

    def _taken(self, libvirt: Any, deadline: Deadline) -> Line:
        """The connection, which is to be left again."""
        if not self._lock.acquire(timeout=deadline.left()):
            raise TimeoutError("somebody else is still opening it")
        try:
            line = self._alive(libvirt)
            line.take()
            return line
        finally:
            self._lock.release()

    def _alive(self, libvirt: Any) -> Line:
        self._refuse_closed()
        if self._line is not None and self._line.is_alive:
            return self._line
        if self._line is not None:
            gone, self._line = self._line, None
            gone.give_up()
        line = self._open(libvirt)
        if self._is_closed:
            line.give_up()
            self._refuse_closed()
        self._line = line
        return line

    def _open(self, libvirt: Any) -> Line:
        try:
            handle = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise self._unavailable(f"cannot be reached: {error}") from error
        _keep_alive(libvirt, handle, self.timeout)
        return Line(handle, let_go=_nothing if self.opened is None else self.opened(handle))

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise self._unavailable("has been let go of")

    def _meaning(self, libvirt: Any, error: Any, missing: ComputeError | None) -> ComputeError:
        code, domain = error.get_error_code(), error.get_error_domain()
        if missing is not None and code == libvirt.VIR_ERR_NO_DOMAIN:
            return missing
        broke = (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT)
        between = (libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_RPC)
        if (code in broke and domain in between) or code == libvirt.VIR_ERR_INVALID_CONN:
            return self._unavailable(f"went away: {error}")
        return OperationFailed(f"libvirt refuses: {error}")

    def _unavailable(self, what: str) -> HypervisorUnavailable:
        return HypervisorUnavailable(f"libvirt at {self.uri} {what}", hint=_HINT)


def _keep_alive(libvirt: Any, handle: Any, seconds: float) -> None:
    """Have it notice a libvirt whose host died, which nothing else would tell; libvirt's event loop does that."""
    try:
        handle.setKeepAlive(max(1, round(seconds / (_PROBES + 1))), _PROBES)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # of a driver inside this process
            raise


def _nothing() -> None:
    """Nothing is to be done before it is closed."""
