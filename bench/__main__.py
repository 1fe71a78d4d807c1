"""``python -m bench``: run the comparisons, print their table, write them as JSON."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import disks, rows
from bench.conversions import conversions
from bench.measure import Row, machine, measure, table
from bench.onepass import one_pass
from bench.scrubs import scrubs
from bench.transfers import transfers
from bench.tree import build
from underlay.testing.bootimage import write_raw
from underlay.units import format_size, parse_size


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", help="beginnings of the rows' names; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default %(default)s)")
    parser.add_argument("--size", default="512MiB", help="size of the image (default %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to work; default: a temporary directory")
    parser.add_argument("--json", type=Path, default=Path("bench/results/latest.json"), help="default %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="underlay-bench-", dir=arguments.directory) as directory:
        results = list(_results(Path(directory), arguments))
        memory = rows.prune_memory(Path(directory)) if (Path(directory) / "pass-100000").exists() else None
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps({"machine": machine(), "results": results, "prune_memory_bytes": memory}, indent=2) + "\n", encoding="utf-8"
    )
    print(table(results))
    if memory is not None:
        print(f"memory of a prune over 10k instances and 100k files: {format_size(memory)} (goal 150 MiB)")
    print(f"{arguments.rounds} rounds, image of {format_size(parse_size(arguments.size))}; written to {arguments.json}")


def _results(directory: Path, arguments: argparse.Namespace) -> Iterator[Mapping[str, object]]:
    image = directory / "served" / "image.img"
    image.parent.mkdir()
    size = parse_size(arguments.size)
    write_raw(image, size=size, message="bench", payload=size - (1 << 20))
    small = image.with_name("small.img")
    write_raw(small, size=1 << 20, message="bench")
    with rows.serving(image.parent) as url:
        groups = _groups(directory, url, small, size)
        groups["transfer"] = lambda: transfers(directory, image, f"{url}/image.img", arguments.rows)
        for beginning, make in groups.items():
            if not _may_be_asked_for(beginning, arguments.rows):
                continue
            for row in make():
                if not arguments.rows or any(row.name.startswith(asked) for asked in arguments.rows):
                    print(f"measuring {row.name} …", file=sys.stderr)
                    yield measure(row, rounds=arguments.rounds)


def _groups(directory: Path, url: str, small: Path, size: int) -> dict[str, Callable[[], Iterable[Row]]]:
    """What makes rows, by the beginning of their names: what nobody asks for is not built."""
    return {
        "miss": lambda: rows.miss(directory, f"{url}/image.img"),
        "decompress": lambda: rows.decompress(directory, size),
        "convert": lambda: conversions(directory, size),
        "one pass": lambda: one_pass(directory, size),
        "hit": lambda: disks.overlays(directory, small),
        "flat": lambda: disks.flat(directory),
        "start-up": lambda: rows.start_up(directory, small),
        "lock": lambda: [rows.lock(directory)],
        "prune, 10": lambda: rows.prune_linear(directory),
        "backing": lambda: [rows.backing(build(directory / "backing", instances=1000, files=1000))],
        "prune, 100 instances": lambda: _against_nova(directory),
        "deliver": lambda: _against_ironic(directory, f"{url}/small.img"),
        "scrub": lambda: scrubs(directory, size),
        "scan": lambda: rows.scan(directory),
    }


def _may_be_asked_for(beginning: str, asked: Sequence[str]) -> bool:
    return not asked or any(one.startswith(beginning) or beginning.startswith(one) for one in asked)


# The real services live where the tests keep them, which take them from the package index the first time.


def _against_nova(directory: Path) -> Iterator[Row]:
    with _component("nova", "nova_environment").running() as nova:
        yield rows.prune_against_nova(directory, nova)


def _against_ironic(directory: Path, url: str) -> Iterator[Row]:
    ironic = _component("ironic", "ironic_environment").IRONIC
    with import_module("environment").running(ironic, Path(__file__).with_name("ironic_side.py")) as runner:
        yield from rows.deliver(directory, url, runner)


def _component(name: str, module: str) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/components" / name))
    return import_module(module)


if __name__ == "__main__":
    main()
