"""``python -m bench``: run the comparisons, print their table, write them as JSON."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from bench import rows
from bench.measure import Row, machine, measure, table
from bench.tree import Tree
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
    image = directory / "image.img"
    size = parse_size(arguments.size)
    write_raw(image, size=size, message="bench", payload=size - (1 << 20))
    small = directory / "small.img"
    write_raw(small, size=1 << 20, message="bench")
    with rows.serving(image) as url:
        for row in _rows(directory, url, small):
            if not arguments.rows or any(row.name.startswith(asked) for asked in arguments.rows):
                print(f"measuring {row.name} …", file=sys.stderr)
                yield measure(row, rounds=arguments.rounds)


def _rows(directory: Path, url: str, small: Path) -> Iterator[Row]:
    yield rows.miss(directory, url)
    yield rows.hit(directory, small)
    yield from rows.start_up(directory, small)
    yield rows.lock(directory)
    yield from rows.prune_linear(directory)
    yield rows.backing(Tree(directory / "pass-10000", directory / "pass-10000" / "instances.json"))
    # The real Nova lives where the tests keep it, which take it from the package index the first time.
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/components/nova"))
    with import_module("nova_environment").running() as nova:
        yield rows.prune_against_nova(directory, nova)


if __name__ == "__main__":
    main()
