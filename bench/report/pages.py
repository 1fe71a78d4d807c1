"""The page and its pictures, as files: made, or compared with those that are there."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.report import tables
from bench.report.figures import Picture, pictures
from bench.results import RESULTS, BadResults, Run, read

TEMPLATE = Path(__file__).with_name("page.md")
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "performance.md"
_PICTURES = "performance"  # the directory beside the page
_MARK = re.compile(r"^\{\{ (\w+)(?: (.+))? \}\}$", re.MULTILINE)


def make(results: Path = RESULTS, page: Path = PAGE) -> list[Path]:
    """Write the page and its pictures, and remove pictures that it does not have any more.

    Raises:
        BadResults
    """
    made = files(results, page)
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in _there(page) - made.keys():
        path.unlink()
    return list(made)


def stale(results: Path = RESULTS, page: Path = PAGE) -> list[str]:
    """The names of the files that `make` would change, add or remove.

    Raises:
        BadResults
    """
    made = files(results, page)
    changed = {path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    return sorted(path.name for path in changed | (_there(page) - made.keys()))


def _there(page: Path) -> set[Path]:
    return {path for path in [page, *(page.parent / _PICTURES).glob("*.svg")] if path.exists()}


def files(results: Path, page: Path) -> Mapping[Path, str]:
    """What `make` writes.

    Raises:
        BadResults: a group that the page shows was never measured, or its file cannot be read.
    """
    runs = read(results)
    drawn = pictures(runs)
    text = filled(TEMPLATE.read_text(encoding="utf-8"), runs, drawn)
    return {page: text} | {page.parent / _PICTURES / f"{name}.svg": picture.svg for name, picture in drawn.items()}


def filled(template: str, runs: Mapping[str, Run], drawn: Mapping[str, Picture]) -> str:
    """The template with each line ``{{ KIND NAME }}`` replaced by what is made for it.

    Raises:
        BadResults: there is nothing of that name.
    """
    makers: Mapping[str, Callable[[str], str]] = {
        "curve": lambda name: tables.curve(runs, name),
        "figure": lambda name: f"![{drawn[name].alt}]({_PICTURES}/{name}.svg)",
        "goals": lambda _: tables.goals(runs),
        "machine": lambda _: tables.machine(runs),
        "table": lambda name: tables.table(runs[name]),
    }

    def made(mark: re.Match[str]) -> str:
        try:
            return makers[mark[1]](mark[2])
        except KeyError:
            raise BadResults(f"nothing is there for {mark[0]}") from None

    return _MARK.sub(made, template)
