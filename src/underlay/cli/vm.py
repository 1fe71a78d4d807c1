"""``underlay vm``: virtual machines on this host's libvirt, whose disks come from the caches."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from underlay import later, render
from underlay.cli.console import console
from underlay.cli.options import json_option, vm_argument, wide_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.cli.vmcreate import answer_vm, create
from underlay.naming import printable
from underlay.units import parse_duration

if TYPE_CHECKING:
    from underlay.vm import life, machines
    from underlay.vm.machines import UnreadableVm, Vm
else:
    life, machines = later.module("underlay.vm.life"), later.module("underlay.vm.machines")

_file = click.Path(path_type=Path, readable=False)


@click.group(short_help="Make and run virtual machines by libvirt.")
def vm() -> None:
    """Make, list, start, stop, snapshot and remove virtual machines, by libvirt, from images of the caches.

    Those that 'underlay vm create' made, and no others.

    \b
    underlay vm create web --image https://example.org/debian-12.qcow2
    underlay vm console web
    """


vm.add_command(console)
vm.add_command(create)


@vm.command("list", short_help="List the virtual machines.")
@wide_option
@json_option
@click.pass_obj
def list_vms(session: Session, wide: bool, as_json: bool) -> None:  # noqa: FBT001
    """List the virtual machines that 'underlay vm create' made; also those of which libvirt's metadata say so, and no more."""
    with session.host() as host:
        with machines.connected(host) as connection:
            found = machines.everyone(connection)
        readable = [(one, life.disks_of(host, one)) for one in found if isinstance(one, machines.Vm)]
    unreadable = [one for one in found if isinstance(one, machines.UnreadableVm)]
    if as_json:
        told = [render.unreadable_vm_json(one) for one in unreadable]
        answer({"vms": [render.vm_json(*one) for one in readable], "problems": told})
    else:
        show(render.vm_table(readable, unreadable), *map(render.unreadable_vm_text, unreadable), wide=wide)


@vm.command("show", short_help="Show a virtual machine.")
@vm_argument
@json_option
@click.pass_obj
def show_vm(session: Session, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Show the virtual machine NAME: its size, its disks, its interfaces with their addresses, and what it was made from."""
    with session.host() as host:
        with machines.connected(host) as connection:
            found = machines.find(connection, name)
        disks = life.disks_of(host, found)
    if as_json:
        answer({"vm": render.vm_json(found, disks)})
    else:
        show(render.vm_facts(found, disks, now=render.utc_now()))


@vm.command(short_help="Start a virtual machine.")
@vm_argument
@json_option
@click.pass_obj
def start(session: Session, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Start the virtual machine NAME. One that runs is a success, and one that is paused goes on."""
    with session.host() as host:
        found = life.start(host, name)
        disks = life.disks_of(host, found)
    answer_vm(found, disks, as_json=as_json)


@vm.command(short_help="Shut a virtual machine down.")
@vm_argument
@click.option("--timeout", default="1min", show_default=True, metavar="TIME", help="How long it has to shut down by itself.")
@click.option("--force", is_flag=True, help="Cut its power at once.")
@json_option
@click.pass_obj
def stop(session: Session, name: str, timeout: str, force: bool, as_json: bool) -> None:  # noqa: FBT001
    """Have the virtual machine NAME shut down, by its power button; its power is cut when it has not in time."""
    seconds = 0.0 if force else parse_duration(timeout)
    with session.host() as host:
        found = life.stop(host, name, seconds=seconds)
        disks = life.disks_of(host, found)
    answer_vm(found, disks, as_json=as_json)


@vm.command(short_help="Start a virtual machine anew.")
@vm_argument
@click.option("--hard", is_flag=True, help="Cut its power at once, and have libvirt told anew what it is.")
@json_option
@click.pass_obj
def reboot(session: Session, name: str, hard: bool, as_json: bool) -> None:  # noqa: FBT001
    """Start the virtual machine NAME anew, by its power button.

    When it has not shut down within wait_soft_reboot of the configuration, its power is cut.
    """
    with session.host() as host:
        found = life.reboot(host, name, is_hard=hard)
        disks = life.disks_of(host, found)
    answer_vm(found, disks, as_json=as_json)


@vm.command(short_help="Write a virtual machine's root disk into a file.")
@vm_argument
@click.argument("to", required=False, type=_file)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["qcow2", "raw"]),
    help="Of the new file. Default: raw if TO ends in .raw, else as configured.",
)
@json_option
@click.pass_obj
def snapshot(session: Session, name: str, to: Path | None, image_format: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Write the root disk of the machine NAME, as it is now, into the new file TO, which needs no other.

    The machine may run, and is not stopped; then the file has what a power cut would leave. Without TO the file lies in
    snapshots_directory of the configuration, else in 'snapshots' below the instances path. It can be fetched as an image:

    \b
    underlay vm snapshot web /srv/images/golden.qcow2
    underlay vm create web-2 --image file:///srv/images/golden.qcow2
    """
    with session.host() as host:
        target = life.snapshot(host, name, None if to is None else to.absolute(), image_format=image_format)
    if as_json:
        answer({"snapshot": str(target)})
    else:
        show(str(target))


@vm.command(short_help="Remove a virtual machine with its disks.")
@vm_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def delete(session: Session, name: str, yes: bool, as_json: bool) -> None:  # noqa: FBT001
    """Remove the virtual machine NAME with its disks and all that is on them. It is asked first, unless --yes is given.

    Its base image stays, for as long as the rules of a prune keep it.
    """
    with session.host() as host:
        with machines.connected(host) as connection:
            found = machines.find_any(connection, name)
        if not yes:
            _confirm(found)
        removed = life.delete(host, found.uuid)
    if as_json:
        answer({"deleted": {"name": removed.name, "uuid": removed.uuid}})
    else:
        show(f"deleted {printable(removed.name)}")


def _confirm(machine: "Vm | UnreadableVm") -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(f"{printable(machine.name)} and what is on its disks would be gone: say --yes")
    click.confirm(f"Remove {printable(machine.name)} ({machine.state}) and all that is on its disks?", abort=True, err=True)
