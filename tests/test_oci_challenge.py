"""WWW-Authenticate as servers write it."""

import pytest

from underlay.sources.oci.challenge import Challenge, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Basic realm="a"', [("basic", {"realm": "a"})]),
        ("BASIC REALM=a", [("basic", {"realm": "a"})]),
        (
            'Basic realm = "a \\"b\\" \\\\c, d=e" , charset="UTF-8"',
            [("basic", {"realm": 'a "b" \\c, d=e', "charset": "UTF-8"})],
        ),
        (
            HUB,
            [
                (
                    "bearer",
                    {"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:a/b:pull"},
                )
            ],
        ),
        ('Negotiate YII+/a==, Bearer realm="r", Basic', [("negotiate", {}), ("bearer", {"realm": "r"}), ("basic", {})]),
        ('Negotiate, Basic realm="r"', [("negotiate", {}), ("basic", {"realm": "r"})]),
        ('Basic realm="a", Bearer realm="b"', [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (', ,Bearer ,realm="a",,service=b,', [("bearer", {"realm": "a", "service": "b"})]),
        ('Bearer realm="a", realm="b"', [("bearer", {"realm": "a"})]),
        ('realm="a", Basic', [("basic", {})]),
        ('Bearer realm="a', [("bearer", {})]),
        ('Bearer realm="a" service=b', [("bearer", {})]),
        ('"Bearer" realm="a"', []),
        ("=", []),
    ],
)
def test_challenges_are_read_as_far_as_they_can_be(text: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [Challenge(scheme, parameters) for scheme, parameters in expected] == list(parse_challenges(text))


def test_a_field_of_any_length_is_read_soon() -> None:
    assert 1 <= len(parse_challenges("a " * 100_000))
    assert [] == list(parse_challenges("=" * 100_000))
    assert [Challenge("bearer", {})] == list(parse_challenges("Bearer " + "a" * 100_000 + '="'))
