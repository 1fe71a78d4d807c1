"""How the cases of a conformance suite say what a contract wants. A broken contract is an AssertionError that says it."""

import hashlib


def expect(claim: object, what: str) -> None:
    """The contract wants this."""
    if not claim:
        raise AssertionError(what)


def expect_equal(expected: object, actual: object, what: str) -> None:
    """The contract wants these to be equal."""
    if expected != actual:
        raise AssertionError(f"{what}: expected {_shown(expected)}, found {_shown(actual)}")


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes with sha256:{hashlib.sha256(value).hexdigest()[:12]}…"
    return repr(value)
