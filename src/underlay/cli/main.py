"""The top of the command line: global options, the list of commands, and how every failure ends.

Standard output is for answers, standard error for events, progress and errors. With ``--json`` an error is an answer too.
"""

import atexit
import gc
import io
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import IO

import click
import msgspec

from underlay.cli.output import OutputFailed, silence, writing
from underlay.errors import UnderlayError
from underlay.version import __version__

_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "fetch": "underlay.cli.fetch:fetch",
        "disk": "underlay.cli.disk:disk",
        "vm": "underlay.cli.vm:vm",
        "list": "underlay.cli.look:list_images",
        "show": "underlay.cli.look:show",
        "du": "underlay.cli.du:du",
        "prune": "underlay.cli.prune:prune",
        "reclaim": "underlay.cli.prune:reclaim",
        "evict": "underlay.cli.prune:evict",
        "explain": "underlay.cli.prune:explain",
        "pin": "underlay.cli.lease:pin",
        "unpin": "underlay.cli.lease:unpin",
        "lease": "underlay.cli.lease:lease",
        "release": "underlay.cli.lease:release",
        "leases": "underlay.cli.lease:leases",
        "hosts": "underlay.cli.hosts:hosts",
        "precache": "underlay.cli.precache:precache",
        "refresh": "underlay.cli.refresh:refresh",
        "scrub": "underlay.cli.scrub:scrub",
        "check": "underlay.cli.check:check",
        "demo": "underlay.cli.demo:demo",
        "completion": "underlay.cli.completion:completion",
    }
)
_INTERRUPTED, _INTERNAL = 130, 1
_ALLOCATIONS = 50_000  # between two collections of the youngest objects


class _Commands(click.Group):
    """Imports a command's module when that command is run or its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, its answer flushed while a failure of that can still be told."""
        try:
            result = super().invoke(ctx)
            with writing():
                sys.stdout.flush()
        except KeyboardInterrupt as error:
            raise click.Abort from error  # before click sees it, who would print an empty line
        except BrokenPipeError:
            silence(sys.stdout)  # whoever read our answer has gone, and knows
            return 0
        return result

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
    type=click.Path(path_type=Path, readable=False),
    help="Configuration file. Without it: $UNDERLAY_CONFIG, /etc/underlay/underlay.toml, the user's own, an embedded default.",
)
@click.option("-v", "--verbose", count=True, help="Tell more on standard error; twice tells every step.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of log lines.")
@click.version_option(__version__, prog_name="underlay")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, verbose: int, log_format: str) -> None:
    """Keep operating-system disk images on this host, make instance disks from them, and remove what nobody needs.

    \b
    underlay fetch https://example.org/debian-12.qcow2 --checksum sha512:…
    underlay disk create web-1 --image https://example.org/debian-12.qcow2 --size 20GiB
    underlay list
    underlay prune --dry-run
    """
    from underlay.cli.session import Session

    ctx.obj = Session(config=config, verbose=verbose, log_format=log_format)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, without arguments the one that this process was started for, and exit with its status."""
    if arguments is None:
        arguments = sys.argv[1:]
        _spare_collections()
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the terminal's encoding does not
    try:
        status = cli.main(args=list(arguments), prog_name="underlay", standalone_mode=False)
    except (click.ClickException, click.Abort, UnderlayError, KeyboardInterrupt, Exception) as error:  # noqa: BLE001
        failure = _failure(error)  # the last door: a user never sees a traceback
        status = failure.exit_code
        if _is_help(error):
            _print(sys.stderr, failure.message)
        else:
            _tell(failure, arguments)
    sys.exit(status if isinstance(status, int) else 0)


def _spare_collections() -> None:
    """Look for cyclic garbage seldom: what was imported is none, and to look through it took a sixth of a command's time."""
    gc.set_threshold(_ALLOCATIONS)
    atexit.register(gc.freeze)  # the last collection, as the interpreter ends, then has nothing to look through


def _open_missing_streams() -> None:
    """Who starts us with standard output or standard error closed wants to hear nothing."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as we run


class _Failure(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    hint: str | None
    exit_code: int


def _failure(error: BaseException) -> _Failure:
    """How a command that raised this ends."""
    match error:
        case UnderlayError():
            return _Failure(code=error.code, message=error.message, hint=error.hint, exit_code=error.exit_code)
        case click.ClickException():
            message, hint = error.format_message(), _usage_hint(error)
            return _Failure(code="usage", message=message, hint=hint, exit_code=error.exit_code)
        case KeyboardInterrupt() | click.Abort():
            return _Failure(code="interrupted", message="interrupted", hint=None, exit_code=_INTERRUPTED)
        case OutputFailed():
            hint = "make room, or send it elsewhere"
            return _Failure(code="output-failed", message=str(error), hint=hint, exit_code=_INTERNAL)
        case _:
            hint = "this is a defect: please report it"
            return _Failure(code="internal", message=_internal(error), hint=hint, exit_code=_INTERNAL)


def _tell(failure: _Failure, arguments: Sequence[str]) -> None:
    """Print how it ended: an answer for programs, one line for people, a line of the log for a log."""
    if "--json" in arguments:
        error = {"code": failure.code, "message": _sound(failure.message), "hint": failure.hint and _sound(failure.hint)}
        _print(sys.stdout, json.dumps({"error": error}))
    elif _wants_json_lines(arguments):
        line = {"level": "problem", "event": failure.code, "detail": _sound(failure.message), "hint": failure.hint}
        _print(sys.stderr, json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line}))
    else:
        _print(sys.stderr, _one_line(f"underlay: {failure.message}" + (f" ({failure.hint})" if failure.hint else "")))


def _sound(text: str) -> str:
    """The text with bytes that are not UTF-8 escaped: JSON has no place for them."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _print(stream: IO[str], line: str) -> None:
    try:
        click.echo(line, file=stream)
        stream.flush()
    except OSError:
        silence(stream)
        if stream is not sys.stderr:  # the exit status is left when nobody listens at all
            _print(sys.stderr, line)


def _wants_json_lines(arguments: Sequence[str]) -> bool:
    return "--log-format=json" in arguments or ("--log-format", "json") in itertools.pairwise(arguments)


def _is_help(error: BaseException) -> bool:
    """Whether it is click's way of printing the help of a group that was called without a command (since click 8.2)."""
    return type(error).__name__ == "NoArgsIsHelpError"


def _usage_hint(error: click.ClickException) -> str | None:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"see '{error.ctx.command_path} --help'"
    return None


def _internal(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" at {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
    return f"internal error{where}: {type(error).__name__}: {error}"


def _one_line(text: str) -> str:
    """The text with its white space single, and nothing in it that a terminal would obey."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in " ".join(text.split()))
