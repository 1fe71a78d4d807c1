"""Cases about images on their way into a cache: what is published is whole, and what fails publishes nothing.

What is left of a transfer that broke off is there for the next one to go on from; of every other failure nothing is.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from underlay.config import parse_config
from underlay.errors import (
    BodyTruncated,
    DigestMismatch,
    ImageNotFound,
    NotAuthorized,
    SourceError,
    SourceUnavailable,
    UnderlayError,
)
from underlay.files import read_attribute
from underlay.host import Host
from underlay.model import BaseImage, Digest
from underlay.refs import parse_ref
from underlay.testing.fakes import Recorder
from underlay.testing.source_suite.case import Case, case, expect_equal, expect_error, expect_kept, refused, sha256
from underlay.testing.source_suite.stage import (
    Announced,
    Away,
    Cut,
    Forbidden,
    Replaced,
    Stage,
    Stalled,
    Trouble,
    Withdrawn,
)

_CONTENT = Random(11).randbytes(400_007)
_OTHER = Random(12).randbytes(400_007)
_AFTER = 100_000
_AT_ONCE = 4
_CONFIG = """
[instances]
path = {instances}
[caches.base]
kind = "base"
path = {base}
[transfer]
attempts = 2
first_wait = "0.01s"
longest_wait = "0.02s"
"""


@case()
def an_image_arrives_whole_and_is_served_again(stage: Stage) -> None:
    with _caching(stage) as caching:
        ref = stage.put(_CONTENT)
        image = caching.host.ensure(ref)
        _expect_kept_whole(_CONTENT, image)
        expect_equal(parse_ref(ref).canonical, image.ref, "the ref of the image")
        expect_equal(image.path, caching.host.ensure(ref).path, "the path of the image that was there")
        expect_equal(image.path, caching.host.ensure(ref, checksum=f"sha256:{sha256(_CONTENT)}").path, "the verified image")


@case()
def one_image_comes_of_many_requests_at_once(stage: Stage) -> None:
    with _caching(stage) as caching, ThreadPoolExecutor(_AT_ONCE) as pool:
        images = list(pool.map(caching.host.ensure, [stage.put(_CONTENT)] * _AT_ONCE))
        expect_equal(1, len({image.path for image in images}), "the number of images")
        _expect_kept_whole(_CONTENT, images[0])


@case()
def content_with_another_digest_than_the_expected_one_is_refused(stage: Stage) -> None:
    with _caching(stage) as caching:
        with refused(stage, DigestMismatch):
            caching.host.ensure(stage.put(_CONTENT), checksum=Digest("sha256", sha256(_OTHER)))
        caching.expect_nothing_published()
        caching.expect_nothing_left()


@case(Replaced)
def new_content_is_a_new_image_and_the_old_one_stays_as_it_was(stage: Stage) -> None:
    with _caching(stage) as caching:
        ref = stage.put(_CONTENT)
        old = caching.host.ensure(ref)
        with stage.trouble(ref, Replaced(_OTHER)):
            new = caching.host.ensure(ref)
            if new.path != old.path or stage.source.revalidate_after == 0:
                _expect_kept_whole(_OTHER, new)
        _expect_kept_whole(_CONTENT, old)


@case(Away)
def a_verified_image_bridges_a_place_that_is_away_where_that_is_wanted(stage: Stage) -> None:
    with _caching(stage) as caching:
        ref = stage.put(_CONTENT)
        image = caching.host.ensure(ref)
        with stage.trouble(ref, Away()):
            if stage.source.stale_if_error:
                expect_equal(image.path, caching.host.ensure(ref).path, "the image that is served meanwhile")
            elif stage.source.revalidate_after == 0 and stage.source.fixed_id(parse_ref(ref)) is None:
                with refused(stage, SourceUnavailable):
                    caching.host.ensure(ref)


@case(Withdrawn)
def of_a_missing_image_nothing_is_left(stage: Stage) -> None:
    _expect_failure(stage, Withdrawn(), ImageNotFound)


@case(Forbidden)
def of_a_forbidden_image_nothing_is_left(stage: Stage) -> None:
    _expect_failure(stage, Forbidden(), NotAuthorized)


@case(Away)
def an_image_whose_place_is_away_comes_when_it_is_back(stage: Stage) -> None:
    _expect_failure(stage, Away(), SourceUnavailable)


@case(Stalled)
def an_image_that_does_not_begin_to_come_is_given_up(stage: Stage) -> None:
    _expect_failure(stage, Stalled(after=0), SourceUnavailable)


@case(Stalled)
def a_transfer_that_stalls_goes_on_or_publishes_nothing(stage: Stage) -> None:
    _expect_whole_or_failure(stage, Stalled(after=_AFTER), SourceUnavailable)


@case(Cut)
def a_transfer_that_is_cut_off_goes_on_or_publishes_nothing(stage: Stage) -> None:
    _expect_whole_or_failure(stage, Cut(after=_AFTER), BodyTruncated, SourceUnavailable)


@case(Announced)
def what_is_longer_than_announced_is_never_published(stage: Stage) -> None:
    # A place that itself sends no more than it announced is found out by the digest, where there is one.
    _expect_failure(stage, Announced(size=len(_CONTENT) - 1_000), SourceError, DigestMismatch)


@case(Announced)
def what_is_shorter_than_announced_is_never_published(stage: Stage) -> None:
    _expect_failure(stage, Announced(size=len(_CONTENT) + 1_000), SourceError)


# ---------------------------------------------------------------------------------------------------------------- the cache


@dataclass(frozen=True, slots=True)
class _Caching:
    """A host with an empty cache in a directory of its own, which fetches from the stage's source."""

    stage: Stage
    host: Host
    observer: Recorder

    def expect_nothing_published(self) -> None:
        (store,) = self.host.parts.stores()
        expect_equal([], sorted(set(os.listdir(store.root)) - {".underlay"}), "what is published after a failure")

    def expect_nothing_left(self) -> None:
        """No ingest has left anything behind."""
        (store,) = self.host.parts.stores()
        left = os.listdir(store.paths.tmp) if store.paths.tmp.exists() else []
        expect_equal([], left, "what an ingest left")

    def expect_secrets_kept(self) -> None:
        """Neither an event nor a name, a file or an attribute below the cache tells a secret."""
        told = [f"{event.detail} {dict(event.fields)}" for event in self.observer.events]
        expect_kept(self.stage, [*told, *(step.ref for step in self.observer.steps)], "an event")
        for path in self.host.parts.stores()[0].root.rglob("*"):
            expect_kept(self.stage, [path.name, *_texts(path)], f"the cache's {path.name}")


