"""How answers look: a console, tables without lines, cells that fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 10_000  # columns where nothing is folded or shortened: in a file, in a pipe, or as asked for
_LEAST = 12  # columns of a shortened cell


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to who prints: rich would end the program here."""
        raise


def console(stream: IO[str], *, wide: bool = False) -> Console:
    """A console on a stream: as wide as the terminal, or as any line. Brackets in a name or a ref are no markup."""
    width = None if stream.isatty() and not wide else _PLAIN_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A cell of one line: what does not fit is left out at the end that says less."""

    text: str
    keep_end: bool = False
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, room = self.text, options.max_width
        if len(text) > room:
            text = "…" + text[len(text) - room + 1 :] if self.keep_end else text[: room - 1] + "…"
        yield Text(text, style=self.style, no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_LEAST, len(self.text)), len(self.text))


def table(*words: str, numbers: Sequence[str] = (), last: Sequence[str] = (), flexible: Sequence[str]) -> Table:
    """A table without lines; what is not flexible is never shortened."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in (*words, *numbers, *last):
        justify: JustifyMethod = "right" if heading in numbers else "left"
        made.add_column(heading, justify=justify, no_wrap=heading not in flexible, overflow="fold")
    return made


def facts_table(facts: Sequence[tuple[str, str]]) -> Table:
    """What is known of one thing, a line each."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for heading, value in facts:
        made.add_row(heading, value)
    return made
