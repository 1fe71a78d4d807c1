"""``underlay disk``: the disks of instances."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from underlay import render
from underlay.cli.options import (
    cache_option,
    closed_option,
    disk_name_option,
    disk_path_option,
    grow_option,
    json_option,
    key_of,
    wide_option,
)
from underlay.cli.output import answer, show
from underlay.cli.session import Session
from underlay.model import InstanceDisk

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def disk() -> None:
    """Make, list, grow, write out and remove the disks of instances."""


@disk.command()
@click.argument("instance")
@click.option(
    "--image", required=True, metavar="IMAGE", help="A ref, fetched first unless it is here; or the name of an image that is."
)
@click.option("--size", metavar="SIZE", help="What the guest sees, such as 20GiB. Default: the image's virtual size.")
@click.option(
    "--backend", metavar="NAME", help="qcow2 (an overlay), flat (a raw copy), another of 'disk backends', or default."
)
@disk_name_option
@disk_path_option
@cache_option
@click.option(
    "--key-file", type=click.Path(path_type=Path, readable=False), metavar="FILE", help="Encrypt the disk with FILE's content."
)
@grow_option
@json_option
@click.pass_obj
def create(
    session: Session,
    instance: str,
    image: str,
    size: str | None,
    backend: str | None,
    name: str,
    path: Path | None,
    cache: str | None,
    key_file: Path | None,
    grow_filesystem: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make a disk for INSTANCE (a UUID or a name) from an image.

    The same disk, when it is there already, is a success; a different one is left alone and reported.

    \b
    underlay disk create web-1 --image https://example.org/debian-12.qcow2 --size 20GiB
    """
    key = None if key_file is None else key_of(key_file)
    with session.host() as host:
        made = host.create_disk(
            instance,
            image,
            size=size,
            backend=backend,
            name=name,
            path=path,
            cache=cache,
            key=key,
            grow_filesystem=grow_filesystem,
        )
    _answer(made, as_json=as_json)


def _generated_options(default_name: str) -> Callable[[_Command], _Command]:
    """The options of commands that make a disk from an image which no source has."""

    def decorate(command: _Command) -> _Command:
        made: Any = command
        for option in (
            click.pass_obj,
            json_option,
            cache_option,
            disk_path_option,
            click.option("--name", default=default_name, show_default=True, metavar="NAME", help="The disk: 'disk.SUFFIX'."),
            click.option("--backend", metavar="NAME", help="As for 'disk create'."),
        ):
            made = option(made)
        return made  # type: ignore[no-any-return]

    return decorate


