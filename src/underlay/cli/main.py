"""The top of the command line: global options, the list of commands, and how every failure ends.

Standard output is for answers, standard error for events, progress and errors. With ``--json`` an error is an answer too.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import click

from underlay.errors import UnderlayError
from underlay.version import __version__

_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "fetch": "underlay.cli.fetch:fetch",
        "disk": "underlay.cli.disk:disk",
        "list": "underlay.cli.look:list_images",
        "show": "underlay.cli.look:show",
        "du": "underlay.cli.look:du",
        "check": "underlay.cli.check:check",
        "demo": "underlay.cli.demo:demo",
        "completion": "underlay.cli.completion:completion",
    }
)
_INTERRUPTED, _INTERNAL = 130, 1


class _Commands(click.Group):
    """Imports a command's module when that command is run or its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        location = _COMMANDS.get(cmd_name)
        if location is None:
            return None
        module, _, attribute = location.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration file. Without it: $UNDERLAY_CONFIG, /etc/underlay/underlay.toml, the user's own, an embedded default.",
)
@click.option("-v", "--verbose", count=True, help="Tell more on standard error; twice tells every step.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of log lines.")
@click.version_option(__version__, prog_name="underlay")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, verbose: int, log_format: str) -> None:
    """Keep operating-system disk images on this host, and make instance disks from them.

    \b
    underlay fetch https://example.org/debian-12.qcow2 --checksum sha512:…
    underlay disk create web-1 --image https://example.org/debian-12.qcow2 --size 20GiB
    underlay list
    """
    from underlay.cli.session import Session

    ctx.obj = Session(config=config, verbose=verbose, log_format=log_format)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in arguments
    try:
        status = cli.main(args=list(arguments), prog_name="underlay", standalone_mode=False)
    except UnderlayError as error:
        status = _fail(error.code, error.message, error.hint, error.exit_code, as_json=as_json)
    except click.ClickException as error:
        status = _fail("usage", error.format_message(), _usage_hint(error), error.exit_code, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        status = _fail("interrupted", "interrupted", None, _INTERRUPTED, as_json=as_json)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:  # noqa: BLE001 - the last door: a user never sees a traceback
        status = _fail("internal", _internal(error), "this is a defect: please report it", _INTERNAL, as_json=as_json)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(code: str, message: str, hint: str | None, exit_code: int, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"error": {"code": code, "message": message, "hint": hint}}))
    else:
        click.echo(f"underlay: {message}" + (f" ({hint})" if hint else ""), err=True)
    return exit_code


def _usage_hint(error: click.ClickException) -> str | None:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"see '{error.ctx.command_path} --help'"
    return None


def _internal(error: Exception) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" at {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
    return " ".join(f"internal error{where}: {type(error).__name__}: {error}".split())
