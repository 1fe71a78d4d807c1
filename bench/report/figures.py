"""The pictures of the page: growth curves, and all ratios with their goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.growth import instances, masters, sizes
from bench.growth.curve import Curve
from bench.report.curves import Line, lines
from bench.report.drawing import INK, MET, MISSED, OURS, PEER, drawing, grid
from bench.results import Measured, Run
from bench.table import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An SVG and what it shows, for whoever does not see it."""

    svg: str
    alt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Curves that are drawn beside each other, all of the same numbers."""

    title: str
    curves: Sequence[Curve]
    columns: int


GROWTH: Mapping[str, Growth] = {
    "instances": Growth(title="A pass over a base cache, ten files for each instance", curves=(instances.PASS,), columns=1),
    "masters": Growth(title="A cache of masters", curves=masters.CURVES, columns=3),
    "size": Growth(title="Images of different sizes", curves=sizes.CURVES, columns=3),
}
RATIOS = "ratios"
_LOOKS = {"Underlay": (OURS, "o-"), "the peer": (PEER, "s--")}
NAMES = (*GROWTH, RATIOS)


def pictures(runs: Mapping[str, Run]) -> Mapping[str, Picture]:
    """Every picture, by its name."""
    return {name: _growth(runs, growth) for name, growth in GROWTH.items()} | {RATIOS: _ratios(runs)}


# ------------------------------------------------------------------------------------------------------------- growth curves


def _growth(runs: Mapping[str, Run], growth: Growth) -> Picture:
    rows = -(-len(growth.curves) // growth.columns)
    width = 6.4 if growth.columns == 1 else 3.6 * growth.columns
    with drawing(width, 3.4 * rows + 0.3, growth.title) as (figure, drawn):
        panels = figure.subplots(rows, growth.columns, squeeze=False).flatten()
        for panel, curve in zip(panels, growth.curves, strict=False):
            _panel(panel, curve, lines(runs, curve.name))
        for panel in panels[len(growth.curves) :]:
            panel.set_axis_off()
        # Fixed, as what fits by itself depends on the fonts that are there.
        figure.subplots_adjust(left=0.75 / width, right=1 - 0.15 / width, top=0.90, bottom=0.13, wspace=0.32, hspace=0.42)
    said = " ".join(_said(curve, lines(runs, curve.name)) for curve in growth.curves)
    return Picture(svg=drawn[0], alt=f"{growth.title}: seconds of wall time, both axes logarithmic. {said}")


def _panel(axes: Axes, curve: Curve, drawn: Sequence[Line]) -> None:
    if not drawn:
        axes.set(title=f"{curve.name}: not measured")
        axes.set_axis_off()
        return
    for line in drawn:
        _draw(axes, line, *_LOOKS[line.whose])
    axes.set(
        xscale="log",
        yscale="log",
        title=curve.name.rpartition(", ")[2],
        xlabel="bytes of the image" if curve.of == "bytes" else curve.of,
    )
    at_least, at_most = axes.get_ylim()
    axes.set_ylim(at_least / 1.5, at_most * (at_most / at_least) ** 0.35 * 2)  # the legend has the room above
    axes.xaxis.set_major_locator(FixedLocator(curve.points))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: curve.number(round(at))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.legend(loc="upper left", fontsize=7.5)
    grid(axes)


def _draw(axes: Axes, line: Line, colour: str, how: str) -> None:
    """Medians, and from where to where the rounds reach."""
    numbers, medians = ([at for at, _ in line.points], [side.wall_median for _, side in line.points])
    below = [side.wall_median - min(side.wall) for _, side in line.points]
    above = [max(side.wall) - side.wall_median for _, side in line.points]
    label = f"Underlay: {line.name}" if line.whose == "Underlay" else line.name
    axes.errorbar(numbers, medians, yerr=(below, above), fmt=how, color=colour, label=label, markersize=4, capsize=2)


def _said(curve: Curve, drawn: Sequence[Line]) -> str:
    said = [
        f"{line.whose} ({line.name}) "
        + ", ".join(f"{duration(side.wall_median)} at {curve.number(at)}" for at, side in line.points)
        for line in drawn
    ]
    return f"{curve.name}: {'; '.join(said) or 'not measured'}."


# -------------------------------------------------------------------------------------------------------------------- ratios


def _ratios(runs: Mapping[str, Run]) -> Picture:
    rows = [row for run in runs.values() for row in run.rows if row.wall_ratio and row.curve is None]
    rows.sort(key=lambda row: row.name, reverse=True)
    title = "Wall time over the peer's"
    height = 0.24 * len(rows) + 1.0
    with drawing(8.0, height, title) as (figure, drawn):
        axes = figure.subplots()
        for place, row in enumerate(rows):
            _draw_ratio(axes, place, row)
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set(xscale="log", xlabel="ratio of wall times, ours over the peer's; below 1, Underlay takes less")
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        grid(axes)
        figure.subplots_adjust(left=0.33, right=0.97, top=1 - 0.15 / height, bottom=0.6 / height)
    said = "; ".join(f"{row.name} {row.wall_ratio.median:.2g}" for row in reversed(rows) if row.wall_ratio)
    explained = "each with its range over the rounds, and a bar at its goal; red where the goal is missed"
    return Picture(svg=drawn[0], alt=f"{title}, {explained}: {said}.")


def _draw_ratio(axes: Axes, place: int, row: Measured) -> None:
    assert row.wall_ratio is not None
    colour, goal = OURS, row.goal.wall if row.goal else None
    if goal is not None:
        colour = MET if median(row.wall_ratio.rounds) <= goal else MISSED
        axes.plot([goal], [place], "|", color=INK, markersize=9, markeredgewidth=1.6)
    axes.plot([row.wall_ratio.least, row.wall_ratio.most], [place, place], "-", color=colour, linewidth=2)
    axes.plot([row.wall_ratio.median], [place], "o", color=colour, markersize=4.5)
