"""Raw or as served: the decision and its reason."""

import pytest

from underlay.contracts import BackendTraits
from underlay.model import Form, ImageFacts
from underlay.policy.form import EXEMPT_FORMATS, Want, choose_form

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
