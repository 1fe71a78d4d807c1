"""QEMU's guest agent: a program in a guest that does what the host asks of it, if it is there and answers.

Whether it is to be there an image says (``hw_qemu_guest_agent``), by which the guest gets a line to it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
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
from underlay.compute.libvirt.diskplan import properties_of
from underlay.compute.libvirt.guestplan import is_true
from underlay.compute.libvirt.library import library
from underlay.compute.libvirt.site import Site
from underlay.compute.metadata import field_of

_LOG = logging.getLogger(__name__)
_GREETING = 10.0  # seconds that libvirt may take beside, to find out whether there is an agent at all
_THAWS = 2
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
    try:
        answer = _ask(site, instance, lambda domain: domain.fsFreeze(None, 0))
    except HypervisorUnavailable:
        _thaw_quietly(site, instance)
        raise
    except InstanceNotFound:
        raise
    except OperationFailed as error:  # an agent that could not freeze all has thawed what it had frozen
        raise _refused(error, instance) from error
    if answer is _Answer.NONE:
        _thaw_quietly(site, instance)  # it may be late
    _check(answer, instance)


def unquiesce(site: Site, instance: Instance, image: ImageMeta) -> None:
    """Let a guest's file systems go on; those that do are left alone.

    Raises:
        as `quiesce`
    """
    _refuse_without_agent(image)
    _thaw(site, instance)


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
        _thaw_quietly(site, instance)
        raise
    _thaw(site, instance)


def thaw_left(site: Site, instance: Instance) -> None:
    """Thaw what somebody may have frozen who was killed, of an instance whose image says that there is an agent."""
    if has_agent(instance.image_meta) and site.domain(instance).is_active():
        _thaw_quietly(site, instance)


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
        answer = _ask(site, instance, lambda domain: domain.setUserPassword(user, password, 0))
    except (HypervisorUnavailable, InstanceNotFound):
        raise
    except OperationFailed as error:
        if any(word in error.message for word in _UNKNOWN):
            raise SetAdminPasswdNotSupported(error.message) from error
        raise InternalError(err=f"the password of {user} could not be set: {error.message}") from error
    if answer is _Answer.NONE:
        raise NotImplementedError(f"the agent in the guest of {instance.uuid} does not answer")
    _check(answer, instance)


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


def _thaw(site: Site, instance: Instance) -> None:
    for left in reversed(range(_THAWS)):
        try:
            _check(_ask(site, instance, lambda domain: domain.fsThaw(None, 0)), instance)
            return
        except (HypervisorUnavailable, InstanceQuiesceFailed):
            if not left:
                raise
        except InstanceNotFound:
            raise
        except OperationFailed as error:
            raise _refused(error, instance) from error


def _thaw_quietly(site: Site, instance: Instance) -> None:
    """When another error goes on, or nobody knows whether anything is frozen."""
    try:
        _thaw(site, instance)
    except ComputeError as error:
        _LOG.warning("the file systems of the instance %s could not be thawed: %s", instance.uuid, error)


def _refused(error: OperationFailed, instance: Instance) -> ComputeError:
    if any(word in error.message for word in _UNKNOWN) and _FROZEN not in error.message:
        return InstanceQuiesceNotSupported(f"the file systems of instance {instance.uuid} cannot be frozen: {error.message}")
    return InstanceQuiesceFailed(reason=error.message)


def _check(answer: _Answer, instance: Instance) -> None:
    if answer is _Answer.OFF:
        raise InstanceNotRunning(instance_id=instance.uuid)
    if answer is _Answer.NO_LINE:
        raise QemuGuestAgentNotEnabled("the guest was not given a line to QEMU's agent", hint="reboot it hard")
    if answer is _Answer.NONE:
        raise InstanceQuiesceFailed(
            reason=f"the agent in the guest of {instance.uuid} does not answer",
            hint="see that qemu-guest-agent runs in the guest",
        )


def _ask(site: Site, instance: Instance, question: Callable[[Any], object]) -> _Answer:
    """Ask the agent of a guest, which has the time that libvirt has for an answer.

    Raises:
        OperationFailed: what it answers is a refusal. InstanceNotFound, HypervisorUnavailable
    """
    libvirt, seconds = library(), max(1, int(site.connection.timeout))
    silence = {
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE: _Answer.NONE,
        libvirt.VIR_ERR_AGENT_UNSYNCED: _Answer.NONE,
        libvirt.VIR_ERR_OPERATION_INVALID: _Answer.OFF,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: _Answer.NO_LINE,
    }

    def asked(handle: Any) -> _Answer:
        domain = handle.lookupByUUIDString(instance.uuid)
        try:
            domain.agentSetResponseTimeout(seconds, 0)
            question(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in silence:
                raise
            return silence[error.get_error_code()]
        return _Answer.DONE

    missing = InstanceNotFound(instance_id=instance.uuid)
    return site.connection.ask(asked, missing=missing, seconds=seconds + _GREETING)
