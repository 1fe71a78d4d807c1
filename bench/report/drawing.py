"""How pictures look: SVG that is the same each time, with text that is text, in the reader's light or dark colours."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from types import MappingProxyType

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, PALE, PAPER = "#24292f", "#d0d7de", "#ffffff"
OURS, PEER = "#0550ae", "#bc4c00"
MET, MISSED = "#1a7f37", "#cf222e"
# The colour that takes the place of each where dark is preferred. What does not know the query shows the light ones.
_DARK = MappingProxyType(
    {
        INK: "#e6edf3",
        PALE: "#30363d",
        PAPER: "#0d1117",
        OURS: "#79c0ff",
        PEER: "#f0883e",
        MET: "#56d364",
        MISSED: "#ff7b72",
    }
)
_STYLE = MappingProxyType(
    {
        "axes.edgecolor": INK,
        "axes.facecolor": PAPER,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlesize": 10,
        "figure.facecolor": PAPER,
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "grid.color": PALE,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "savefig.facecolor": PAPER,
        "svg.fonttype": "none",
        "svg.hashsalt": "underlay",
        "text.color": INK,
        "xtick.color": INK,
        "xtick.minor.size": 0,
        "ytick.color": INK,
        "ytick.minor.size": 0,
    }
)


@contextmanager
def drawing(width: float, height: float, title: str) -> Iterator[tuple[Figure, list[str]]]:
    """A figure of so many inches, and a list that has its SVG afterwards."""
    drawn: list[str] = []
    with mpl.rc_context(dict(_STYLE)):
        figure = Figure(figsize=(width, height))
        yield figure, drawn
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    drawn.append(_for_both_modes(file.getvalue()))


def grid(axes: Axes) -> None:
    """Pale lines behind everything."""
    axes.grid(visible=True, linewidth=0.6)
    axes.set_axisbelow(True)


def _for_both_modes(svg: str) -> str:
    """matplotlib writes colours into each element's style, so what is to win must say that it is important."""
    rules = "".join(
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}\n' for light, dark in _DARK.items() for kind in _KINDS
    )
    style = f"<style>\n@media (prefers-color-scheme: dark) {{\n{rules}}}\n</style>\n"
    head, tag, rest = svg.partition("<defs>")
    lines = (head + style + tag + rest).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


_KINDS = ("fill", "stroke")
