"""A connection to libvirt: opened when it is first asked, opened again after libvirt went away, and never waited for for ever.

The one place where libvirt's errors become ours. What goes wrong between us and libvirt is `HypervisorUnavailable`, whatever
was asked; what libvirt answers is `OperationFailed`, with its own words.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from underlay.compute.errors import ComputeError, HypervisorUnavailable, OperationFailed
from underlay.compute.libvirt.library import library
from underlay.waiting import within

_Answer = TypeVar("_Answer")
_HINT = "see that libvirt runs and that the user that runs this may use it"


class Connection:
    """One libvirt, which any thread may ask.

    Attributes:
        uri: as libvirt has it. timeout: seconds that one answer may take.
        opened: called with each new handle, before anybody else has it.
    """

    def __init__(self, uri: str, *, timeout: float, opened: Callable[[Any], None] | None = None) -> None:
        self.uri = uri
        self.timeout = timeout
        self.opened = opened
        self._lock = threading.Lock()
        self._handle: Any = None

    def ask(
        self, question: Callable[[Any], _Answer], *, missing: ComputeError | None = None, seconds: float | None = None
    ) -> _Answer:
        """What a question to libvirt answers.

        Args:
            question: called with the handle of the connection (virConnect), in another thread.
            missing: raised when libvirt says that there is no such domain.
            seconds: that it may take; None: as the connection has it.

        Raises:
            HypervisorUnavailable: libvirt cannot be reached, goes away meanwhile, or does not answer in time.
            OperationFailed: it answers that it failed. ExtraMissing
        """
        libvirt = library()
        limit = self.timeout if seconds is None else seconds
        try:
            return within(limit, lambda: question(self._alive(libvirt)))
        except TimeoutError as error:
            raise self._unavailable(f"does not answer for {limit:g} s") from error
        except libvirt.libvirtError as error:
            raise self._meaning(libvirt, error, missing) from error

    def close(self) -> None:
        """Let go of it. Asked again, it opens again."""
        if not self._lock.acquire(timeout=self.timeout):
            return  # a thread that nobody waits for any more is still opening it
        try:
            handle, self._handle = self._handle, None
        finally:
            self._lock.release()
        if handle is not None:
            libvirt = library()
            try:
                within(self.timeout, handle.close)
            except (TimeoutError, libvirt.libvirtError):
                return  # it is gone already, or nobody can make it go

    def _alive(self, libvirt: Any) -> Any:
        with self._lock:
            if self._handle is None or not _is_alive(libvirt, self._handle):
                self._handle = None
                handle = self._open(libvirt)
                if self.opened is not None:
                    self.opened(handle)
                self._handle = handle
            return self._handle

    def _open(self, libvirt: Any) -> Any:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # the default one prints what is raised as well
        try:
            return libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise self._unavailable(f"cannot be reached: {error}") from error

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


def _is_alive(libvirt: Any, handle: Any) -> bool:
    try:
        return bool(handle.isAlive())
    except libvirt.libvirtError:
        return False
