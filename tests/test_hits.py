"""Which image answers a request: by the records alone, by what a source says, or in place of a source that is silent."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storing import MIB, laid_out
from underlay import hits
from underlay.cache import Cache
from underlay.errors import DigestMismatch, FormatMismatch
from underlay.hits import Ask, Found
from underlay.model import Digest, ImageRef, ImageVersion
from underlay.naming import CacheKind, candidate_names
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.store import Store, refs
from underlay.testing.bootimage import write_qcow2
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace

REF = parse_ref("fake:image")
NOW = datetime.now(UTC)
EVER, NEVER = NOW - timedelta(days=1), NOW + timedelta(days=1)
KINDS = [CacheKind.BASE, CacheKind.MASTERS]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return laid_out(tmp_path / "cache", kind=request.param, force_raw=False)


def asking(store: Store, source: FakeSource, **want: object) -> Ask:
    asked = Want(**want)  # type: ignore[arg-type]
    return Ask(store=store, ref=REF, source=source, observer=Recorder(), want=asked, holding=ExitStack())


def test_a_kernel_by_its_source_s_word_needs_no_further_question(tmp_path: Path) -> None:
    source = FakeSource({"fake:image": FakeImage(b"\x7fELF and so on", id="7", disk_format="aki")}, revalidate_after=0)
    store = laid_out(tmp_path / "kernels", kind=CacheKind.MASTERS, force_raw=False)
    cache = Cache(name="kernels", store=store)
    found = [cache.ensure(REF, source, Recorder()).reason.code for _ in range(3)]
    assert ["fetched", "hit", "hit"] == found
    assert 1 == source.described("fake:image")


def test_an_answer_is_young_enough_by_the_source_or_by_who_asks() -> None:
    source = FakeSource({}, revalidate_after=300)
    ages = [(NOW - one.since(source, now=NOW)).total_seconds() for one in (hits.AS_THE_SOURCE_SAYS, hits.ASKED_NOW)]
    assert [300, 0] == ages
    assert 7 == (NOW - hits.Freshness(max_age=7).since(source, now=NOW)).total_seconds()
    assert hits.Freshness(max_age=float("inf")).since(source, now=NOW) < NOW - timedelta(days=3000)


def test_what_stands_in_for_a_silent_source_needs_both_to_allow_it() -> None:
    for allowed in (True, False):
        source = FakeSource({}, stale_if_error=allowed)
        ask = Ask(store=laid_out_nowhere(), ref=REF, source=source, observer=Recorder(), want=Want(), holding=ExitStack())
        assert allowed == ask.stands_in
        assert not replace(ask, freshness=hits.ASKED_NOW).stands_in


def laid_out_nowhere() -> Store:
    return Store(root=Path("/nowhere"), kind=CacheKind.BASE)


def brought(store: Store, source: FakeSource, **want: object) -> Found:
    """An image that is there by way of a fetch."""
    ensured = Cache(name="cache", store=store).ensure(REF, source, Recorder(), want=Want(**want))  # type: ignore[arg-type]
    return Found(ensured.image)


def qcow2(tmp_path: Path) -> FakeSource:
    write_qcow2(tmp_path / "image.qcow2", size=4 * MIB, message="hits", payload=MIB)
    return FakeSource({str(REF): FakeImage(tmp_path / "image.qcow2")}, revalidate_after=300)


def raw() -> FakeSource:
    return FakeSource({str(REF): FakeImage(b"content")}, revalidate_after=300)


def paths(*found: Found | None) -> list[Path | None]:
    return [None if one is None else one.image.path for one in found]


def digest(content: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


def version(ask: Ask, **fields: object) -> ImageVersion:
    """What the source says now."""
    return replace(ask.source.describe(REF), **fields)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ from the records alone


def test_nothing_answers_before_anything_is_known(store: Store) -> None:
    ask = asking(store, raw())
    assert (None, None, ()) == (hits.fresh(ask, checked_since=EVER), hits.last_known(ask), hits.validators(ask))
    assert None is hits.unchanged(ask, version(ask))


def test_what_the_source_has_said_lately_answers_and_what_it_said_before_does_not(store: Store) -> None:
    source = raw()
    kept = brought(store, source)
    assert paths(kept) == paths(hits.fresh(asking(store, source), checked_since=EVER))
    assert None is hits.fresh(asking(store, source), checked_since=NEVER)


def test_a_sha256_answers_however_long_ago_the_source_was_asked(store: Store) -> None:
    source = raw()
    kept = brought(store, source)
    right, wrong, other = (
        asking(store, source, checksum=one) for one in (digest(b"content"), digest(b"x"), digest(b"x", "md5"))
    )
    assert [*paths(kept), None, None] == paths(*(hits.fresh(ask, checked_since=NEVER) for ask in (right, wrong, other)))


def test_a_version_that_the_ref_fixes_answers_for_ever(store: Store) -> None:
    source = FakeSource({str(REF): FakeImage(b"content", id="7")})
    kept = brought(store, source)
    assert paths(kept) == paths(hits.fresh(asking(store, source), checked_since=NEVER))


@pytest.mark.component("qemu-img")
def test_an_image_as_served_is_found_for_its_raw_form_and_has_to_be_converted(store: Store, tmp_path: Path) -> None:
    source = qcow2(tmp_path)
    kept = brought(store, source)
    found = hits.fresh(asking(store, source, raw=True), checked_since=EVER)
    assert (paths(kept), True) == (paths(found), found is not None and found.converts)
    converted = brought(store, source, raw=True)
    again = hits.fresh(asking(store, source, raw=True), checked_since=EVER)
    assert (paths(converted), False) == (paths(again), again is not None and again.converts)


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("spoilt", ["uninspected", "unrecorded", "another version"])
def test_nothing_is_converted_but_what_was_inspected_and_is_the_version(store: Store, tmp_path: Path, spoilt: str) -> None:
    source = qcow2(tmp_path)
    kept = brought(replace(store, validation=spoilt != "uninspected"), source)
    if spoilt == "unrecorded":
        os.removexattr(kept.image.path, "user.underlay")
    if spoilt == "another version":
        source.put(str(REF), FakeImage(b"newer"))
        newer = version(asking(store, source))
        refs.remember(store, REF, source.version_id(REF, "0" * 64), validator=newer.validator, now=datetime.now(UTC))
    assert None is hits.fresh(asking(store, source, raw=True), checked_since=EVER)


@pytest.mark.component("qemu-img")
def test_an_image_that_was_kept_raw_does_not_answer_for_the_bytes_as_served(store: Store, tmp_path: Path) -> None:
    source = qcow2(tmp_path)
    converted = brought(store, source, raw=True)
    assert paths(converted) == paths(hits.fresh(asking(store, source), checked_since=EVER))
    assert None is hits.fresh(asking(store, source, raw=False), checked_since=EVER)


def test_a_format_that_the_image_has_not_and_a_checksum_of_it_do_not_answer_from_records(store: Store) -> None:
    source = raw()
    kept = brought(store, source)
    for want, answer in (({"disk_format": "raw"}, kept), ({"disk_format": "gpt"}, kept), ({"disk_format": "qcow2"}, None)):
        assert paths(answer) == paths(hits.fresh(asking(store, source, **want), checked_since=EVER))


def test_what_was_not_inspected_answers_for_no_format(store: Store) -> None:
    source = raw()
    brought(replace(store, validation=False), source)
    assert None is hits.fresh(asking(store, source, disk_format="raw"), checked_since=EVER)
    uninspecting = replace(store, validation=False)
    assert None is not hits.fresh(asking(uninspecting, source, disk_format="raw"), checked_since=EVER)


# --------------------------------------------------------------------------------------------------------- by what is described


def test_a_validator_that_meant_the_image_answers_and_is_noted(store: Store) -> None:
    source = raw()
    kept = brought(store, source)
    ask = asking(store, source)
    refs.remember(store, REF, _version_id(kept), validator=None, now=NOW - timedelta(hours=1))
    assert paths(kept) == paths(hits.unchanged(ask, version(ask)))
    record = refs.recall(store, REF)
    assert record is not None
    assert record.checked_at >= NOW


def _version_id(found: Found) -> str:
    version_id = hits.version_id(found.image)
    assert version_id is not None
    return version_id


@pytest.mark.parametrize("fields", [{"validator": "newer"}, {"validator": None}, {"no_store": True}])
def test_another_validator_none_and_no_store_mean_a_transfer(store: Store, fields: dict[str, object]) -> None:
    source = raw()
    brought(store, source)
    ask = asking(store, source)
    assert None is hits.unchanged(ask, version(ask, **fields))


def test_an_unchanged_image_without_the_checksum_or_the_format_is_an_error(store: Store) -> None:
    source = raw()
    brought(store, source)
    for algorithm in ("sha256", "md5"):
        ask = asking(store, source, checksum=digest(b"x", algorithm))
        with pytest.raises(DigestMismatch) as caught:
            hits.unchanged(ask, version(ask))
        assert str(digest(b"content", algorithm)) == caught.value.actual
    ask = asking(store, source, disk_format="iso", checksum=digest(b"x"))
    with pytest.raises(FormatMismatch, match="asked for as iso, but its content is raw"):
        hits.unchanged(ask, version(ask))


def test_validators_are_those_of_the_newest_version_while_it_is_here(store: Store) -> None:
    source = raw()
    kept = brought(store, source)
    ask = asking(store, source)
    first = version(ask).validator
    refs.remember(store, REF, _version_id(kept), validator="another", now=NOW)
    assert {first, "another"} == set(hits.validators(ask))
    refs.remember(store, REF, "newer", validator="newest", now=NOW)
    assert () == hits.validators(ask)
    refs.remember(store, REF, _version_id(kept), validator=first, now=NOW)
    kept.image.path.unlink()
    assert () == hits.validators(ask)


# ------------------------------------------------------------------------------------------------------- from a silent source


def test_the_newest_that_is_here_stands_in_and_only_where_the_source_lets_it(store: Store) -> None:
    source = raw()
    kept = brought(store, source)
    refs.remember(store, REF, "newer", validator="newer", now=NOW)
    assert paths(kept) == paths(hits.last_known(asking(store, source)))
    source.stale_if_error = False
    assert None is hits.last_known(asking(store, source))


@pytest.mark.parametrize("want", [{"checksum": digest(b"x")}, {"disk_format": "iso"}])
def test_what_is_not_what_was_asked_for_does_not_stand_in(store: Store, want: dict[str, object]) -> None:
    source = raw()
    brought(store, source)
    assert None is hits.last_known(asking(store, source, **want))


def test_what_nobody_may_keep_answers_nobody(store: Store) -> None:
    source = FakeSource({str(REF): FakeImage(b"content", no_store=True)}, revalidate_after=300)
    brought(store, source)
    asks: Sequence[Ask] = (asking(store, source), asking(store, source, checksum=digest(b"content")))
    for ask in asks:
        assert (None, None, ()) == (hits.fresh(ask, checked_since=EVER), hits.last_known(ask), hits.validators(ask))
        assert None is hits.unchanged(ask, version(ask))


# ------------------------------------------------------------------------------------------------------------------- the names


def test_the_names_of_a_ref_are_those_of_every_version_that_it_has_meant(store: Store) -> None:
    source = raw()
    old = brought(store, source)
    source.put(str(REF), FakeImage(b"newer"))
    source.revalidate_after = 0
    new = brought(store, source)
    assert {old.image.name, new.image.name} <= hits.names(store, REF)
    other = parse_ref("fake:other")
    assert set() == hits.names(store, REF) & hits.names(store, other)


def test_the_names_of_a_ref_that_is_its_version_are_known_without_a_record(store: Store) -> None:
    glance = parse_ref("155d900f-4e14-4e4c-a73d-069cbf4541e6")
    assert set(_names(store, glance)) == hits.names(store, glance)


def _names(store: Store, ref: ImageRef) -> Sequence[str]:
    return candidate_names(ref.location, ref=ref, kind=store.kind, raw_only=False)
