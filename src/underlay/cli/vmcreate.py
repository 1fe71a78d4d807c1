"""``underlay vm create``: what is wanted of a virtual machine, read from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from underlay import later, render
from underlay.cli.options import cache_option, checksum_option, json_option, signature_option
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.model import InstanceDisk
from underlay.units import parse_duration

if TYPE_CHECKING:
    from underlay.vm import instances, life, wanted
    from underlay.vm.machines import Vm
else:
    instances, life = later.module("underlay.vm.instances"), later.module("underlay.vm.life")
    wanted = later.module("underlay.vm.wanted")

_file = click.Path(path_type=Path, readable=False)


@click.command(short_help="Make a virtual machine from an image and start it.")
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
    answer_vm(made, disks, as_json=as_json)


def _check_together(
    *, data: Path | None, config_drive: bool, nets: tuple[str, ...], alone: bool, wait: bool, starts: bool
) -> None:
    if data is not None and not config_drive:
        raise click.UsageError("--user-data and --ssh-key need the config drive: leave --no-config-drive out")
    if nets and alone:
        raise click.UsageError("--no-network goes with neither --bridge nor --network")
    if wait and not starts:
        raise click.UsageError("--wait waits for a machine that runs: leave --no-start out")


def answer_vm(found: "Vm", disks: Sequence[InstanceDisk], *, as_json: bool) -> None:
    """Print one machine, as every command does that has changed it."""
    if as_json:
        answer({"vm": render.vm_json(found, disks)})
    else:
        show(render.vm_line(found))
