"""Ironic's image references as refs of ours."""

from uuid import UUID

from underlay.errors import InvalidRef
from underlay.model import ImageRef
from underlay.refs import parse_ref
from underlay.values import replace

_GLANCE = "glance://"


def read_ref(href: str) -> ImageRef:
    """A ref by Ironic's grammar: a UUID or ``glance://…/UUID`` is Glance's, all else is a URL.

    Raises:
        InvalidRef
    """
    href = str(href)
    named = href.rpartition("/")[2] if href.startswith(_GLANCE) else href
    try:
        return parse_ref(str(UUID(named)))
    except ValueError as error:
        if href.startswith(_GLANCE):
            raise InvalidRef("the Glance image has no UUID at its end", hint="write glance://UUID") from error
        ref = parse_ref(href)
    # Ironic names the master of a registry's image by the reference as it is written, and asks for it so.
    return replace(ref, canonical=href, location=href) if ref.scheme == "oci" else ref
