"""Cases about what a source says of a ref, without any of its bytes."""

import hashlib
from random import Random

from underlay.refs import parse_ref
from underlay.testing.source_suite.case import Case, case, described, expect, expect_equal, expect_kept, sha256
from underlay.testing.source_suite.stage import Away, Empty, Replaced, Stage

_CONTENT = Random(1).randbytes(100_003)
_OTHER = Random(2).randbytes(100_003)


@case()
def the_ref_is_of_a_scheme_that_the_source_serves(stage: Stage) -> None:
    schemes = stage.source.schemes
    expect(parse_ref(stage.put(_CONTENT)).scheme in schemes, f"its ref is of none of the schemes {sorted(schemes)}")
    expect(all(scheme == scheme.lower() for scheme in schemes), "schemes are in lower case")


@case()
def a_description_tells_the_size_and_only_digests_that_are_right(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    version = described(stage, ref)
    expect_equal(parse_ref(ref), version.ref, "the described ref")
    expect(version.size in (None, len(_CONTENT)), f"the size is {version.size}, not {len(_CONTENT)}")
    for digest in version.digests:
        expect_equal(hashlib.new(digest.algorithm, _CONTENT).hexdigest(), digest.hex, f"the {digest.algorithm} digest")


@case(Empty)
def an_image_of_no_bytes_is_described(stage: Stage) -> None:
    version = described(stage, stage.put(b""))
    expect(version.size in (None, 0), f"the size is {version.size}, not 0")


@case()
def two_descriptions_of_the_same_are_the_same(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    first, second = described(stage, ref), described(stage, ref)
    for what in ("id", "size", "disk_format", "digests", "validator", "min_disk", "no_store", "properties"):
        expect_equal(getattr(first, what), getattr(second, what), f"the second description's {what}")


@case()
def a_known_validator_is_told_again_and_an_unknown_one_never(stage: Stage) -> None:
    ref = parse_ref(stage.put(_CONTENT))
    now = stage.source.describe(ref).validator
    for known in (("",), ("nonsense",), ('etag:"never"', "modified:never", "stat:0:0:0:0:0")):
        expect_equal(now, stage.source.describe(ref, known=known).validator, f"the validator although {known} is known")
    if now is not None:
        expect_equal(now, stage.source.describe(ref, known=("older", now)).validator, "the validator that is known")


@case(Replaced)
def other_content_has_another_validator(stage: Stage) -> None:
    text = stage.put(_CONTENT)
    ref, before = parse_ref(text), described(stage, text)
    with stage.trouble(text, Replaced(_OTHER)):
        known = () if before.validator is None else (before.validator,)
        for after in (stage.source.describe(ref), stage.source.describe(ref, known=known)):
            same = before.validator is not None and before.validator == after.validator
            expect(not same, "content of the same length has the validator of what it replaced")
            expect(before.id is None or before.id != after.id, "other content has the id of what it replaced")
            expect(not set(before.digests) & set(after.digests), "other content has the digests of what it replaced")


@case()
def a_version_has_one_id_and_other_content_another(stage: Stage) -> None:
    source, ref = stage.source, parse_ref(stage.put(_CONTENT))
    fixed, version = source.fixed_id(ref), source.describe(ref)
    ids = [source.version_id(ref, sha256(_CONTENT)) for _ in range(2)]
    expect_equal(ids[0], ids[1], "the id of the same version")
    # An id of the place's own making, such as a manifest's digest, cannot be told from the content unless the ref has it.
    if fixed is None:
        expect(version.id is not None or ids[0] != source.version_id(ref, sha256(_OTHER)), "other content has the same id")
    else:
        expect_equal((fixed, fixed), (ids[0], version.id or fixed), "the id, of a ref that fixes it")
    expect(source.fixed_id(ref) == fixed, "the ref fixes another id the second time")


@case(Away)
def an_id_is_told_without_asking_anybody(stage: Stage) -> None:
    source, text = stage.source, stage.put(_CONTENT)
    ref = parse_ref(text)
    fixed, by_content = source.fixed_id(ref), source.version_id(ref, sha256(_CONTENT))
    with stage.trouble(text, Away()):
        expect_equal(fixed, source.fixed_id(ref), "the fixed id while the place is away")
        expect_equal(by_content, source.version_id(ref, sha256(_CONTENT)), "the id while the place is away")


@case()
def what_a_description_shows_tells_no_secret(stage: Stage) -> None:
    source, ref = stage.source, parse_ref(stage.put(_CONTENT))
    version = source.describe(ref)
    expect_kept(stage, [str(ref), repr(ref)], "the ref")
    expect_kept(stage, [repr(version), version.validator or "", version.id or "", *version.properties.values()], "the version")
    expect_kept(stage, [source.version_id(ref, sha256(_CONTENT)), source.fixed_id(ref) or ""], "the version's id")
    expect_kept(stage, [repr(source), str(source)], "the source itself")


CASES: tuple[Case, ...] = (
    the_ref_is_of_a_scheme_that_the_source_serves,
    a_description_tells_the_size_and_only_digests_that_are_right,
    an_image_of_no_bytes_is_described,
    two_descriptions_of_the_same_are_the_same,
    a_known_validator_is_told_again_and_an_unknown_one_never,
    other_content_has_another_validator,
    a_version_has_one_id_and_other_content_another,
    an_id_is_told_without_asking_anybody,
    what_a_description_shows_tells_no_secret,
)
