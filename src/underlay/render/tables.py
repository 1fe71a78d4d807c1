"""How answers look: a console, tables without lines, cells that fit, and text that breaks neither a table nor a JSON reader."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from underlay.units import format_duration

_PLAIN_WIDTH = 10_000  # columns where nothing is folded or shortened: in a file, in a pipe, or as asked for
_LONG_NAME = re.compile(r"([0-9a-f]{12})[0-9a-f]{28}(.*)|([0-9a-f]{8}-[0-9a-f]{3})[0-9a-f-]{24}(.*)")
_LEAST = 12  # columns of a shortened cell


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to who prints: rich would end the program here."""
        raise


def console(stream: IO[str], *, wide: bool = False) -> Console:
    """A console on a stream: as wide as the terminal, or as any line. Brackets in a name or a ref are no markup."""
    width = None if stream.isatty() and not wide else _PLAIN_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def json_text(payload: Mapping[str, Any]) -> str:
    """One JSON object on one line. Bytes of a name that are not UTF-8 are escaped as ``\\xff``: JSON has no place for them."""
    text = json.dumps(payload, ensure_ascii=False)
    return json.dumps(payload) if _is_sound(text) else json.dumps(_sound(payload))


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sound(value: Any) -> Any:
    if isinstance(value, str):
        return value if _is_sound(value) else value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if isinstance(value, Mapping):
        return {_sound(key): _sound(one) for key, one in value.items()}
    return [_sound(one) for one in value] if isinstance(value, list | tuple) else value


def short_name(name: str) -> str:
    """Enough of a name to tell it by, and to find it by: its beginning and what follows its digits."""
    match = _LONG_NAME.fullmatch(name)
    return "".join(part for part in match.groups() if part) if match else name


def ago(moment: datetime, *, now: datetime) -> str:
    """How long ago something was."""
    return format_duration(max(0.0, (now - moment).total_seconds())) + " ago"


def utc_now() -> datetime:
    """Now, for ages and log lines."""
    return datetime.now(UTC)


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