@disk.command()
@click.argument("instance")
@click.argument("size")
@_generated_options("disk.swap")
def swap(
    session: Session,
    instance: str,
    size: str,
    backend: str | None,
    name: str,
    path: Path | None,
    cache: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make a swap disk of SIZE, such as 512MiB, for INSTANCE. All swap disks of a size share one base image."""
    with session.host() as host:
        made = host.create_swap(instance, size, backend=backend, name=name, path=path, cache=cache)
    _answer(made, as_json=as_json)


@disk.command()
@click.argument("instance")
@click.argument("size")
@click.option("--file-system", metavar="NAME", help="ext2, ext3, ext4, xfs, vfat or ntfs. Default: as the configuration says.")
@click.option("--os-type", metavar="NAME", help="The guest's system, such as linux: it decides where nothing else does.")
@_generated_options("disk.eph0")
def ephemeral(
    session: Session,
    instance: str,
    size: str,
    file_system: str | None,
    os_type: str | None,
    backend: str | None,
    name: str,
    path: Path | None,
    cache: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make a disk of SIZE, such as 10GiB, with an empty file system for INSTANCE. All such disks share one base image."""
    with session.host() as host:
        made = host.create_ephemeral(
            instance, size, file_system=file_system, os_type=os_type, backend=backend, name=name, path=path, cache=cache
        )
    _answer(made, as_json=as_json)


@disk.command("list")
@wide_option
@json_option
@click.pass_obj
def list_disks(session: Session, wide: bool, as_json: bool) -> None:  # noqa: FBT001
    """List the disks in the instances path, and ours elsewhere."""
    with session.host() as host:
        disks = host.disks()
    if as_json:
        answer({"disks": [render.disk_json(one) for one in disks]})
    else:
        show(render.disk_table(disks, wide=wide), wide=wide)


@disk.command("show")
@click.argument("instance")
@disk_name_option
@disk_path_option
@json_option
@click.pass_obj
def show_disk(session: Session, instance: str, name: str, path: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Show one disk of INSTANCE."""
    with session.host() as host:
        found = host.disk(instance, name=name, path=path)
    _answer(found, as_json=as_json)


@disk.command()
@click.argument("instance")
@disk_name_option
@disk_path_option
@json_option
@click.pass_obj
def attachment(session: Session, instance: str, name: str, path: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Say how a hypervisor is to open a disk of INSTANCE, in the words of libvirt's domain XML."""
    with session.host() as host:
        found = host.attachment(instance, name=name, path=path)
    if as_json:
        answer({"attachment": render.attachment_json(found)})
    else:
        show(render.attachment_line(found))


@disk.command()
@click.argument("instance")
@click.argument("size")
@disk_name_option
@disk_path_option
@closed_option
@grow_option
@json_option
@click.pass_obj
def resize(
    session: Session,
    instance: str,
    size: str,
    name: str,
    path: Path | None,
    assume_closed: bool,  # noqa: FBT001
    grow_filesystem: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Grow a disk of INSTANCE to SIZE, such as 40GiB. Nothing is ever made smaller, nothing that is open is touched."""
    with session.host() as host:
        grown = host.resize_disk(
            instance, size, name=name, path=path, assume_closed=assume_closed, grow_filesystem=grow_filesystem
        )
    _answer(grown, as_json=as_json)


@disk.command()
@click.argument("instance")
@disk_name_option
@disk_path_option
@closed_option
@json_option
@click.pass_obj
def remove(
    session: Session,
    instance: str,
    name: str,
    path: Path | None,
    assume_closed: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Remove a disk of INSTANCE that nobody has open. Its base image stays."""
    with session.host() as host:
        removed = host.remove_disk(instance, name=name, path=path, assume_closed=assume_closed)
    if as_json:
        answer({"removed": render.disk_json(removed)})
    else:
        show(f"removed {removed.path}")


@disk.command()
@click.argument("instance")
@click.argument("target", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--format", "disk_format", default="qcow2", show_default=True, metavar="FORMAT", help="Of the new file: raw or qcow2."
)
@click.option("--compress", is_flag=True, help="Compress the new file's clusters.")
@disk_name_option
@disk_path_option
@closed_option
@json_option
@click.pass_obj
def extract(
    session: Session,
    instance: str,
    target: Path,
    disk_format: str,
    compress: bool,  # noqa: FBT001
    name: str,
    path: Path | None,
    assume_closed: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Write what INSTANCE's guest sees on a disk into the new file TARGET, which needs neither the disk nor its base image."""
    target = target.absolute()
    with session.host() as host:
        host.extract_disk(
            instance, target, format=disk_format, compressed=compress, name=name, path=path, assume_closed=assume_closed
        )
    if as_json:
        answer({"extracted": str(target)})
    else:
        show(f"extracted {target}")


@disk.command()
@click.argument("instance")
@disk_name_option
@disk_path_option
@closed_option
@json_option
@click.pass_obj
def flatten(
    session: Session,
    instance: str,
    name: str,
    path: Path | None,
    assume_closed: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Have a disk of INSTANCE stand alone. From then on it keeps no base image."""
    with session.host() as host:
        flattened = host.flatten_disk(instance, name=name, path=path, assume_closed=assume_closed)
    _answer(flattened, as_json=as_json)


@disk.command()
@click.argument("instance")
@click.option(
    "--image", required=True, metavar="IMAGE", help="A ref, fetched first unless it is here; or the name of an image that is."
)
@disk_name_option
@disk_path_option
@cache_option
@closed_option
@json_option
@click.pass_obj
def rebase(
    session: Session,
    instance: str,
    image: str,
    name: str,
    path: Path | None,
    cache: str | None,
    assume_closed: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Have a disk of INSTANCE read from another base image. What its guest sees stays as it is."""
    with session.host() as host:
        rebased = host.rebase_disk(instance, image, name=name, path=path, cache=cache, assume_closed=assume_closed)
    _answer(rebased, as_json=as_json)


@disk.command()
@click.argument("instance")
@click.argument("snapshot")
@disk_name_option
@json_option
@click.pass_obj
def snapshot(session: Session, instance: str, snapshot: str, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Keep a disk of INSTANCE as the image SNAPSHOT within its storage, where its backend can; the disk may be open."""
    with session.host() as host:
        location = host.snapshot_disk(instance, snapshot, name=name)
    if as_json:
        answer({"location": location})
    else:
        show(location)


@disk.command()
@wide_option
@json_option
@click.pass_obj
def backends(session: Session, wide: bool, as_json: bool) -> None:  # noqa: FBT001
    """List the backends that disks can have, and what each of them can."""
    with session.host() as host:
        traits = host.backends()
    if as_json:
        answer({"backends": [render.backend_json(one) for one in traits]})
    else:
        show(render.backend_table(traits), wide=wide)


@disk.command()
@click.argument("path", type=click.Path(path_type=Path, readable=False))
@json_option
@click.pass_obj
def forget(session: Session, path: Path, as_json: bool) -> None:  # noqa: FBT001
    """Forget the disk at PATH, outside the instances path, that is gone for good.

    Its base image is kept for it as long as it is recorded: that nothing is there may only mean that its file system is not
    mounted, or that it was renamed.
    """
    with session.host() as host:
        host.forget_disk(path)
    if as_json:
        answer({"forgotten": str(path)})
    else:
        show(f"forgot {path}")


def _answer(found: InstanceDisk, *, as_json: bool) -> None:
    if as_json:
        answer({"disk": render.disk_json(found)})
    else:
        show(render.disk_line(found))
