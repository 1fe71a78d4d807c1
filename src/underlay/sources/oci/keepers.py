"""Programs that keep logins for docker: ``docker-credential-NAME``, which tells one to who asks for a server's.

The form is docker's (docker-credential-helpers, "Development"): ``get`` is the argument, the server's name is on standard
input, and the answer is JSON. What such a program prints may be a secret, so no message repeats any of it.
"""

import re
import shutil
from collections.abc import Mapping

import msgspec

from underlay.errors import ToolFailed, ToolMissing, ToolTimedOut
from underlay.run import Ended, Limits, run_to_end
from underlay.sources.oci.login import Login

_LIMITS = Limits(seconds=30.0, memory=8 << 30, cpu_seconds=20, dies_with_caller=True)
_LONGEST = 1 << 20  # bytes of an answer
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NOT_FOUND = b"credentials not found in native keychain"
_IDENTITY = "<token>"  # the user of an identity token


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str
    secret: str


def is_installed(name: str, environment: Mapping[str, str]) -> bool:
    """Whether there is such a program."""
    return _NAME.fullmatch(name) is not None and shutil.which(_program(name), path=environment.get("PATH")) is not None


def ask(name: str, server: str, *, origin: str, environment: Mapping[str, str]) -> Login | None:
    """The login that a program keeps for a server; None when it has none. What is wrong with it is said in the login.

    Args:
        server: as docker calls it. origin: of the login, for messages.
        environment: of the program, which finds by it what it needs; it is looked for in its PATH.
    """
    origin = f"{origin}, kept by {_program(name)}"
    if not _NAME.fullmatch(name):
        return Login(origin=origin, unusable="no program can be called so")
    try:
        ended = run_to_end([_program(name), "get"], limits=_LIMITS, content=server.encode(), environment=environment)
    except ToolMissing:
        return Login(origin=origin, unusable="the program is not installed")
    except (ToolFailed, ToolTimedOut) as error:
        return Login(origin=origin, unusable=error.message)
    if ended.status != 0 and _NOT_FOUND in ended.output + ended.errors:
        return None
    return _login(ended, origin)


def _login(ended: Ended, origin: str) -> Login:
    if ended.status != 0:
        return Login(origin=origin, unusable=f"the program ended with status {ended.status}")
    try:
        answer = msgspec.json.decode(ended.output[:_LONGEST], type=_Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return Login(origin=origin, unusable="the program answers no JSON of docker's form")
    if answer.username == _IDENTITY:
        return Login(origin=origin, identity_token=answer.secret)
    return Login(origin=origin, user=answer.username, password=answer.secret)


def _program(name: str) -> str:
    return f"docker-credential-{name}"
