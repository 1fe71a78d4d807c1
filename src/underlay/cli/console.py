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

if TYPE_CHECKING:
    from underlay.compute.libvirt.connection import Connection
    from underlay.host import Host
    from underlay.vm import consoles, life, machines
    from underlay.vm.consoles import Line, Written
else:
    consoles, life = later.module("underlay.vm.consoles"), later.module("underlay.vm.life")
    machines = later.module("underlay.vm.machines")

_LEAVE, _LEAVE_KEY = b"\x1d", "Ctrl+]"  # as telnet and virsh have it
_POLL = 0.02  # seconds between two looks at what the guest has written
_LOOK_AGAIN = 1.0  # seconds between two looks whether it runs at all
_LAST = 102_400  # bytes of what it wrote before


@click.command(short_help="Be at the serial line of a virtual machine.")
@vm_argument
@click.option("--output", "only_output", is_flag=True, help="Print the end of what it has written, and nothing else.")
@json_option
@click.pass_obj
def console(session: Session, name: str, only_output: bool, as_json: bool) -> None:  # noqa: FBT001
    """Be at the serial line of the machine NAME: what it has written since it was started, what it writes, and what you type.

    Ctrl+] leaves, and the machine runs on. When standard input or output is no terminal, nothing is typed, and what the
    machine writes is printed until it is off. One at a time types.

    With --output, or with --json, the end of what it has written is the answer, also of a machine that is off.

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
        _put(output)


def _follow(host: "Host", name: str) -> None:
    from underlay.compute.errors import InstanceNotRunning

    with machines.connected(host) as connection:
        vm = machines.find(connection, name)
        if not vm.is_running or vm.console_log is None:
            hint = f"'underlay vm start {vm.name}' starts it; --output shows what it wrote"
            raise InstanceNotRunning(f"{vm.name} is {vm.state}, and not at its serial line", hint=hint)
        with consoles.read_from(vm.console_log, last=_LAST) as written:
            if sys.stdin.isatty() and sys.stdout.isatty():
                _talk(connection, vm.uuid, written, vm.name)
            else:
                is_off = _is_off(connection, vm.uuid)
                while _show(written) or not is_off():
                    time.sleep(_POLL)
                _show(written)


def _talk(connection: "Connection", uuid: str, written: "Written", name: str) -> None:
    terminal, is_off = sys.stdin.fileno(), _is_off(connection, uuid)
    with consoles.line_to(connection, uuid) as line:
        _tell(f"at {name}; {_LEAVE_KEY} leaves")
        with _raw(terminal):
            why = _converse(terminal, written, line, is_off)
    _tell(f"\n{name} {why}")


def _converse(terminal: int, written: "Written", line: "Line", is_off: Callable[[], bool]) -> str:
    """Carry bytes both ways until one side ends; how that was."""
    while True:
        _show(written)
        line.turn()
        if select.select([terminal], [], [], _POLL)[0]:
            typed = os.read(terminal, 1 << 10)
            line.type(typed.partition(_LEAVE)[0])
            line.turn()
            if not typed or _LEAVE in typed:
                return "runs on"
        elif is_off():
            _show(written)
            return "is off"


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


def _show(written: "Written") -> bool:
    """Print all that has come; whether anything has."""
    has_come = False
    while piece := written.rest():
        _put(piece)
        has_come = True
    return has_come


def _put(data: bytes) -> None:
    with writing():
        sys.stdout.buffer.write(data)


def _tell(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Every key goes to the guest; who ends us finds the terminal as it was."""
    before, handler = termios.tcgetattr(terminal), signal.signal(signal.SIGTERM, signal.default_int_handler)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)
