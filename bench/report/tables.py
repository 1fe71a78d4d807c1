"""What of the page is made from the results: tables, and the sentences that say when and on what they were measured."""

from collections.abc import Iterator, Mapping, Sequence

from bench.report.curves import lines
from bench.report.goals import Verdict, verdicts
from bench.results import Machine, Measured, Ratio, Run, Side
from bench.table import duration
from underlay.units import format_size

POWER = 1.1
"""The most that time may grow by: as the number to this power, so that it stays all but linear."""
_HEAD = ("Row", "Underlay", "Peer", "Wall ratio", "Processor ratio", "Goal")


def table(run: Run) -> str:
    """The rows of a group, what was left out of it, and the circumstances."""
    parts = [_markdown(_HEAD, map(_cells, run.rows))] if run.rows else []
    parts += [_reasons(run)] if any(row.goal for row in run.rows) else []
    parts += [_gauges(run)] if run.gauges else []
    parts += [f"`{one.name}` was left out: {_sentence(one.why)}" for one in run.left_out]
    return "\n\n".join([*parts, _circumstances(run)])


def _reasons(run: Run) -> str:
    """Where the goals come from; the rows are named where they are not all of the group."""
    rows: dict[str, list[str]] = {}
    for row in run.rows:
        if row.goal:
            rows.setdefault(row.goal.why, []).append(f"`{row.name}`")
    whole = len(rows) == 1 and all(row.goal for row in run.rows)
    said = [why if whole else f"{', '.join(names)}: {why}" for why, names in rows.items()]
    return f"Where the goals come from: {'; '.join(said)}."


def curve(runs: Mapping[str, Run], name: str) -> str:
    """The power by which each side of a growth curve grows."""
    powers = [(line.whose, line.power) for line in lines(runs, name) if line.power is not None]
    if not powers or powers[0][0] != "Underlay":
        return f"Of `{name}` there are too few points to tell how time grows."
    said = " and that of ".join(f"{whose} grows with the power {power:.2f}" for whose, power in powers)
    word = "met" if powers[0][1] <= POWER else "**missed**"
    return f"Along `{name}` the time of {said}; {POWER} at most is the goal of ours, which is {word}."


def goals(runs: Mapping[str, Run]) -> str:
    """How many goals are met, and which are not."""
    judged = [verdict for run in runs.values() for row in run.rows for verdict in verdicts(row)]
    missed = [verdict for verdict in judged if not verdict.is_met]
    counted = f"Of {len(judged)} goals that could be judged, {len(judged) - len(missed)} are met and {len(missed)} are missed."
    left_out = sum(len(run.left_out) for run in runs.values())
    rest = f" {left_out} rows were left out; each says why below." if left_out else ""
    return counted + rest + ("\n\nMissed are:\n\n" + "\n".join(map(_item, missed)) if missed else "")


def _item(verdict: Verdict) -> str:
    return f"- `{verdict.row}`: {verdict.sentence}"


def machine(runs: Mapping[str, Run]) -> str:
    """What was measured on; one paragraph when it was the same for all groups."""
    groups: dict[str, list[str]] = {}
    for name, run in runs.items():
        groups.setdefault(_described(run.machine), []).append(name)
    if len(groups) == 1:
        return f"All groups were measured on one machine: {next(iter(groups))}\n{_busy(runs)}"
    listed = "\n".join(f"- *{', '.join(names)}*: {where}" for where, names in groups.items())
    return f"{listed}\n\n{_busy(runs)}"


def _busy(runs: Mapping[str, Run]) -> str:
    """How much else the machine did, and what that means for who reads the figures."""
    loads = [run.load_before for run in runs.values()]
    said = f"Before the groups, {min(loads):g} to {max(loads):g} processes ran or waited."
    if all(run.load_before < run.machine.cores / 2 for run in runs.values()):
        return said
    return (
        f"{said} So other work had a part of the cores and of the disk: times are longer than on a machine of your own, and "
        "what ends with an fsync much longer; processor times and their ratios tell more."
    )


def _described(where: Machine) -> str:
    versions = [f"{name} {version}" for name, version in where.libraries.items()]
    programs = [f"{said} (`{name}`)" for name, said in where.programs.items()]
    return (
        f"{where.cores} cores ({where.cpu}), {format_size(where.memory)} of memory, {where.system}, Linux {where.kernel}, "
        f"{where.file_system}, {where.python} with {', '.join(versions)}; {', '.join(programs)}."
    )


def _circumstances(run: Run) -> str:
    return (
        f"*Measured at {run.began.replace('T', ' ').removesuffix('Z')} UTC in {run.rounds} rounds, with an image of "
        f"{format_size(run.size)} where a row needs one; {run.load_before:g} processes ran or waited before it, and "
        f"{run.load_after:g} at its end, ours among them.*"
    )


def _cells(row: Measured) -> Sequence[str]:
    peer = _side(row.peer) if row.peer else f"none: {row.alone}" if row.alone else "none"
    judged = "; ".join(map(str, verdicts(row)))
    unjudged = "not judged" if row.goal else ""
    what = "" if row.curve else f": {row.what}"
    return (f"`{row.name}`{what}", _side(row.ours), peer, _ratio(row.wall_ratio), _ratio(row.cpu_ratio), judged or unjudged)


def _side(side: Side) -> str:
    return f"{duration(side.wall_median)}, {duration(side.cpu_median)} of processor ({side.name})"


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.median:.2g} ({ratio.least:.2g} to {ratio.most:.2g})" if ratio else ""


def _gauges(run: Run) -> str:
    rows = []
    for gauge in run.gauges:
        goal = ""
        if gauge.at_most is not None:
            goal = f"{format_size(gauge.at_most)}: {'met' if gauge.size <= gauge.at_most else '**missed**'}"
        rows.append((f"`{gauge.name}`: {gauge.what}", format_size(gauge.size), goal))
    return _markdown(("Row", "Underlay", "Goal"), rows)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _markdown(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines_of = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines_of)
