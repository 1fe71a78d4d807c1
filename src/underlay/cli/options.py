"""Options that several commands share."""

from pathlib import Path

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
wide_option = click.option("--wide", is_flag=True, help="Shorten nothing; lines may be long.")
cache_option = click.option("--cache", metavar="NAME", help="A cache of the configuration, instead of its first.")
disk_name_option = click.option(
    "--name", default="disk", show_default=True, metavar="NAME", help="The disk: 'disk' or 'disk.SUFFIX'."
)
closed_option = click.option(
    "--assume-closed", is_flag=True, help="Nobody has the disk open, for certain: where that cannot be told."
)
disk_path_option = click.option(
    "--path",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="The disk's file, when it lies outside the instances path.",
)
