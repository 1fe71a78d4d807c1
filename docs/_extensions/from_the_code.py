"""Tables that Sphinx makes from the code, so that no page can say something else than the code does.

``errors`` draws one branch of the error tree; the page adds to each class what to do about it. ``layers`` draws the layers of
pyproject.toml, each module with its docstring's first line. What docstrings say under "Raises" and "Returns" is kept as the
text that it is.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from underlay import errors

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "underlay"

logger = logging.getLogger(__name__)


class Table(SphinxDirective):
    """A table whose rows come from the code; each cell is Markdown."""

    headings: ClassVar[Sequence[str]]

    def run(self) -> list[nodes.Node]:
        """The table, by way of the Markdown that one would write for it."""
        lines = [_row(self.headings), _row(["---"] * len(self.headings)), *(_row(row) for row in self.rows())]
        container = nodes.container(classes=["wide"])
        self.state.nested_parse(StringList(lines, source=self.get_location()), self.content_offset, container)
        return [container]

    def rows(self) -> Iterator[Sequence[str]]:
        """The cells of each row."""
        raise NotImplementedError


class Errors(Table):
    """``errors BRANCH``, with a line ``Class: what to do`` for each class of that branch."""

    required_arguments = 1
    has_content = True
    headings = ("Error", "Code", "Exit", "HTTP", "Try again", "What it means, and what to do")

    def rows(self) -> Iterator[Sequence[str]]:
        """The branch itself, then its classes in the order of the source."""
        branch = getattr(errors, self.arguments[0])
        advice = _advice(self.content)
        classes = [branch, *branch.__subclasses__()]
        for name in sorted({one.__name__ for one in classes} ^ advice.keys()):
            logger.warning("%s is in only one of the code and this page", name, location=self.get_location())
        for one in classes:
            meaning = f"{_first_line(inspect.getdoc(one))} {advice.get(one.__name__, '')}"
            again = "yes" if one.transient else ""
            yield (f"`{one.__name__}`", f"`{one.code}`", str(one.exit_code), str(one.http_status), again, meaning)


class Layers(Table):
    """``layers``: the lines of the house, top to bottom, and what each module is for."""

    headings = ("Line", "Module", "What it is for")

    def rows(self) -> Iterator[Sequence[str]]:
        """A row for each module; those of one line may not import each other."""
        lines = layers()
        for number, modules in zip(range(len(lines), 0, -1), lines, strict=True):
            for module in modules:
                for name, summary in _modules(PACKAGE / module):
                    yield (str(number), f"`{name}`", summary)


def layers() -> list[list[str]]:
    """The layers that import-linter holds the package to, top to bottom."""
    document: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = document["tool"]["importlinter"]["contracts"]
    contract = next(one for one in contracts if one["type"] == "layers")
    return [[module.strip() for module in line.replace("|", ":").split(":")] for line in contract["layers"]]


def _modules(path: Path) -> Iterator[tuple[str, str]]:
    """A module, or a package and its modules, each with its docstring's first line."""
    files = [path.with_suffix(".py")] if not path.is_dir() else sorted(path.glob("*.py"))
    for file in files:
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, _first_line(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]


def _advice(content: StringList) -> dict[str, str]:
    advice: dict[str, str] = {}
    name = ""
    for line in content:
        if line and not line[0].isspace():
            name, _, line = line.partition(":")
            advice[name] = ""
        advice[name] = f"{advice[name]} {line.strip()}".strip()
    return advice


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def keep_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make a field of each "Raises" and "Returns", with its text in one piece; napoleon would take it for a list of names."""
    docstring = re.sub(
        r"^( *)(Raises|Returns):\n((?:\1 +.*\n?)+)",
        lambda found: f"{found[1]}:{found[2]}: {' '.join(found[3].split())}\n",
        "\n".join(lines),
        flags=re.MULTILINE,
    )
    lines[:] = docstring.split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directives, and see to docstrings before napoleon does."""
    app.add_directive("errors", Errors)
    app.add_directive("layers", Layers)
    app.connect("autodoc-process-docstring", keep_text, priority=400)
    return {"parallel_read_safe": True}
