"""The real Nova beside us. ``python nova_environment.py`` makes its environment and says where it is."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(_HERE.parent))  # it may be run as a program, and be imported by the benchmark

from environment import Environment, Runner, running as running_in  # noqa: E402

NOVA = Environment(package="nova", version="34.0.0", variable="UNDERLAY_NOVA_VENV")


def python() -> Path:
    """The Python of the environment, which is made unless it is there."""
    return NOVA.python()


@dataclass(frozen=True, slots=True)
class Nova:
    """A process that has Nova loaded. What it is asked and what it answers: see nova_runner.py."""

    runner: Runner

    def ask(self, **request: Any) -> Any:
        """The answer to one request."""
        return self.runner.ask(**request)

    def update(
        self,
        instances_path: Path,
        instances: Sequence[Mapping[str, Any]],
        *,
        manager: str = "nova",
        through: str = "update",
        options: Mapping[str, Any] | None = None,
        keep: str | None = None,
    ) -> Any:
        """One pass; ``manager`` says whose, ``through`` which of Nova's ways leads to it.

        Args:
            keep: a name under which the manager lives on, and is used again.
        """
        return self.ask(
            do="pass",
            manager=manager,
            through=through,
            instances_path=os.fspath(instances_path),
            instances=list(instances),
            options=dict(options or {}),
            keep=keep,
        )


@contextmanager
def running(*, eventlet: bool = False) -> Iterator[Nova]:
    """A Nova, ended afterwards; with native threads, or in its older mode with eventlet's."""
    variables = {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "no" if eventlet else "yes"}
    with running_in(NOVA, _HERE / "nova_runner.py", variables=variables) as runner:
        yield Nova(runner)


@contextmanager
def compute_contract() -> Iterator[Runner]:
    """A Nova that answers about its compute contract: see compute_runner.py."""
    variables = {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "yes"}
    with running_in(NOVA, _HERE / "compute_runner.py", variables=variables) as runner:
        yield runner


@contextmanager
def image_backends(*, eventlet: bool = False) -> Iterator[Runner]:
    """A Nova that makes disks by its own image backends or by ours: see disk_runner.py."""
    variables = {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "no" if eventlet else "yes"}
    with running_in(NOVA, _HERE / "disk_runner.py", variables=variables) as runner:
        yield runner


if __name__ == "__main__":
    NOVA.say_where()
