"""What is done about a damaged image: who needs it is told, and its source is asked for the same bytes again.

They come like any other image, verified against the recorded digest, and take the damaged one's place only if their stored
digest is the recorded one too. Whatever fails leaves things as they were.
"""

from underlay.config import Config
from underlay.contracts import ImageSource
from underlay.errors import UnderlayError
from underlay.model import Digest, ImageRecord, ImageVersion, Reason
from underlay.naming import CacheKind, named_format
from underlay.policy.form import EXEMPT_FORMATS, Want
from underlay.policy.prune import merge_usage
from underlay.policy.scrub import ScrubSubject
from underlay.prune import observation
from underlay.prune.observation import Known
from underlay.refs import parse_ref
from underlay.store import Store, refs
from underlay.usage.openfiles import OpenFilesProbe


def users_of(config: Config, known: Known, subject: ScrubSubject) -> tuple[Reason, ...]:
    """Who needs an image, and what could not be told of that. Nobody of ours has it open."""
    seen = observation.observe(config, [subject.cache], known)
    probe = OpenFilesProbe({(subject.root, subject.name): subject.path})
    usage = merge_usage([probe.observe(seen.inventories)], onto=seen.usage)
    uses = usage.uses.get(subject.root, {}).get(subject.name, ())
    unknowns = [unknown for unknown in usage.unknowns if unknown.root in (None, subject.root)]
    users = [Reason(use.how, use.who) for use in uses]
    return (*users, *(Reason(unknown.code, unknown.detail) for unknown in unknowns))


def want_of(name: str, record: ImageRecord, *, kind: CacheKind) -> Want:
    """What has to be asked for so that the same file comes under the same name."""
    digest = next((Digest.parse(text) for text in record.digests if text.startswith("sha256:")), None)
    label = record.served_format if record.served_format in EXEMPT_FORMATS else None
    is_raw_form = not record.as_served or named_format(name, kind=kind) == "raw"
    return Want(checksum=digest, raw=True if is_raw_form and label is None else None, disk_format=label)


def obstacle(source: ImageSource, store: Store, record: ImageRecord) -> Reason | None:
    """Why the source cannot bring the same bytes again, as far as its description tells; None when it may.

    Raises:
        SourceError
    """
    ref = parse_ref(record.ref)
    version = source.describe(ref)
    if version.no_store:
        return Reason("not-kept", "its source asks that nobody keep a copy")
    if _is_another(version, store, record):
        return Reason("source-changed", "its source has another version by now")
    return None


def _is_another(version: ImageVersion, store: Store, record: ImageRecord) -> bool:
    if version.id is not None:
        return version.id != record.version_id
    promised = {str(digest) for digest in version.digests if str(digest).startswith("sha256:")}
    if promised:
        return not promised & set(record.digests)
    is_whole = record.as_served and record.compression is None
    if is_whole and version.size not in (None, record.size):
        return True
    remembered = refs.recall(store, version.ref)
    meant = remembered.meant_by(version.validator) if remembered else None
    return meant is not None and meant.id != record.version_id


def failed(error: UnderlayError) -> Reason:
    """Why it did not come."""
    return Reason("refetch-failed", error.message if error.hint is None else f"{error.message} ({error.hint})")
