"""Raw or as served: the decision and its reason, and whether an image that is kept is what was asked for."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from underlay.contracts import BackendTraits
from underlay.errors import InvalidForm
from underlay.model import BaseImage, Form, ImageFacts, ImageRecord
from underlay.naming import CacheKind
from underlay.policy.form import (
    EXEMPT_FORMATS,
    SERVED_FORMATS,
    Want,
    check_want,
    choose_form,
    fits,
    has_format,
    may_be_converted,
)
from underlay.values import replace

RAW = ImageFacts(format="raw", label="gpt", virtual_size=1)
QCOW2 = ImageFacts(format="qcow2", label="qcow2", virtual_size=1)
FLAT = BackendTraits(name="flat", needs_raw=True, overlays=False, disk_format="raw")
OVERLAY = BackendTraits(name="qcow2", needs_raw=False, overlays=True, disk_format="qcow2")


@pytest.mark.parametrize(
    ("facts", "label", "cache", "traits", "form", "code"),
    [
        (QCOW2, "qcow2", "raw-forcing", None, Form.RAW, "force-raw"),
        (QCOW2, None, "raw-forcing", OVERLAY, Form.RAW, "force-raw"),
        (QCOW2, None, "raw-forcing", FLAT, Form.RAW, "force-raw"),
        (QCOW2, None, "other", None, Form.AS_SERVED, "as-served"),
        (QCOW2, None, "other", OVERLAY, Form.AS_SERVED, "as-served"),
        (QCOW2, None, "other", FLAT, Form.RAW, "backend-needs-raw"),
        (RAW, None, "raw-forcing", FLAT, Form.AS_SERVED, "already-raw"),
        (RAW, "raw", "other", None, Form.AS_SERVED, "already-raw"),
        (QCOW2, "aki", "raw-forcing", FLAT, Form.AS_SERVED, "exempt"),
        (QCOW2, "ari", "raw-forcing", None, Form.AS_SERVED, "exempt"),
        (RAW, "ami", "other", None, Form.AS_SERVED, "exempt"),
    ],
)
def test_the_form_of_an_image_and_why(
    facts: ImageFacts, label: str | None, cache: str, traits: BackendTraits | None, form: Form, code: str
) -> None:
    chosen, reason = choose_form(facts, Want(traits=traits), label=label, force_raw=cache == "raw-forcing")

    assert (form, code) == (chosen, reason.code)
    assert reason.detail


def test_the_reason_names_what_decided() -> None:
    assert "force_raw_images" in choose_form(QCOW2, Want(traits=None), label=None, force_raw=True)[1].detail
    assert "flat" in choose_form(QCOW2, Want(traits=FLAT), label=None, force_raw=False)[1].detail
    assert "gpt" in choose_form(RAW, Want(traits=None), label=None, force_raw=True)[1].detail


def test_kernels_ramdisks_and_their_machines_are_exempt() -> None:
    assert {"aki", "ari", "ami"} == EXEMPT_FORMATS


@pytest.mark.parametrize(
    ("want", "force_raw", "answer"),
    [
        (Want(), False, False),
        (Want(), True, True),
        (Want(raw=True), False, True),
        (Want(raw=False), True, False),
        (Want(traits=FLAT), False, True),
        (Want(traits=OVERLAY), True, True),
        (Want(raw=True, traits=OVERLAY), False, True),
    ],
)
def test_nothing_but_raw_will_do_by_what_is_asked_else_by_the_cache(want: Want, *, force_raw: bool, answer: bool) -> None:
    assert answer == want.raw_only(force_raw=force_raw)


@pytest.mark.parametrize(
    ("raw", "force_raw", "form", "code"),
    [
        (True, False, Form.RAW, "raw-wanted"),
        (True, True, Form.RAW, "raw-wanted"),
        (False, True, Form.AS_SERVED, "as-served"),
        (False, False, Form.AS_SERVED, "as-served"),
    ],
)
def test_a_wish_comes_before_the_caches_rule(raw: bool, force_raw: bool, form: Form, code: str) -> None:  # noqa: FBT001
    chosen, reason = choose_form(QCOW2, Want(raw=raw), label=None, force_raw=force_raw)
    assert (form, code) == (chosen, reason.code)
    assert "already-raw" == choose_form(RAW, Want(raw=raw), label=None, force_raw=force_raw)[1].code
    assert "exempt" == choose_form(QCOW2, Want(raw=raw), label="aki", force_raw=force_raw)[1].code


@pytest.mark.parametrize("name", sorted(EXEMPT_FORMATS | SERVED_FORMATS))
def test_each_format_that_an_image_may_be_found_to_have_may_be_asked_for(name: str) -> None:
    for kind in CacheKind:
        check_want(Want(disk_format=name), kind=kind, force_raw=False)


@pytest.mark.parametrize("name", ["", "RAW", "qed", "luks", "vpc", " raw"])
def test_a_format_that_no_image_may_have_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(InvalidForm, match="no disk format") as caught:
        check_want(Want(disk_format=name), kind=CacheKind.MASTERS, force_raw=False)
    assert all(known in str(caught.value.hint) for known in SERVED_FORMATS | EXEMPT_FORMATS)


def test_the_bytes_as_served_are_refused_where_only_raw_is_kept_or_read() -> None:
    served = Want(raw=False)
    check_want(served, kind=CacheKind.MASTERS, force_raw=True)
    check_want(served, kind=CacheKind.BASE, force_raw=False)
    check_want(replace(served, traits=OVERLAY), kind=CacheKind.BASE, force_raw=False)
    with pytest.raises(InvalidForm, match="force_raw_images"):
        check_want(served, kind=CacheKind.BASE, force_raw=True)
    with pytest.raises(InvalidForm, match="flat"):
        check_want(replace(served, traits=FLAT), kind=CacheKind.MASTERS, force_raw=False)


RECORD = ImageRecord(
    layout=1,
    version_id="1",
    ref="fake:image",
    format="qcow2",
    size=1,
    virtual_size=1,
    digests=(),
    stored="",
    as_served=True,
    fetched_at=datetime(2026, 1, 1, tzinfo=UTC),
    underlay="0",
)
STEM = "155d900f-4e14-4e4c-a73d-069cbf4541e6"


def kept(name: str = STEM, *, as_served: bool = True, found: str | None = "qcow2", recorded: bool = True) -> BaseImage:
    """A master; in raw form unless it is a qcow2 image as it was served."""
    stored = "qcow2" if as_served and found == "qcow2" else "raw"
    return BaseImage(
        name=name,
        cache=Path("/cache"),
        format=stored,
        size=1,
        virtual_size=1,
        allocated=1,
        last_used=datetime(2026, 1, 1, tzinfo=UTC),
        record=replace(RECORD, format=stored, as_served=as_served, served_format=found) if recorded else None,
        served_format=found,
    )


@pytest.mark.parametrize(
    ("image", "forms"),
    [
        (kept(), {None, False}),
        (kept(found="raw"), {None, False, True}),
        (kept(f"{STEM}.converted", found="gpt"), {None, False, True}),
        (kept(f"{STEM}.converted", as_served=False), {None, True}),
        (kept(found=None), {None, False}),
        (kept(f"{STEM}.converted", found=None, recorded=False), {None, True}),
        (kept(found=None, recorded=False), {None, False}),
    ],
)
def test_a_master_fits_the_forms_that_it_certainly_has(image: BaseImage, forms: set[bool | None]) -> None:
    fitting = {raw for raw in (None, False, True) if fits(image, Want(raw=raw), kind=CacheKind.MASTERS, force_raw=False)}
    assert forms == fitting


@pytest.mark.parametrize(
    ("image", "answer"),
    [
        (kept(), True),
        (kept(as_served=False), False),
        (kept(found=None), False),
        (kept(recorded=False), False),
    ],
)
def test_only_what_was_inspected_and_is_as_served_may_be_converted(image: BaseImage, *, answer: bool) -> None:
    assert answer == may_be_converted(image)


@pytest.mark.parametrize(
    ("found", "wanted", "answer"),
    [
        ("qcow2", None, True),
        ("qcow2", "qcow2", True),
        ("qcow2", "raw", False),
        ("raw", "gpt", True),
        ("gpt", "raw", True),
        ("iso", "raw", False),
        ("raw", "iso", False),
        ("qcow2", "aki", True),
        (None, "ari", True),
        (None, None, True),
        (None, "raw", None),
    ],
)
def test_a_format_is_had_or_not_or_nothing_tells(found: str | None, wanted: str | None, answer: bool | None) -> None:  # noqa: FBT001
    assert answer is has_format(kept(found=found), wanted)
