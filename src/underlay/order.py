"""What an ingest is to bring, and whereto: the source, the version, the cache, and what is asked of the image."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from underlay import later
from underlay.contracts import ImageSource
from underlay.model import Digest, Form, ImageFacts, ImageVersion, Reason
from underlay.policy.form import EXEMPT_FORMATS, Want, choose_form
from underlay.policy.retry import NO_RETRIES, Retries
from underlay.store import Store

if TYPE_CHECKING:
    from underlay.formats import compressed
else:
    compressed = later.module("underlay.formats.compressed")  # which only what arrives needs


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingest is to bring, and whereto.

    Attributes:
        want: what is asked of the image, beside what the source promises.
        neighbours: the host's other caches, whose reservations count on the same file system.
        holding: keeps what is published from eviction, until it is closed; None: nobody needs it yet.
        retries: how a transfer that breaks is tried again.
    """

    store: Store
    source: ImageSource
    version: ImageVersion
    want: Want = msgspec.field(default_factory=Want)
    neighbours: Sequence[Store] = ()
    holding: ExitStack | None = None
    retries: Retries = NO_RETRIES

    @property
    def what(self) -> str:
        """How messages call the image."""
        return self.version.ref.canonical

    @property
    def expected(self) -> tuple[Digest, ...]:
        """Every digest that the bytes as served must have."""
        asked = () if self.want.checksum is None else (self.want.checksum,)
        return (*self.version.digests, *asked)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Every digest algorithm with which the bytes as served are read."""
        signed = () if self.version.signature is None else (self.version.signature.algorithm,)
        return tuple(dict.fromkeys(("sha256", *(digest.algorithm for digest in self.expected), *signed)))

    @property
    def is_fixed(self) -> bool:
        """Whether bytes that are fetched at two times are certainly, or at last provably, of one version."""
        if not self.version.resumable:
            return False
        return self.version.id is not None or self.version.validator is not None or bool(self.expected)

    @property
    def label(self) -> str | None:
        """What the bytes are said to be: by who asks, else by the source."""
        return self.want.disk_format or self.version.disk_format

    @property
    def exempt(self) -> bool:
        """Whether no format rule applies: a kernel, a ramdisk, or a cache without validation.

        What is to be converted is inspected all the same.
        """
        return self.label in EXEMPT_FORMATS or not (self.store.validation or self.want.raw)

    def undoes(self, compression: str) -> bool:
        """Whether bytes as served that are compressed so are decompressed."""
        is_asked_for = self.want.decompress is not None
        return self.want.undoes(compression) and (is_asked_for or not self.exempt)

    def undoes_beginning(self, beginning: bytes) -> bool:
        """Whether bytes as served that begin so are decompressed."""
        compression = compressed.compression_of(beginning)
        return compression is not None and self.undoes(compression)

    @property
    def raw_only(self) -> bool:
        """Whether nothing but a raw image will do."""
        return self.want.raw_only(force_raw=self.store.force_raw)

    def form(self, facts: ImageFacts) -> tuple[Form, Reason]:
        """In which form an image of which inspection found this is kept, and why."""
        if self.exempt:
            return Form.AS_SERVED, Reason("exempt", "the image is kept as served, without inspection")
        return choose_form(facts, self.want, label=self.label, force_raw=self.store.force_raw)
