"""In which form an image is kept: facts in, a decision with its reason out. No I/O."""

from underlay.contracts import BackendTraits
from underlay.model import Form, ImageFacts, Reason

# Kernels and ramdisks are files to hand to a hypervisor, never disks to convert.
EXEMPT_FORMATS = frozenset({"aki", "ari", "ami"})


def choose_form(facts: ImageFacts, *, label: str | None, force_raw: bool, traits: BackendTraits | None) -> tuple[Form, Reason]:
    """Whether an image is kept raw or as it was served, and why.

    Args:
        facts: what inspection found.
        label: the source's disk format.
        force_raw: the cache's ``force_raw_images``.
        traits: of the backend that the image is wanted for, or None when it is only fetched.
    """
    if label in EXEMPT_FORMATS:
        return Form.AS_SERVED, Reason("exempt", f"{label} images are kept as served")
    if facts.format == "raw":
        return Form.AS_SERVED, Reason("already-raw", f"the image is {facts.label}, which is raw to QEMU")
    if force_raw:
        return Form.RAW, Reason("force-raw", "the cache keeps raw images (force_raw_images)")
    if traits is not None and traits.needs_raw:
        return Form.RAW, Reason("backend-needs-raw", f"the {traits.name} backend reads raw images only")
    return Form.AS_SERVED, Reason("as-served", f"the cache keeps {facts.format} images as they are")
