"""QEMU's guest agent: a program in a guest that does what the host asks of it, if it is there and answers.

Whether it is to be there an image says (``hw_qemu_guest_agent``), by which the guest gets a line to it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from itertools import count
from typing import Any

from underlay.compute.arguments import ImageMeta, Instance
from underlay.compute.errors import (
    ComputeError,
    HypervisorUnavailable,
    InstanceNotFound,
    InstanceNotRunning,
    InstanceQuiesceFailed,
    InstanceQuiesceNotSupported,
    InternalError,
    OperationFailed,
    QemuGuestAgentNotEnabled,
    SetAdminPasswdNotSupported,
)
from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.diskplan import properties_of
from underlay.compute.libvirt.domain import Domain
from underlay.compute.libvirt.guestplan import is_true
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.site import Site
from underlay.compute.metadata import field_of

_LOG = logging.getLogger(__name__)
_GREETING = 10.0  # seconds that libvirt may take beside, to find out whether there is an agent at all
_THAWS = 2  # that are asked of an agent at least
_PERSISTS = 120.0  # seconds in which file systems that may be frozen are thawed again, as when libvirt is being restarted
_AGAIN = 1.0  # seconds between two such attempts
_UNKNOWN = ("has been disabled", "has not been found", "is not supported", "unsupported")  # in an agent's answers
_FROZEN = "frozen"  # by somebody who will thaw them; the agent does nothing else meanwhile


class _Answer(Enum):
    DONE = "the agent did it"
    NONE = "the agent does not answer"
    OFF = "the guest does not run"
    NO_LINE = "the guest has no line to an agent"


def has_agent(image: ImageMeta) -> bool:
    """Whether an image says that there is an agent in its guests."""
    return is_true(properties_of(image).get("hw_qemu_guest_agent"))


def quiesce(site: Site, instance: Instance, image: ImageMeta) -> None:
    """Freeze a guest's file systems: what was written is on the disks, and nothing is written until they are thawed.

    Raises:
        QemuGuestAgentNotEnabled, InstanceQuiesceNotSupported; InstanceQuiesceFailed: it did not work, and what may be frozen
        all the same was asked to be thawed. InstanceNotRunning, InstanceNotFound, HypervisorUnavailable
    """
    _refuse_without_agent(image)
    given_up, began = threading.Event(), time.monotonic()
    try:
        answer = _ask(site, instance.uuid, partial(_freeze, given_up))
    except InstanceNotFound:
        raise
    except OperationFailed as error:  # an agent that could not freeze all has thawed what it had frozen
        raise _refused(error, instance.uuid) from error
    except BaseException:  # libvirt is gone or late, or somebody interrupts us: nobody knows
        given_up.set()
        _thaw_quietly(site, instance.uuid, may_be_frozen=True)
        raise
    if answer is _Answer.NONE:  # it was asked and is late, unless it was not even there to be asked, which is known sooner
        _thaw_quietly(site, instance.uuid, may_be_frozen=time.monotonic() - began >= _patience(site))
    _check(answer, instance.uuid)


def _freeze(given_up: threading.Event, domain: Any) -> None:
    domain.fsFreeze(None, 0)
    if given_up.is_set():
        domain.fsThaw(None, 0)  # nobody waits for it any more


def unquiesce(site: Site, instance: Instance, image: ImageMeta) -> None:
    """Let a guest's file systems go on; those that do are left alone.

    Raises:
        as `quiesce`
    """
    _refuse_without_agent(image)
    _thaw(site, instance.uuid, may_be_frozen=False)


@contextmanager
def quiesced(site: Site, instance: Instance, image: ImageMeta) -> Iterator[None]:
    """A guest's file systems are frozen in the block, if its image says that there is an agent and that one answers.

    An image may require it (``os_require_quiesce``); otherwise the block is entered all the same. They are thawed whatever
    becomes of the block.

    Raises:
        as `quiesce`: it is required and cannot be; or they cannot be thawed.
    """
    if not _is_quiesced(site, instance, image):
        yield
        return
    try:
        yield
    except BaseException:
        _thaw_quietly(site, instance.uuid, may_be_frozen=True)
        raise
    _thaw(site, instance.uuid, may_be_frozen=True)


def thaw_left(site: Site, uuid: str) -> None:
    """Thaw what somebody may have frozen who was killed, of an instance that runs and has a line to an agent.

    Raises:
        OperationFailed, HypervisorUnavailable: it cannot be told whether there is one.
    """
    with suppress(InstanceNotFound):
        xml = Domain(site.connection, uuid).running_xml()
        if xml is not None and guestxml.has_agent(xml):
            _thaw_quietly(site, uuid, may_be_frozen=False)


def set_password(site: Site, instance: Instance, password: str) -> None:
    """Change the password of a guest's administrator.

    Raises:
        QemuGuestAgentNotEnabled, SetAdminPasswdNotSupported. NotImplementedError: the agent does not answer.
        InternalError: it refuses. InstanceNotRunning, InstanceNotFound, HypervisorUnavailable
    """
    image = instance.image_meta
    _refuse_without_agent(image)
    user = properties_of(image).get("os_admin_user") or _administrator(instance)
    try:
        answer = _ask(site, instance.uuid, lambda domain: domain.setUserPassword(user, password, 0))
    except (HypervisorUnavailable, InstanceNotFound):
        raise
    except OperationFailed as error:
        if any(word in error.message for word in _UNKNOWN):
            raise SetAdminPasswdNotSupported(error.message) from error
        raise InternalError(err=f"the password of {user} could not be set: {error.message}") from error
    if answer is _Answer.NONE:
        raise NotImplementedError(f"the agent in the guest of {instance.uuid} does not answer")
    _check(answer, instance.uuid)


def _administrator(instance: Instance) -> str:
    return "Administrator" if field_of(instance, "os_type") == "windows" else "root"


def _refuse_without_agent(image: ImageMeta) -> None:
    if not has_agent(image):
        raise QemuGuestAgentNotEnabled(
            "the image does not say that its guests have QEMU's agent", hint="give it the property hw_qemu_guest_agent=yes"
        )


def _is_quiesced(site: Site, instance: Instance, image: ImageMeta) -> bool:
    try:
        quiesce(site, instance, image)
    except ComputeError as error:
        if is_true(properties_of(image).get("os_require_quiesce")):
            raise
        if has_agent(image):
            _LOG.warning("the file systems of the instance %s are not frozen: %s", instance.uuid, error)
        return False
    return True


def _thaw(site: Site, uuid: str, *, may_be_frozen: bool) -> None:
    """Thaw, and again when that fails for a reason which may pass.

    Args:
        may_be_frozen: they are frozen, or may just be; otherwise an agent that does not answer has nothing to be thawed, as
            far as anybody knows.
    """
    deadline = time.monotonic() + _PERSISTS
    for attempt in count(1):
        try:
            _check(_ask(site, uuid, lambda domain: domain.fsThaw(None, 0)), uuid)
            return
        except (HypervisorUnavailable, InstanceQuiesceFailed, InstanceNotRunning) as error:
            lasts = not may_be_frozen and attempt >= _THAWS and not isinstance(error, HypervisorUnavailable)
            if lasts or time.monotonic() >= deadline or _is_off(site, uuid, error):
                raise
        except InstanceNotFound:
            raise
        except OperationFailed as error:
            raise _refused(error, uuid) from error
        time.sleep(_AGAIN)


def _is_off(site: Site, uuid: str, error: ComputeError) -> bool:
    """Whether that is why; a guest that is paused has an agent that answers when it goes on."""
    return isinstance(error, InstanceNotRunning) and not Domain(site.connection, uuid).is_active()


def _thaw_quietly(site: Site, uuid: str, *, may_be_frozen: bool) -> None:
    """When another error goes on, or nobody knows whether anything is frozen."""
    try:
        _thaw(site, uuid, may_be_frozen=may_be_frozen)
    except ComputeError as error:
        _LOG.warning("the file systems of the instance %s could not be thawed (virsh domfsthaw does it): %s", uuid, error)


def _refused(error: OperationFailed, uuid: str) -> ComputeError:
    if any(word in error.message for word in _UNKNOWN) and _FROZEN not in error.message:
        return InstanceQuiesceNotSupported(f"the file systems of instance {uuid} cannot be frozen: {error.message}")
    return InstanceQuiesceFailed(reason=error.message)


def _check(answer: _Answer, uuid: str) -> None:
    if answer is _Answer.OFF:
        raise InstanceNotRunning(instance_id=uuid)
    if answer is _Answer.NO_LINE:
        raise QemuGuestAgentNotEnabled("the guest was not given a line to QEMU's agent", hint="reboot it hard")
    if answer is _Answer.NONE:
        raise InstanceQuiesceFailed(
            reason=f"the agent in the guest of {uuid} does not answer", hint="see that qemu-guest-agent runs in the guest"
        )


def _patience(site: Site) -> int:
    """Seconds that an agent has for an answer."""
    return max(1, int(site.connection.timeout))


def _ask(site: Site, uuid: str, question: Callable[[Any], object]) -> _Answer:
    """Ask the agent of a guest, which has the time that libvirt has for an answer.

    Raises:
        OperationFailed: what it answers is a refusal. InstanceNotFound, HypervisorUnavailable
    """
    libvirt, seconds = library(), _patience(site)
    silence = {
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE: _Answer.NONE,
        libvirt.VIR_ERR_AGENT_UNSYNCED: _Answer.NONE,
        libvirt.VIR_ERR_OPERATION_INVALID: _Answer.OFF,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: _Answer.NO_LINE,
    }

    def found(handle: Any) -> Any:
        domain = handle.lookupByUUIDString(uuid)
        domain.agentSetResponseTimeout(seconds, 0)
        return domain

    def asked(domain: Any) -> _Answer:
        try:
            question(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in silence:
                raise
            return silence[error.get_error_code()]
        return _Answer.DONE

    missing = InstanceNotFound(instance_id=uuid)
    return site.connection.ask(asked, of=found, missing=missing, seconds=seconds + _GREETING, about=uuid)
