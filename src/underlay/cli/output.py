"""Standard output: where a command's answer goes, and what it means when it cannot."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any


class OutputFailed(Exception):
    """The answer could not be written; what it tells of was done all the same."""


@contextmanager
def writing() -> Iterator[None]:
    """Write to standard output, all of it before the context ends.

    Raises:
        BrokenPipeError: whoever read it has gone. OutputFailed: it cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(f"standard output cannot be written: {error.strerror}") from error


def silence(stream: IO[str]) -> None:
    """Send what is still in a stream's buffers nowhere; else Python would fail once more when it flushes them at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def answer(payload: Mapping[str, Any]) -> None:
    """Print a command's answer for programs: one JSON object."""
    from underlay import render

    text = render.json_text(payload)
    with writing():
        sys.stdout.write(text + "\n")


def show(*things: Any, wide: bool = False) -> None:
    """Print a command's answer for people. Wide: lines as long as they are, whatever the terminal.

    A sentence is always one line, which the terminal wraps: who copies a path from it gets the path. One that is plain text is
    written as it is, and then rich is not needed.
    """
    with writing():
        if all(isinstance(thing, str) for thing in things):
            sys.stdout.writelines(f"{sentence}\n" for sentence in things)
        else:
            _draw(things, wide=wide)


def _draw(things: Sequence[Any], *, wide: bool) -> None:
    from rich.text import Text

    from underlay import render

    target = render.console(sys.stdout, wide=wide)
    for thing in things:
        target.print(thing, soft_wrap=isinstance(thing, str | Text))
