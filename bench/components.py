"""The real services beside us. They live where the tests keep them, which take them from the package index the first time."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

COMPONENTS = Path(__file__).parents[1] / "tests" / "components"
_PATIENCE = 3600.0  # seconds; Nova's pass over ten thousand instances is a matter of minutes


def component(name: str, module: str) -> Any:
    """One of a component's modules, by its name."""
    for place in (COMPONENTS, COMPONENTS / name):
        if os.fspath(place) not in sys.path:
            sys.path.insert(0, os.fspath(place))
    return import_module(module)


@contextmanager
def nova() -> Iterator[Any]:
    """A process of Nova that is asked through nova_side.py."""
    environment = component("nova", "nova_environment").NOVA
    with _running(environment, "nova_side.py", {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "yes"}) as runner:
        yield runner


@contextmanager
def ironic() -> Iterator[Any]:
    """A process of Ironic that is asked through ironic_side.py."""
    with _running(component("ironic", "ironic_environment").IRONIC, "ironic_side.py") as runner:
        yield runner


def clock(runner: Any) -> Callable[[], float]:
    """The processor time of such a process, and of what it started."""
    return lambda: float(runner.ask(do="clock")["seconds"])


def _running(environment: Any, program: str, variables: Mapping[str, str] = MappingProxyType({})) -> Any:
    place = Path(__file__).with_name(program)
    return component("", "environment").running(environment, place, variables=variables, patience=_PATIENCE)
