"""Modules that are imported when something of them is first used.

A command starts a process for each disk, and most of what a module names is for commands that are not running: bars for a
terminal, a client for the web, the removal of images. To import all of it took longer than everything else that a hit does.

Who imports a module like this imports it for the type checker, and for the layers that are drawn from the imports, as well.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def module(name: str) -> Any:
    """What stands for a module until an attribute of it is asked for."""
    return _Later(name)


class _Later:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


def exports(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` (PEP 562) of a package whose names are imported on first use.

    Args:
        homes: the names by the module that has them.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def attribute(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return attribute, lambda: sorted(home_of)
