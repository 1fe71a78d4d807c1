"""What both programs share that run in a service's own environment: one JSON object a line is asked, one is answered.

Each request says what to ``do``. ``clock`` is answered with the seconds of processor that the process and its children had.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

Request = dict[str, Any]
Deeds = Mapping[str, Callable[[Request], Request]]


@contextmanager
def answers() -> Iterator[IO[str]]:
    """Where answers go. Nothing that is printed on the way may get among them."""
    with os.fdopen(os.dup(1), "w") as file:
        os.dup2(2, 1)
        yield file


def answer(deeds: Deeds, file: IO[str]) -> None:
    """Answer until there are no more requests."""
    known: Deeds = {**deeds, "clock": _clock}
    for line in sys.stdin:
        request = json.loads(line)
        file.write(json.dumps(known[request["do"]](request)) + "\n")
        file.flush()


def _clock(_: Request) -> Request:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": sum(usage.ru_utime + usage.ru_stime for usage in usages)}
