"""Values: what a copy with changes is, and that no repr tells a secret."""

from dataclasses import dataclass

import msgspec
import pytest
from rich.pretty import pretty_repr

from underlay.model import ImageRef
from underlay.sources.objects.access import AzureAccess, Keys
from underlay.values import hiding, replace
from underlay.web import Web
from underlay.web.credentials import Credential

SECRET = "geheim"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A struct."""

    name: str
    key: str = ""

    __repr__, __rich_repr__ = hiding("key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A dataclass."""

    name: str
    key: str = ""


@pytest.mark.parametrize("kind", [Place, Plain])
def test_a_copy_has_the_changes_and_the_original_has_not(kind: type[Place] | type[Plain]) -> None:
    value = kind(name="a", key="b")

    assert kind(name="c", key="b") == replace(value, name="c")
    assert kind(name="a", key="b") == value


@pytest.mark.parametrize("kind", [Place, Plain])
def test_what_is_no_field_cannot_be_changed(kind: type[Place] | type[Plain]) -> None:
    with pytest.raises(TypeError):
        replace(kind(name="a"), colour="red")  # type: ignore[call-arg]


def test_the_repr_has_the_other_fields() -> None:
    assert "Place(name='a')" == repr(Place(name="a", key=SECRET))


@pytest.mark.parametrize(
    "value",
    [
        Place(name="a", key=SECRET),
        ImageRef(scheme="https", canonical="https://a/b", location=f"https://u:{SECRET}@a/b"),
        Keys(access_key_id=SECRET, secret_access_key=SECRET, session_token=SECRET),
        AzureAccess(account="a", key=SECRET, sas=SECRET),
        Credential(origin="here", user="u", password=SECRET, token=SECRET),
        Web(credentials={"a": Credential(origin="here", token=SECRET)}, proxies={"http": f"http://u:{SECRET}@proxy"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_repr_tells_a_secret(value: object) -> None:
    assert SECRET not in repr(value)
    assert SECRET not in pretty_repr(value)  # which rich would take from the fields
