"""What a server's WWW-Authenticate field asks for (RFC 9110, 11.6.1)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_LONGEST = 8192  # characters of a field that are looked at
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # a token, RFC 9110, 5.6.2
_END = r"(?=\s*(?:,|$))"
_ITEM = re.compile(
    rf"""[\s,]*(?:
        (?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<value>{_WORD})){_END}
        |(?P<scheme>{_WORD})(?:\s+[A-Za-z0-9._~+/-]+=*{_END}|(?=\s|,|$))
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a server lets itself be convinced.

    Attributes:
        scheme: in lower case. parameters: by their names in lower case.
    """

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(text: str) -> Sequence[Challenge]:
    """Every challenge of a field, as far as it can be read."""
    found: list[tuple[str, dict[str, str]]] = []
    position, text = 0, text[:_LONGEST]
    while match := _ITEM.match(text, position):
        position = match.end()
        if match["scheme"] is not None:
            found.append((match["scheme"].lower(), {}))
        elif found:
            found[-1][1].setdefault(match["name"].lower(), _value(match))
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _value(match: re.Match[str]) -> str:
    quoted = match["quoted"]
    return str(match["value"]) if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
