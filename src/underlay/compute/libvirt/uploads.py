"""Whether a snapshot is uploaded, and where to: into Glance, where that is configured and the image is one of Glance's."""

from dataclasses import dataclass, field
from pathlib import Path

from underlay.compute.libvirt.site import Site
from underlay.contracts import ImageReceiver, Observer
from underlay.errors import InvalidRef, SourceUnavailable
from underlay.model import ImageRef
from underlay.policy.retry import Retries, Tries
from underlay.refs import parse_ref
from underlay.retrying import pause

_SCHEME = "glance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An image that a snapshot becomes.

    Attributes:
        token: of who asks; None: the configured user's.
        retries: how often what broke off is begun anew, as with a fetch.
    """

    receiver: ImageReceiver
    ref: ImageRef
    disk_format: str
    token: str | None = field(repr=False)
    retries: Retries
    observer: Observer

    def check(self) -> None:
        """Make sure that the image is there and has no data yet.

        Raises:
            as `underlay.contracts.ImageReceiver`
        """
        self.receiver.check_waits(self.ref, token=self.token)

    def send(self, content: Path) -> None:
        """Give the image its data; what breaks off is begun anew, unless only its end was not heard of.

        Raises:
            as `underlay.contracts.ImageReceiver`
        """
        tries, broke_off = Tries(self.retries), False
        while True:
            try:
                if not (broke_off and self.receiver.has(self.ref, content, token=self.token)):
                    self.receiver.upload(self.ref, content, disk_format=self.disk_format, token=self.token)
                return
            except SourceUnavailable as error:
                pause(tries, error, what=str(self.ref), reached=0, observer=self.observer)
                broke_off = True


def upload_for(site: Site, image_id: str, *, token: str | None) -> Upload | None:
    """The upload of a snapshot; None when it stays in a file: without a table `[sources.glance]`, or of another ref.

    Raises:
        ExtraMissing
    """
    if _SCHEME not in site.host.config.configured_sources:
        return None
    try:
        ref = parse_ref(image_id)
    except InvalidRef:
        return None
    if ref.scheme != _SCHEME:
        return None
    receiver = site.host.parts.source(_SCHEME)
    if not isinstance(receiver, ImageReceiver):
        return None
    return Upload(
        receiver=receiver,
        ref=ref,
        disk_format=site.options.snapshot_image_format,
        token=token,
        retries=site.host.config.retries,
        observer=site.host.parts.observer,
    )