@contextmanager
def _caching(stage: Stage) -> Iterator[_Caching]:
    with tempfile.TemporaryDirectory(prefix="underlay-suite-") as directory:
        instances, base = Path(directory, "instances"), Path(directory, "base")
        for made in (instances, base):
            made.mkdir()
        text = _CONFIG.format(instances=json.dumps(os.fspath(instances)), base=json.dumps(os.fspath(base)))
        observer = Recorder()
        sources = dict.fromkeys(stage.source.schemes, stage.source)
        host = Host.open(parse_config(text, origin=Path(directory, "underlay.toml")), observer=observer, sources=sources)
        caching = _Caching(stage, host, observer)
        yield caching
        caching.expect_secrets_kept()


def _expect_failure(stage: Stage, trouble: Trouble, *errors: type[UnderlayError]) -> None:
    """The image does not come, nothing of it is published, and once the trouble is over it comes; or another one does."""
    with _caching(stage) as caching:
        ref = stage.put(_CONTENT)
        with stage.trouble(ref, trouble):
            error = _ensure_error(caching, ref)
            expect_error(stage, error, *errors)
        caching.expect_nothing_published()
        if error is not None and not error.transient:
            caching.expect_nothing_left()
        _expect_all_well(caching, ref, trouble)


def _expect_whole_or_failure(stage: Stage, trouble: Trouble, *errors: type[UnderlayError]) -> None:
    with _caching(stage) as caching:
        ref = stage.put(_CONTENT)
        with stage.trouble(ref, trouble):
            error = _ensure_error(caching, ref)
            if error is not None:
                expect_error(stage, error, *errors)
                caching.expect_nothing_published()
        _expect_all_well(caching, ref, trouble)


def _expect_all_well(caching: _Caching, ref: str, trouble: Trouble) -> None:
    """What comes now is whole, and nothing is left beside it."""
    if isinstance(trouble, Withdrawn | Forbidden):  # which may outlast
        _expect_kept_whole(_OTHER, caching.host.ensure(caching.stage.put(_OTHER)))
    else:
        _expect_kept_whole(_CONTENT, caching.host.ensure(ref))
    caching.expect_nothing_left()


def _ensure_error(caching: _Caching, ref: str) -> UnderlayError | None:
    try:
        _expect_kept_whole(_CONTENT, caching.host.ensure(ref))
    except UnderlayError as error:
        return error
    return None


def _expect_kept_whole(content: bytes, image: BaseImage) -> None:
    expect_equal(content, image.path.read_bytes(), "the image in the cache")


def _texts(path: Path) -> Iterator[str]:
    """What a file holds, and what its attribute says, byte for character."""
    if path.is_file():
        yield path.read_bytes().decode("latin-1")
        yield (read_attribute(path) or b"").decode("latin-1")


CASES: tuple[Case, ...] = (
    an_image_arrives_whole_and_is_served_again,
    one_image_comes_of_many_requests_at_once,
    content_with_another_digest_than_the_expected_one_is_refused,
    new_content_is_a_new_image_and_the_old_one_stays_as_it_was,
    a_verified_image_bridges_a_place_that_is_away_where_that_is_wanted,
    of_a_missing_image_nothing_is_left,
    of_a_forbidden_image_nothing_is_left,
    an_image_whose_place_is_away_comes_when_it_is_back,
    an_image_that_does_not_begin_to_come_is_given_up,
    a_transfer_that_stalls_goes_on_or_publishes_nothing,
    a_transfer_that_is_cut_off_goes_on_or_publishes_nothing,
    what_is_longer_than_announced_is_never_published,
    what_is_shorter_than_announced_is_never_published,
)
