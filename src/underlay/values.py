"""Values: copies of them with something changed, and what is shown of those that hold a secret.

What a hit imports has structs of msgspec, which are made in C. Python makes the methods of a dataclass by compiling text: half
a millisecond for each class, and ten for what the module imports that does so, before a command has begun.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from dataclasses import replace  # of which type checkers know that the changes must be fields of the value
else:

    def replace(value, /, **changes):
        """A copy of a struct or a dataclass with other values in some of its fields."""
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(value, **changes)
        import dataclasses

        return dataclasses.replace(value, **changes)


__all__ = ["hiding", "replace"]


def hiding(*secrets: str) -> tuple[Callable[[Any], str], Callable[[Any], list[tuple[str, Any]]]]:
    """The ``__repr__`` and the ``__rich_repr__`` of a struct some of whose fields nobody may see."""

    def shown(value: msgspec.Struct) -> list[tuple[str, Any]]:
        return [(name, getattr(value, name)) for name in value.__struct_fields__ if name not in secrets]

    def told(value: msgspec.Struct) -> str:
        return f"{type(value).__name__}({', '.join(f'{name}={content!r}' for name, content in shown(value))})"

    return told, shown
