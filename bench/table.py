"""A run as text, one row a line."""

from collections.abc import Iterator

from bench.results import Measured, Run
from underlay.units import format_size


def table(run: Run) -> str:
    """For a terminal."""
    head = f"{'row':<38}{'ours':>11}{'peer':>11}{'wall':>8}{'cpu':>8}{'goal':>8}"
    return "\n".join([head, *map(_line, run.rows), *_others(run)])


def _line(row: Measured) -> str:
    peer = duration(row.peer.wall_median) if row.peer else "-"
    wall, cpu = (f"{ratio.median:.3f}" if ratio else "-" for ratio in (row.wall_ratio, row.cpu_ratio))
    goal = f"{row.goal.wall:g}" if row.goal and row.goal.wall else "-"
    contenders = f"{row.ours.name} | {row.peer.name if row.peer else row.alone or 'no peer'}"
    return f"{row.name:<38}{duration(row.ours.wall_median):>11}{peer:>11}{wall:>8}{cpu:>8}{goal:>8}   {contenders}"


def _others(run: Run) -> Iterator[str]:
    for gauge in run.gauges:
        yield f"{gauge.name}: {format_size(gauge.size)}" + (f", {format_size(gauge.at_most)} at most" if gauge.at_most else "")
    for one in run.left_out:
        yield f"{one.name}: left out: {one.why}"


def duration(seconds: float) -> str:
    """With three digits, in the unit that fits."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError(seconds)
