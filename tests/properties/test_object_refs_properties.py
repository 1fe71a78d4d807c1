"""Refs to objects: every key that is accepted has one spelling, and is to the library the very key that was meant."""

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import example, given, reject, strategies as st

from underlay.errors import InvalidRef
from underlay.refs import object_name, parse_ref

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(KEYS)
@example("a//b")
@example("a/../b")
@example("a%2Fb")
@example("a?versionId=1#2")
def test_a_quoted_key_is_read_as_it_was_or_refused(key: str) -> None:
    try:
        ref = parse_ref(f"s3://bucket/{quote(key)}")
    except InvalidRef:
        reject()
    assert key == object_name(ref).key
    assert ref == parse_ref(ref.canonical)


@given(KEYS | st.text().map(lambda rest: f"key?{rest}"), st.sampled_from(["s3", "gs", "az"]))
@example("key?versionId=%00", "s3")
@example("key?versionId=\udcff", "s3")
def test_any_text_after_a_bucket_is_an_object_or_refused(text: str, scheme: str) -> None:
    with suppress(InvalidRef):
        ref = parse_ref(f"{scheme}://bucket/{text}")
        assert ref == parse_ref(ref.canonical)
        assert ref.canonical.isascii()


@given(KEYS)
@example("ü~(1)*'!$/%20+")
def test_a_key_that_is_accepted_is_the_key_to_the_library(key: str) -> None:
    obstore = pytest.importorskip("obstore")
    try:
        name = object_name(parse_ref(f"s3://bucket/{quote(key)}"))
    except InvalidRef:
        reject()
    bucket = obstore.store.MemoryStore()
    obstore.put(bucket, name.key, b"content")
    assert [key] == [found["path"] for page in obstore.list(bucket) for found in page]
