"""Measure rows side by side with their peers, and keep each whole group; or make the page of what was kept."""

import argparse
import signal
import sys
from pathlib import Path

from bench.groups import GROUPS, asked_for
from bench.results import RESULTS, write
from bench.sitting import Terms, sit
from bench.table import table
from underlay.errors import UnderlayError
from underlay.units import format_size, parse_size

_FULL = Terms(rounds=7, size=512 << 20, limit=1200.0, files=100_000)
_QUICK = Terms(rounds=3, size=64 << 20, limit=100.0, files=10_000)


def main() -> None:
    """Do what was asked for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that what is mounted and running is put away
    arguments = _parser().parse_args()
    if arguments.rows == ["report"]:
        _report(check=arguments.check)
    elif arguments.list:
        print("\n".join(name for _, names in asked_for(arguments.rows) for name in names))
    else:
        _measure(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "rows", nargs="*", help="groups, or beginnings of the names of rows; default: all. 'report' makes the page instead"
    )
    parser.add_argument("--list", action="store_true", help="say what the rows are called, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="other defaults: few rounds, a small image, short curves")
    parser.add_argument("--rounds", type=_rounds, help=f"counted rounds (default {_FULL.rounds}; quick {_QUICK.rounds})")
    parser.add_argument(
        "--size", type=_size, help=f"of the image (default {format_size(_FULL.size)}; quick {format_size(_QUICK.size)})"
    )
    parser.add_argument(
        "--limit",
        type=float,
        help="seconds that one contender's rounds may take on a growth curve, by what it took before "
        f"(default {_FULL.limit:.0f}; quick {_QUICK.limit:.0f})",
    )
    parser.add_argument(
        "--files",
        type=int,
        help=f"that a point of a growth curve may have (default {_FULL.files:,}; quick {_QUICK.files:,})",
    )
    parser.add_argument("--directory", type=Path, help="where to work; default: a temporary directory")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where whole groups are kept; default: %(default)s")
    parser.add_argument("--check", action="store_true", help="with 'report': change nothing, and fail when it would")
    return parser


def _measure(arguments: argparse.Namespace) -> None:
    terms = _terms(arguments)
    asked = list(asked_for(arguments.rows))
    if not asked:
        raise SystemExit(f"no row's name begins with {' or '.join(arguments.rows)}; the groups are {_names()}")
    for group, names in asked:
        run = sit(group, names, terms)
        print(table(run))
        # A part of a group would stand beside rows of another sitting.
        print(f"kept as {write(run, arguments.results)}" if names == group.names else "not kept, as it is a part of its group")


def _terms(arguments: argparse.Namespace) -> Terms:
    defaults = _QUICK if arguments.quick else _FULL
    return Terms(
        rounds=arguments.rounds or defaults.rounds,
        size=arguments.size or defaults.size,
        limit=arguments.limit or defaults.limit,
        files=arguments.files or defaults.files,
        directory=arguments.directory,
    )


def _rounds(text: str) -> int:
    if (rounds := int(text)) < 1:
        raise argparse.ArgumentTypeError("there must be one that counts")
    return rounds


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UnderlayError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names() -> str:
    return ", ".join(group.name for group in GROUPS)


def _report(*, check: bool) -> None:
    from bench.report.pages import make, stale  # only this needs matplotlib

    if not check:
        print("\n".join(f"made {path}" for path in make()))
    elif others := stale():
        raise SystemExit(f"not what `python -m bench report` makes: {', '.join(others)}")


if __name__ == "__main__":
    main()
