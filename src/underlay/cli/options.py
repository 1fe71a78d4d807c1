"""Options and kinds of value that several commands share."""

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from underlay.model import InstanceRecord


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A moment, aware: seconds since the epoch, or ISO 8601, which is UTC when it names no offset."""
    if value is None:
        return None
    try:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", value, re.ASCII):
            return datetime.fromtimestamp(float(value), UTC)
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        what = f"{value!r} is no time: write seconds since the epoch, or ISO 8601 such as 2026-01-31T12:00:00Z"
        raise click.BadParameter(what, ctx=ctx, param=param) from error


json_option = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
wide_option = click.option("--wide", is_flag=True, help="Shorten nothing; lines may be long.")
cache_option = click.option("--cache", metavar="NAME", help="A cache of the configuration, instead of its first.")
checksum_option = click.option(
    "--checksum", metavar="ALGO:HEX|URL", help="Digest that the bytes as served must have, or the URL of the list that has it."
)
signature_option = click.option("--signature", metavar="URL", help="Where that list's signature is, unless in it or beside it.")
disk_name_option = click.option(
    "--name", default="disk", show_default=True, metavar="NAME", help="The disk: 'disk' or 'disk.SUFFIX'."
)
closed_option = click.option(
    "--assume-closed", is_flag=True, help="Nobody has the disk open, for certain: where that cannot be told."
)
grow_option = click.option(
    "--grow-filesystem",
    is_flag=True,
    help="Grow an ext2, ext3 or ext4 that fills a raw disk without partitions along with the disk.",
)
disk_path_option = click.option(
    "--path",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="The disk's file, when it lies outside the instances path.",
)
instances_option = click.option(
    "--instances",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="A JSON list of instances, in place of the configured inventory.",
)
now_option = click.option(
    "--now",
    callback=_moment,
    metavar="TIME",
    help="By which ages are told: seconds since the epoch, or ISO 8601. Without it: the clock of each cache's file system.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")


def records_of(file: Path | None) -> list[InstanceRecord] | None:
    """The instances of a file, or None without one.

    Raises:
        InventoryUnavailable, InvalidInventory
    """
    if file is None:
        return None
    from underlay.inventory.file import read_file

    return list(read_file(file))


def key_of(file: Path) -> bytes:
    """The key in a file, as it is.

    Raises:
        ConfigError: the message has nothing of it.
    """
    from underlay.errors import ConfigError
    from underlay.files import read_regular

    try:
        key = read_regular(file)
    except OSError as error:
        raise ConfigError(f"the key file {file} cannot be read: {error.strerror}") from error
    if not key:
        raise ConfigError(f"the key file {file} is empty")
    return key


_PATIENCE = 3.0  # seconds that libvirt has to tell what a word may be completed to


def _vm_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The machines whose names begin so. Who completes a word waits, and wants no error: then there is none."""
    from underlay.config import load_config
    from underlay.errors import UnderlayError
    from underlay.host import Host
    from underlay.vm import machines

    try:
        host = Host.open(load_config(ctx.find_root().params.get("config")))
        with machines.connected(host, seconds=_PATIENCE) as connection:
            return [name for name in machines.names(connection) if name.startswith(incomplete)]
    except UnderlayError:
        return []


vm_argument = click.argument("name", shell_complete=_vm_names)
