"""``underlay vm``: virtual machines on this host's libvirt, whose disks come from the caches."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from underlay import later, render
from underlay.cli.console import console
from underlay.cli.options import cache_option, checksum_option, json_option, signature_option, vm_argument, wide_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.model import InstanceDisk
from underlay.naming import printable
from underlay.units import parse_duration

if TYPE_CHECKING:
    from underlay.vm import instances, life, machines, wanted
    from underlay.vm.machines import UnreadableVm, Vm
else:
    instances, life = later.module("underlay.vm.instances"), later.module("underlay.vm.life")
    machines, wanted = later.module("underlay.vm.machines"), later.module("underlay.vm.wanted")

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


@vm.command(short_help="Make a virtual machine from an image and start it.")
@click.argument("name")
@click.option(
    "--image", required=True, metavar="IMAGE", help="A ref, fetched first unless it is here; or the name of an image that is."
)
@checksum_option
@signature_option
@click.option("--size", metavar="SIZE", help="Of the root disk, such as 20GiB. Default: the image's virtual size.")
@click.option("--memory", default="1GiB", show_default=True, metavar="SIZE", help="Of the machine.")
@click.option("--vcpus", default=1, show_default=True, type=click.IntRange(1), metavar="N", help="Virtual processors.")
@click.option("--bridge", "bridges", multiple=True, metavar="NAME", help="An interface in this bridge of the host. Repeatable.")
@click.option(
    "--network", "networks", multiple=True, metavar="NAME", help="An interface in this network of libvirt. Repeatable."
)
@click.option("--no-network", "alone", is_flag=True, help="No interface; without this, one in libvirt's network 'default'.")
@click.option("--user-data", type=_file, metavar="FILE", help="What cloud-init is told, such as a #cloud-config.")
@click.option("--ssh-key", type=_file, metavar="FILE", help="A public key by which its first user is reached.")
@click.option("--config-drive/--no-config-drive", default=True, show_default=True, help="A CD that tells the guest its name.")
@click.option(
    "--backend", "--format", "backend", metavar="NAME", help="Of its disks: qcow2 (overlays), flat (raw), or another."
)
@cache_option
@click.option("--swap", metavar="SIZE", help="A swap disk of this size, such as 512MiB.")
@click.option("--ephemeral", "ephemerals", multiple=True, metavar="SIZE", help="A disk with an empty file system. Repeatable.")
@click.option("--os-type", default="linux", show_default=True, metavar="NAME", help="The guest's system, such as windows.")
@click.option("--property", "properties", multiple=True, metavar="NAME=VALUE", help="As of an image, such as hw_disk_bus=sata.")
@click.option("--no-start", "starts", flag_value=False, default=True, help="Make it, and leave it off.")
@click.option("--wait", is_flag=True, help="Wait until it has written something to its serial line.")
@click.option("--timeout", default="2min", show_default=True, metavar="TIME", help="How long --wait waits.")
@json_option
@click.pass_obj
def create(
    session: Session,
    name: str,
    image: str,
    checksum: str | None,
    signature: str | None,
    size: str | None,
    memory: str,
    vcpus: int,
    bridges: tuple[str, ...],
    networks: tuple[str, ...],
    alone: bool,  # noqa: FBT001
    user_data: Path | None,
    ssh_key: Path | None,
    config_drive: bool,  # noqa: FBT001
    backend: str | None,
    cache: str | None,
    swap: str | None,
    ephemerals: tuple[str, ...],
    os_type: str,
    properties: tuple[str, ...],
    starts: bool,  # noqa: FBT001
    wait: bool,  # noqa: FBT001
    timeout: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make the virtual machine NAME from an image, which is fetched first unless it is here, and start it.

    Whole or not at all: after a failure there is no disk, no directory and nothing that libvirt knows of. libvirt is the one of
    connection_uri in the configuration, without one qemu:///system; 'virsh list' shows the machine too. A guest with cloud-init
    finds its name, your key and your user data on a config drive.

    \b
    underlay vm create web --image https://example.org/debian-12.qcow2
    underlay vm create db --image glance:70a599e0-31e7-49b7-b260-868f441e862b \\
        --size 40GiB --memory 4GiB --vcpus 2 --bridge br0 --swap 2GiB \\
        --ssh-key ~/.ssh/id_ed25519.pub --user-data db.yaml --wait
    """
    _check_together(
        data=user_data or ssh_key, config_drive=config_drive, nets=bridges + networks, alone=alone, wait=wait, starts=starts
    )
    seconds = parse_duration(timeout)
    machine = wanted.Wanted(
        name=wanted.checked_name(name),
        image=image,
        checksum=checksum,
        signature=signature,
        memory_mib=wanted.mebibytes(memory, what="the memory"),
        vcpus=vcpus,
        os_type=wanted.system(os_type),
        root_gib=0 if size is None else wanted.gibibytes(size, what="the root disk"),
        swap_mib=0 if swap is None else wanted.mebibytes(swap, what="the swap disk"),
        ephemerals_gib=wanted.ephemeral_sizes(ephemerals),
        bridges=bridges,
        networks=networks,
        alone=alone,
        properties=wanted.properties_of(properties),
        data=instances.DriveContent(
            config_drive=config_drive,
            user_data=None if user_data is None else wanted.content_of(user_data),
            key=None if ssh_key is None else wanted.public_key(ssh_key),
        ),
        backend=backend,
        cache=cache,
        starts=starts,
    )
    with session.host() as host:
        made = life.create(host, machine)
        if wait:
            life.await_output(host, made, seconds=seconds)
        disks = life.disks_of(host, made)
    _answer(made, disks, as_json=as_json)


def _check_together(
    *, data: Path | None, config_drive: bool, nets: tuple[str, ...], alone: bool, wait: bool, starts: bool
) -> None:
    if data is not None and not config_drive:
        raise click.UsageError("--user-data and --ssh-key need the config drive: leave --no-config-drive out")
    if nets and alone:
        raise click.UsageError("--no-network goes with neither --bridge nor --network")
    if wait and not starts:
        raise click.UsageError("--wait waits for a machine that runs: leave --no-start out")


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
    _answer(found, disks, as_json=as_json)


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
    _answer(found, disks, as_json=as_json)


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
    _answer(found, disks, as_json=as_json)


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


def _answer(found: "Vm", disks: Sequence[InstanceDisk], *, as_json: bool) -> None:
    if as_json:
        answer({"vm": render.vm_json(found, disks)})
    else:
        show(render.vm_line(found))
