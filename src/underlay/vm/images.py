"""The image that a new machine is made from: one that is here, by its name, or that of a ref, which the driver fetches.

With a checksum it is fetched and verified first, and the driver gets that very image, whatever the ref serves by then.
"""

import os
from contextlib import ExitStack

from underlay import lookup
from underlay.errors import InvalidRef
from underlay.host import Host, bring
from underlay.model import BaseImage
from underlay.policy.form import Want
from underlay.refs import is_ref, parse_ref
from underlay.vm.wanted import Wanted


def image_of(host: Host, wanted: Wanted, holding: ExitStack) -> tuple[str, str | None]:
    """By what the driver finds an image, and its canonical ref.

    Args:
        wanted: with the backend and the cache that are to be taken. holding: keeps a verified image until it is closed.

    Raises:
        InvalidRef; NotCached: a name means several. With a checksum as `Host.fetch`
    """
    text = wanted.image
    if wanted.checksum is not None or wanted.signature is not None:
        return os.fspath(_verified(host, wanted, holding).path), parse_ref(text).canonical
    if is_ref(text):
        return text, parse_ref(text).canonical
    if (found := lookup.find_only(host.parts.stores(), text)) is None:
        return text, parse_ref(text).canonical  # which says what is none
    return os.fspath(found.path), found.ref


def _verified(host: Host, wanted: Wanted, holding: ExitStack) -> BaseImage:
    if not is_ref(wanted.image):
        hint = "name the image by its ref, or leave the checksum out: what is here was verified when it came"
        raise InvalidRef(f"{wanted.image!r} is no ref, and a checksum is of what a ref serves", hint=hint)
    parts, ref = host.parts, parse_ref(wanted.image)
    expected = bring.expected(parts, ref, wanted.checksum, wanted.signature)
    want = Want(traits=parts.backend(wanted.backend).traits)
    return bring.verified(parts, ref, parts.cache(wanted.cache), want, expected, holding).image
