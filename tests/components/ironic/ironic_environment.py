"""The real Ironic beside us. ``python ironic_environment.py`` makes its environment and says where it is."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, os.fspath(_HERE.parent))  # it may be run as a program

from environment import Environment, Runner, running as running_in  # noqa: E402

IRONIC = Environment(package="ironic", version="39.0.0", variable="UNDERLAY_IRONIC_VENV")


@dataclass(frozen=True, slots=True)
class Ironic:
    """A process that has Ironic loaded. What it is asked and what it answers: see ironic_runner.py."""

    runner: Runner

    def ask(self, **request: Any) -> Any:
        """The answer to one request."""
        return self.runner.ask(**request)

    def clean_up(
        self, whose: str, masters: Path, *, amount: int | None, size: int, ttl: int, ahead: float = 0.0, **how: Any
    ) -> Any:
        """One clean-up; ``whose`` is ``ironic`` or ``underlay``.

        Args:
            ahead: seconds by which the process's clock is before the system's.
        """
        cache = {"master_dir": os.fspath(masters), "cache_size": size, "cache_ttl": ttl}
        return self.ask(do="clean-up", whose=whose, cache=cache, amount=amount, ahead=ahead, **how)

    def fetch_images(
        self, whose: str, masters: Path | None, images: Sequence[tuple[str, Path]], *, size: int = 1 << 40, **how: Any
    ) -> Any:
        """Ironic's own ``deploy_utils.fetch_images`` over a cache; ``whose`` cache it is.

        Args:
            how: further arguments of ``fetch_images``; ``options`` as ``GROUP.NAME`` and ``cache``, further arguments of the
                cache's constructor.
        """
        options: Mapping[str, Any] = how.pop("options", {})
        directory = None if masters is None else os.fspath(masters)
        cache = {"master_dir": directory, "cache_size": size, "cache_ttl": 3600, **how.pop("cache", {})}
        wanted = [(href, os.fspath(path)) for href, path in images]
        return self.ask(do="fetch", whose=whose, cache=cache, images=wanted, options=options, how=how)


@contextmanager
def running(*, in_place: bool = False) -> Iterator[Ironic]:
    """An Ironic, ended afterwards; ``in_place`` with our module in the place of its own from the beginning."""
    arguments = ["in-place"] if in_place else []
    with running_in(IRONIC, _HERE / "ironic_runner.py", arguments=arguments) as runner:
        yield Ironic(runner)


if __name__ == "__main__":
    IRONIC.say_where()
