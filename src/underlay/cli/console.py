"""``underlay vm console``: at the serial line of a virtual machine, or what it has written there."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from underlay import later
from underlay.cli.options import json_option, vm_argument
from underlay.cli.output import answer, writing
from underlay.cli.session import Session
from underlay.naming import printable

if TYPE_CHECKING:
    from underlay.compute.libvirt.connection import Connection
    from underlay.host import Host
    from underlay.vm import consoles, life, machines, plaintext
    from underlay.vm.consoles import Line, Written
else:
    consoles, life = later.module("underlay.vm.consoles"), later.module("underlay.vm.life")
    machines, plaintext = later.module("underlay.vm.machines"), later.module("underlay.vm.plaintext")

_LEAVE, _LEAVE_KEY = b"\x1d", "Ctrl+]"  # as telnet and virsh have it
_POLL = 0.02  # seconds between two looks at what the guest has written
_LOOK_AGAIN = 1.0  # seconds between two looks whether it runs at all
_GRACE = 2.5  # seconds until a line that is lost is told, as its guest may have ended
_LAST = 102_400  # bytes of what it wrote before
# Ends what a guest may have had a terminal do: a soft reset, lines that wrap, no reports of the mouse, no marks around what is
# pasted (DECSTR, DECAWM and the private modes of xterm's control sequences).
_AS_BEFORE = b"\x1b[!p\x1b[?7h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l"


@click.command(short_help="Be at the serial line of a virtual machine.")
@vm_argument
@click.option("--output", "only_output", is_flag=True, help="Print the end of what it has written, and nothing else.")
@json_option
@click.pass_obj
def console(session: Session, name: str, only_output: bool, as_json: bool) -> None:  # noqa: FBT001
    """Be at the serial line of the machine NAME: what it has written since it was started, what it writes, and what you type.

    Ctrl+] leaves, and the machine runs on. When standard input or output is no terminal, nothing is typed, and what the
    machine writes is printed until it is off. One at a time types.

    With --output, or with --json, the end of what it has written is the answer, also of a machine that is off. A terminal is
    shown it as text, and does nothing of what the guest would have it do; so it is with what was written before you came.

    \b
    underlay vm console web
    underlay vm console web --output | tail
    """
    with session.host() as host:
        if only_output or as_json:
            _print(life.output(host, name), name, as_json=as_json)
        else:
            _follow(host, name)


def _print(output: bytes, name: str, *, as_json: bool) -> None:
    if as_json:
        answer({"name": name, "output": output.decode(errors="replace")})
    else:
        _printer()(output)


def _follow(host: "Host", name: str) -> None:
    from underlay.compute.errors import InstanceNotRunning

    with machines.connected(host) as connection:
        vm = machines.find(connection, name)
        if not vm.is_running or vm.console_log is None:
            hint = f"'underlay vm start {vm.name}' starts it; --output shows what it wrote"
            raise InstanceNotRunning(f"{vm.name} is {vm.state}, and not at its serial line", hint=hint)
        with consoles.read_from(vm.console_log, last=_LAST) as written:
            if sys.stdin.isatty() and sys.stdout.isatty():
                _talk(connection, vm.uuid, written, printable(vm.name))
            else:
                _listen(written, _is_off(connection, vm.uuid))


def _listen(written: "Written", is_off: Callable[[], bool]) -> None:
    put = _printer()
    while True:
        has_ended = is_off()  # asked first: then all that it wrote is there
        while piece := written.rest():
            put(piece)
        if has_ended:
            return
        time.sleep(_POLL)


def _printer() -> Callable[[bytes], None]:
    """Prints what the guest has written: byte for byte, but a terminal gets text and obeys nothing."""
    if not sys.stdout.isatty():
        return _put
    text = plaintext.PlainText()
    return lambda piece: _put(text.of(piece))


def _talk(connection: "Connection", uuid: str, written: "Written", name: str) -> None:
    terminal, is_off = sys.stdin.fileno(), _is_off(connection, uuid)
    with consoles.line_to(connection, uuid) as line:
        _tell(f"at {name}; {_LEAVE_KEY} leaves")
        _printer()(written.rest(_LAST))  # else a terminal would answer now what it was asked then, and type that to the guest
        with _raw(terminal):
            why = _converse(terminal, written, line, is_off)
    _tell(f"\n{name} {why}")


def _converse(terminal: int, written: "Written", line: "Line", is_off: Callable[[], bool]) -> str:
    """Carry bytes both ways until one side ends; how that was. A piece in each turn: a guest may write without end."""
    while True:
        _put(piece := written.rest())
        line.turn()
        if select.select([terminal], [], [], 0 if piece else _POLL)[0]:
            typed = os.read(terminal, 1 << 10)
            line.type(typed.partition(_LEAVE)[0])
            line.turn()
            if not typed or _LEAVE in typed:
                return "runs on"
        elif not piece and is_off():
            _put(written.rest())
            return "is off"
        elif line.lost_at is not None and time.monotonic() - line.lost_at > _GRACE:
            raise _cut_off()


def _cut_off() -> Exception:
    from underlay.compute.errors import OperationFailed

    what = "what is typed does not reach the serial line any more: somebody else was let in, or libvirt was started anew"
    return OperationFailed(what, hint="the machine runs on; 'underlay vm console' leads there again")


def _is_off(connection: "Connection", uuid: str) -> Callable[[], bool]:
    """Whether a machine is off, asked once in a while."""
    from underlay.compute.errors import InstanceNotFound
    from underlay.compute.libvirt.domain import Domain

    next_look = time.monotonic()

    def is_off() -> bool:
        nonlocal next_look
        if time.monotonic() < next_look:
            return False
        next_look = time.monotonic() + _LOOK_AGAIN
        try:
            return not Domain(connection, uuid).is_active()
        except InstanceNotFound:
            return True

    return is_off


def _put(data: bytes) -> None:
    with writing():
        sys.stdout.buffer.write(data)


def _tell(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Every key goes to the guest; who ends us finds the terminal as it was."""
    before, handler = termios.tcgetattr(terminal), signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)
        _put(_AS_BEFORE)
