"""One cache: what a hit costs, when a source is asked again, what is served when it is silent, and what is never served."""

import hashlib
import os
import subprocess
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from underlay.cache import Cache, Ensured
from underlay.contracts import ImageSource
from underlay.errors import (
    DigestMismatch,
    ImageConflict,
    ImageNotFound,
    NotAnImage,
    NotAuthorized,
    NotCached,
    SourceUnavailable,
    UnsafeImage,
)
from underlay.files import write_attribute
from underlay.model import Digest, Event, ImageRecord, Level
from underlay.naming import CacheKind
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store, images, refs
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.testing.httpserver import Served, serving
from underlay.values import replace

MIB = 1 << 20
REF = "fake:image"
DOWN = SourceUnavailable("the line is dead")

Mounted = Callable[..., Path]


def laid_out(root: Path, *, kind: CacheKind = CacheKind.BASE, force_raw: bool = True) -> Store:
    root.mkdir(exist_ok=True)
    store = Store(root=root, kind=kind, force_raw=force_raw)
    store.prepare()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "base")


@pytest.fixture
def masters(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "masters", kind=CacheKind.MASTERS, force_raw=False)


def ask(
    store: Store, source: ImageSource, *, ref: str = REF, checksum: Digest | None = None, observer: Recorder | None = None
) -> Ensured:
    return Cache(name="cache", store=store).ensure(parse_ref(ref), source, observer or Recorder(), want=Want(checksum=checksum))


def bytes_of(ensured: Ensured) -> bytes:
    return ensured.image.path.read_bytes()


def record_of(ensured: Ensured) -> ImageRecord:
    assert ensured.image.record is not None
    return ensured.image.record


def digest(algorithm: str, content: bytes) -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


def image_files(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if path.name != ".underlay")


def spoil(ensured: Ensured) -> None:
    """Change the image's bytes and nothing else: whoever reads it finds another digest."""
    with ensured.image.path.open("r+b") as file:
        file.write(b"spoilt")


def age(store: Store, ref: str, *, by: timedelta) -> None:
    """As if the source had last been asked that much earlier (or later, when it is negative)."""
    record = refs.recall(store, parse_ref(ref))
    assert record is not None
    refs.remember(store, parse_ref(ref), record.newest.id, validator=None, now=record.checked_at - by)


def qcow2(directory: Path, content: bytes) -> Path:
    (directory / "raw").write_bytes(content)
    argv: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", directory / "raw", directory / "image.qcow2"]
    subprocess.run(argv, check=True, capture_output=True)
    return directory / "image.qcow2"


# ------------------------------------------------------------------------------------------------------------- what a hit costs


def test_a_fresh_hit_costs_no_request_at_all(store: Store) -> None:
    with serving({"/a.img": Served(b"content", etag='"1"')}) as server:
        source, url = HttpSource(revalidate_after=300), server.url("/a.img")
        fetched = ask(store, source, ref=url)
        requests = len(server.requests)
        hit = ask(store, source, ref=url)
        assert requests == len(server.requests)
    assert ("fetched", "hit") == (fetched.reason.code, hit.reason.code)
    assert fetched.image.path == hit.image.path


def test_a_stale_hit_with_a_strong_etag_costs_a_head(store: Store) -> None:
    with serving({"/a.img": Served(b"content", etag='"1"')}) as server:
        source, url = HttpSource(revalidate_after=0), server.url("/a.img")
        ask(store, source, ref=url)
        for _ in range(3):
            assert "revalidated" == ask(store, source, ref=url).reason.code
        assert (4, 1) == (server.count("HEAD", "/a.img"), server.bodies("/a.img"))


def test_a_revalidated_image_is_fresh_again(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    ask(store, source)
    age(store, REF, by=timedelta(seconds=301))
    assert ["revalidated", "hit"] == [ask(store, source).reason.code for _ in range(2)]
    assert (2, 1) == (source.described(REF), source.opened(REF))


@pytest.mark.parametrize("etag", ['W/"1"', None])
def test_without_a_validator_a_stale_image_is_fetched_again_and_the_same_file_is_kept(store: Store, etag: str | None) -> None:
    with serving({"/a.img": Served(b"content", etag=etag)}) as server:
        source, url = HttpSource(revalidate_after=0), server.url("/a.img")
        first, second = (ask(store, source, ref=url) for _ in range(2))
        assert "fetched" == second.reason.code
        assert 2 == server.bodies("/a.img")
    assert first.image.path == second.image.path
    assert [first.image.name] == image_files(store)
    assert [] == list(store.paths.tmp.iterdir())


def test_without_a_validator_a_fresh_image_costs_nothing(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content", validator=None)}, revalidate_after=300)
    assert ["fetched", "hit"] == [ask(store, source).reason.code for _ in range(2)]
    assert 1 == source.described(REF)


def test_a_ref_that_fixes_its_version_is_never_described_again(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content", id="7")}, revalidate_after=0)
    assert ["fetched", "hit", "hit"] == [ask(store, source).reason.code for _ in range(3)]
    assert 1 == source.described(REF)


def test_a_time_to_come_is_not_believed(store: Store) -> None:
    """It was written before the clock was set back, and would stay fresh for who knows how long."""
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    ask(store, source)
    age(store, REF, by=-timedelta(hours=5))
    assert "revalidated" == ask(store, source).reason.code
    record = refs.recall(store, parse_ref(REF))
    assert record is not None
    assert record.checked_at <= datetime.now(UTC)


def test_a_hit_records_the_use(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    image = ask(store, source).image
    for path in (store.paths.used_marker(image.name), image.path):
        os.utime(path, (1, 1))
    ask(store, source)
    for path in (store.paths.used_marker(image.name), image.path):
        assert path.stat().st_mtime > 1


def test_an_image_that_was_evicted_is_fetched_again_though_its_ref_is_fresh(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    ask(store, source).image.path.unlink()
    assert b"content" == bytes_of(ask(store, source))
    assert 2 == source.opened(REF)


class Evicting(FakeSource):
    """A source in whose presence images vanish as soon as they are published."""

    def __init__(self, store: Store, *, times: int) -> None:
        super().__init__({REF: FakeImage(b"content")}, revalidate_after=300)
        self.store, self.times = store, times
        self.observer = _Evictor(self)

    def evict(self) -> None:
        if self.times > 0:
            self.times -= 1
            for name in image_files(self.store):
                (self.store.root / name).unlink()


class _Evictor(Recorder):
    def __init__(self, source: Evicting) -> None:
        super().__init__()
        self._source = source

    def event(self, event: Event) -> None:
        super().event(event)
        if event.code == "cleared":
            self._source.evict()


def test_an_image_that_vanishes_before_its_use_is_recorded_is_fetched_again(store: Store) -> None:
    source = Evicting(store, times=2)
    assert b"content" == bytes_of(ask(store, source, observer=source.observer))
    assert 3 == source.opened(REF)


def test_an_image_that_always_vanishes_is_given_up(store: Store) -> None:
    source = Evicting(store, times=100)
    with pytest.raises(NotCached, match=REF):
        ask(store, source, observer=source.observer)


# ----------------------------------------------------------------------------------------------------------------- new content


def test_new_content_gets_a_new_name_and_the_old_image_stays(store: Store) -> None:
    with serving({"/a.img": Served(b"old", etag='"1"')}) as server:
        source, url = HttpSource(revalidate_after=0), server.url("/a.img")
        old = ask(store, source, ref=url)
        server.serve("/a.img", Served(b"new", etag='"2"'))
        new = ask(store, source, ref=url)
        assert (b"old", b"new") == (bytes_of(old), bytes_of(new))
        assert sorted([old.image.name, new.image.name]) == image_files(store)
        server.serve("/a.img", Served(b"old", etag='"1"'))
        assert old.image.path == ask(store, source, ref=url).image.path
        assert 2 == server.bodies("/a.img")


def test_a_new_validator_of_the_same_content_is_learnt(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")})
    first = ask(store, source)
    source.put(REF, FakeImage(b"content"))
    assert ["fetched", "revalidated"] == [ask(store, source).reason.code for _ in range(2)]
    assert [first.image.name] == image_files(store)


def test_two_refs_of_the_same_content_are_two_images(store: Store) -> None:
    source = FakeSource({"fake:a": FakeImage(b"content"), "fake:b": FakeImage(b"content")})
    assert ask(store, source, ref="fake:a").image.name != ask(store, source, ref="fake:b").image.name


# ------------------------------------------------------------------------------------------------------------- a silent source


def test_a_verified_image_is_served_when_its_source_is_down_and_the_answer_says_so(store: Store) -> None:
    observer = Recorder()
    with serving({"/a.img": Served(b"content", etag='"1"')}) as server:
        source, url = HttpSource(revalidate_after=0), server.url("/a.img")
        ask(store, source, ref=url)
    answer = ask(store, source, ref=url, observer=observer)
    assert (b"content", "source-unavailable") == (bytes_of(answer), answer.reason.code)
    warnings = [event for event in observer.events if event.level is Level.WARNING]
    assert [("source-unavailable", url)] == [(event.code, event.fields["ref"]) for event in warnings]
    assert "Connection refused" in warnings[0].detail


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_source_that_cannot_serve_now_is_as_one_that_is_down(store: Store, status: int) -> None:
    with serving({"/a.img": Served(b"content", etag='"1"')}) as server:
        source, url = HttpSource(revalidate_after=0), server.url("/a.img")
        ask(store, source, ref=url)
        server.serve("/a.img", Served(status=status))
        assert "source-unavailable" == ask(store, source, ref=url).reason.code


@pytest.mark.parametrize(
    ("status", "error"), [(404, ImageNotFound), (410, ImageNotFound), (401, NotAuthorized), (403, NotAuthorized)]
)
def test_a_source_that_says_no_is_heard(store: Store, status: int, error: type[Exception]) -> None:
    with serving({"/a.img": Served(b"content", etag='"1"')}) as server:
        source, url = HttpSource(revalidate_after=0), server.url("/a.img")
        image = ask(store, source, ref=url).image
        server.serve("/a.img", Served(status=status))
        with pytest.raises(error):
            ask(store, source, ref=url)
    assert [image.name] == image_files(store)


@pytest.mark.parametrize("validator", [None, "changed"])
def test_a_source_that_describes_but_does_not_give_is_as_one_that_is_down(store: Store, validator: str | None) -> None:
    source = FakeSource({REF: FakeImage(b"old", validator=None)})
    ask(store, source)
    source.put(REF, FakeImage(b"new", validator=validator, open_error=DOWN))
    answer = ask(store, source)
    assert (b"old", "source-unavailable") == (bytes_of(answer), answer.reason.code)
    assert [] == list(store.paths.tmp.iterdir())


def test_without_a_verified_image_a_source_that_is_down_is_an_error(store: Store) -> None:
    with pytest.raises(SourceUnavailable, match="the line is dead"):
        ask(store, FakeSource({REF: FakeImage(describe_error=DOWN)}))


def test_the_newest_image_that_is_here_is_served_when_the_source_is_down(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"oldest")})
    ask(store, source)
    source.put(REF, FakeImage(b"older"))
    ask(store, source)
    source.put(REF, FakeImage(b"newest"))
    ask(store, source).image.path.unlink()
    source.put(REF, FakeImage(describe_error=DOWN))
    assert b"older" == bytes_of(ask(store, source))


def test_an_image_without_the_checksum_is_not_served_when_the_source_is_down(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")})
    ask(store, source)
    source.put(REF, FakeImage(describe_error=DOWN))
    assert "source-unavailable" == ask(store, source, checksum=digest("md5", b"content")).reason.code
    assert "hit" == ask(store, source, checksum=digest("sha256", b"content")).reason.code
    for algorithm in ("md5", "sha256"):
        with pytest.raises(SourceUnavailable):
            ask(store, source, checksum=digest(algorithm, b"other"))


def test_those_who_wait_while_another_asks_a_dead_source_do_not_ask_it_too(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")})
    ask(store, source)
    source.put(REF, FakeImage(describe_error=DOWN, delay=0.5))
    answers: list[Ensured] = []
    observers = [Recorder() for _ in range(6)]

    def wait(observer: Recorder) -> None:
        answers.append(ask(store, source, observer=observer))

    workers = [threading.Thread(target=wait, args=(observer,)) for observer in observers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ["source-unavailable"] * 6 == [answer.reason.code for answer in answers]
    assert 2 == source.described(REF)
    assert all(Level.WARNING in [event.level for event in observer.events] for observer in observers)


def test_who_comes_later_asks_a_dead_source_again(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"old")})
    ask(store, source)
    source.put(REF, FakeImage(describe_error=DOWN))
    ask(store, source)
    source.put(REF, FakeImage(b"new"))
    assert b"new" == bytes_of(ask(store, source))


# --------------------------------------------------------------------------------------------------------- a checksum on a hit


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_recorded_digest_is_compared_without_reading_the_image(store: Store, algorithm: str) -> None:
    source = FakeSource({REF: FakeImage(b"content" * 1000)}, revalidate_after=300)
    right = digest(algorithm, b"content" * 1000)
    spoil(ask(store, source, checksum=right))
    assert "hit" == ask(store, source, checksum=right).reason.code
    assert 1 == source.described(REF)


def test_a_sha256_finds_the_image_without_the_network_though_its_ref_is_stale(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=0)
    ask(store, source)
    source.put(REF, FakeImage(describe_error=DOWN))
    assert "hit" == ask(store, source, checksum=digest("sha256", b"content")).reason.code
    assert 1 == source.described(REF)


def test_a_sha256_finds_an_older_version_though_its_ref_means_a_newer_one(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"old")})
    ask(store, source)
    source.put(REF, FakeImage(b"new"))
    ask(store, source)
    assert b"old" == bytes_of(ask(store, source, checksum=digest("sha256", b"old")))
    assert 2 == source.described(REF)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_of_unchanged_content_is_a_mismatch_and_costs_a_description(store: Store, algorithm: str) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    image = ask(store, source).image
    with pytest.raises(DigestMismatch) as caught:
        ask(store, source, checksum=digest(algorithm, b"other"))
    assert str(digest(algorithm, b"content")) == caught.value.actual
    assert str(digest(algorithm, b"other")) == caught.value.expected
    assert (2, 1) == (source.described(REF), source.opened(REF))
    assert [image.name] == image_files(store)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_checksum_of_the_new_content_brings_it_though_the_ref_is_fresh(store: Store, algorithm: str) -> None:
    source = FakeSource({REF: FakeImage(b"old")}, revalidate_after=300)
    ask(store, source)
    source.put(REF, FakeImage(b"new"))
    answer = ask(store, source, checksum=digest(algorithm, b"new"))
    assert (b"new", "fetched") == (bytes_of(answer), answer.reason.code)
    assert 2 == len(image_files(store))


def test_an_unknown_algorithm_is_computed_from_stored_bytes_that_are_as_served_and_then_known(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content" * 1000)}, revalidate_after=300)
    ask(store, source)
    right = digest("md5", b"content" * 1000)
    answer = ask(store, source, checksum=right)
    assert "hit" == answer.reason.code
    spoil(answer)
    answer = ask(store, source, checksum=right)
    assert str(right) in record_of(answer).digests
    assert (1, 1) == (source.described(REF), source.opened(REF))


def test_a_wrong_digest_is_never_learnt(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")})
    ask(store, source)
    with pytest.raises(DigestMismatch):
        ask(store, source, checksum=digest("md5", b"other"))
    assert (str(digest("sha256", b"content")),) == record_of(ask(store, source)).digests


@pytest.mark.component("qemu-img")
def test_an_unknown_algorithm_of_a_converted_image_is_fetched_once_more_and_then_known(store: Store, tmp_path: Path) -> None:
    served = qcow2(tmp_path, os.urandom(MIB))
    source = FakeSource({REF: FakeImage(served)}, revalidate_after=300)
    right = digest("sha512", served.read_bytes())
    first = ask(store, source)
    inode = first.image.path.stat().st_ino
    again, free = (ask(store, source, checksum=right) for _ in range(2))
    assert ("fetched", "hit") == (again.reason.code, free.reason.code)
    assert (2, 2) == (source.described(REF), source.opened(REF))
    assert [first.image.name] == image_files(store)
    assert inode == free.image.path.stat().st_ino
    assert str(right) in record_of(free).digests
    assert [] == list(store.paths.tmp.iterdir())


@pytest.mark.component("qemu-img")
def test_a_wrong_checksum_of_a_converted_image_is_a_mismatch_whether_its_algorithm_is_known_or_not(
    store: Store, tmp_path: Path
) -> None:
    source = FakeSource({REF: FakeImage(qcow2(tmp_path, os.urandom(MIB)))}, revalidate_after=300)
    image = ask(store, source).image
    for algorithm in ("sha256", "sha512"):
        with pytest.raises(DigestMismatch):
            ask(store, source, checksum=digest(algorithm, b"other"))
    assert "hit" == ask(store, source).reason.code
    assert [image.name] == image_files(store)


# ------------------------------------------------------------------------------------------------------------- without records


@pytest.fixture
def unrecording(mounted: Mounted) -> Store:
    """A cache on a file system that keeps no user attributes."""
    return laid_out(mounted("ramfs"))


@pytest.mark.component("root", "ramfs", "qemu-img")
def test_an_unrecorded_image_is_found_by_its_name(unrecording: Store, tmp_path: Path) -> None:
    with serving({"/a.img": Served(qcow2(tmp_path, os.urandom(MIB)), etag='"1"')}) as server:
        url = server.url("/a.img")
        answers = [ask(unrecording, HttpSource(revalidate_after=after), ref=url) for after in (0, 300, 0)]
        assert ["fetched", "hit", "revalidated"] == [answer.reason.code for answer in answers]
        assert 1 == server.bodies("/a.img")
    assert answers[0].image.record is None


@pytest.mark.component("root", "ramfs", "qemu-img")
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_right_checksum_of_an_unrecorded_converted_image_is_never_called_wrong(
    unrecording: Store, tmp_path: Path, algorithm: str
) -> None:
    """What was served cannot be told from what is stored, and a name is no proof."""
    served = qcow2(tmp_path, os.urandom(MIB))
    source = FakeSource({REF: FakeImage(served)}, revalidate_after=300)
    image = ask(unrecording, source).image
    again = ask(unrecording, source, checksum=digest(algorithm, served.read_bytes()))
    assert ("fetched", image.path) == (again.reason.code, again.image.path)
    with pytest.raises(DigestMismatch):
        ask(unrecording, source, checksum=digest(algorithm, b"other"))
    assert [image.name] == image_files(unrecording)


@pytest.mark.component("root", "ramfs")
def test_a_digest_of_an_unrecorded_image_is_computed_by_reading_it(unrecording: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content" * 1000)}, revalidate_after=300)
    ask(unrecording, source)
    for algorithm in ("md5", "sha256"):
        assert "hit" == ask(unrecording, source, checksum=digest(algorithm, b"content" * 1000)).reason.code


# --------------------------------------------------------------------------------------------------------------- crafted names


def test_an_image_under_the_name_of_another_version_is_never_served(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content"), "fake:other": FakeImage(b"planted")}, revalidate_after=300)
    path = ask(store, source).image.path
    path.unlink()
    ask(store, source, ref="fake:other").image.path.rename(path)
    for checksum in (None, digest("sha256", b"content"), digest("md5", b"content")):
        with pytest.raises(ImageConflict, match=path.name):
            ask(store, source, checksum=checksum)
    assert b"planted" == path.read_bytes()
    source.put(REF, FakeImage(describe_error=DOWN))
    age(store, REF, by=timedelta(hours=1))
    with pytest.raises(SourceUnavailable):
        ask(store, source)


def test_a_record_that_claims_the_version_but_not_its_size_is_refused(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    path = ask(store, source).image.path
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UnsafeImage, match="rule changed"):
        ask(store, source)


@pytest.mark.parametrize("what", ["symlink", "directory", "fifo"])
def test_what_is_no_plain_file_in_an_images_place_is_refused(store: Store, tmp_path: Path, what: str) -> None:
    source = FakeSource({REF: FakeImage(b"content")})
    path = ask(store, source).image.path
    path.replace(tmp_path / "moved")
    if what == "symlink":
        path.symlink_to(tmp_path / "moved")
    elif what == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(NotAnImage, match="is not a plain file"):
        ask(store, source)
    assert [path.name] == image_files(store)


# --------------------------------------------------------------------------------------------------------------------- masters


def test_a_master_is_named_by_the_uuid_of_its_ref(masters: Store) -> None:
    with serving({"/a.img": Served(b"content", etag='"1"')}) as server:
        url = server.url("/a.img")
        answer = ask(masters, HttpSource(), ref=f"{url}?X-Amz-Signature=1")
    assert str(uuid.uuid5(uuid.NAMESPACE_URL, url)) == answer.image.name


def test_a_glance_master_is_named_by_its_uuid(masters: Store) -> None:
    """The name is the image service's own, so that a conductor finds the same file."""
    image_id = "155d900f-4e14-4e4c-a73d-069cbf4541e6"

    class Glance(FakeSource):
        schemes = frozenset({"glance"})

    source = Glance({image_id: FakeImage(b"content", id=image_id)})
    assert image_id == ask(masters, source, ref=image_id).image.name
    assert "hit" == ask(masters, source, ref=image_id).reason.code


def test_a_masters_mtime_is_recorded_and_no_hit_changes_it(masters: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    first = ask(masters, source)
    published = first.image.path.stat().st_mtime_ns
    assert record_of(first).mtime_ns == published
    for checksum in (None, digest("sha256", b"content"), digest("md5", b"content")):
        ask(masters, source, checksum=checksum)
    assert published == first.image.path.stat().st_mtime_ns
    assert masters.paths.used_marker(first.image.name).stat().st_mtime_ns >= published


def test_new_content_of_a_master_gets_a_new_inode_and_hard_links_keep_the_old_bytes(masters: Store, tmp_path: Path) -> None:
    source = FakeSource({REF: FakeImage(b"old")})
    old = ask(masters, source)
    delivered = tmp_path / "delivered"
    os.link(old.image.path, delivered)
    source.put(REF, FakeImage(b"new"))
    new = ask(masters, source)
    assert old.image.path == new.image.path
    assert (b"new", b"old") == (bytes_of(new), delivered.read_bytes())
    assert new.image.path.stat().st_ino != delivered.stat().st_ino
    assert record_of(new).version_id != record_of(old).version_id
    assert [new.image.name] == image_files(masters)


def test_the_same_content_of_a_master_keeps_its_inode(masters: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")})
    inode = ask(masters, source).image.path.stat().st_ino
    source.put(REF, FakeImage(b"content"))
    again = ask(masters, source)
    assert ("fetched", inode) == (again.reason.code, again.image.path.stat().st_ino)


def test_a_masters_old_version_is_not_served_for_its_new_name(masters: Store) -> None:
    source = FakeSource({REF: FakeImage(b"old")}, revalidate_after=300)
    ask(masters, source)
    source.put(REF, FakeImage(b"new"))
    assert b"new" == bytes_of(ask(masters, source, checksum=digest("sha256", b"new")))
    with pytest.raises(DigestMismatch):
        ask(masters, source, checksum=digest("sha256", b"old"))


def test_a_digest_is_never_learnt_by_another_version_of_a_master(masters: Store) -> None:
    source = FakeSource({REF: FakeImage(b"old")})
    old = ask(masters, source)
    source.put(REF, FakeImage(b"new"))
    new = ask(masters, source)
    images.learn_digest(masters, old.image.name, digest("md5", b"old"), version_id=record_of(old).version_id)
    assert record_of(new).digests == record_of(ask(masters, source)).digests


def test_a_master_whose_record_was_lost_is_fetched_again(masters: Store) -> None:
    """Its name tells the ref, not the version."""
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    os.removexattr(ask(masters, source).image.path, "user.underlay")
    assert "fetched" == ask(masters, source).reason.code


def test_a_master_that_another_version_replaces_before_its_use_is_recorded_is_looked_for_again(masters: Store) -> None:
    """Its name stays and its bytes are others: the answer must not describe the one and name the other."""
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)

    class Replacing(Recorder):
        def event(self, event: Event) -> None:
            if event.code == "cleared" and event.code not in self.codes:
                replace_master(masters, b"another")
            super().event(event)

    answer = ask(masters, source, observer=Replacing())
    assert b"content" == bytes_of(answer)
    assert [answer.image.name] == image_files(masters)
    assert 2 == source.opened(REF)


def replace_master(store: Store, content: bytes) -> None:
    """Put another version in the place of the only master, as another ingest would."""
    (name,) = image_files(store)
    image = images.find(store, name)
    assert image is not None
    assert image.record is not None
    staged = store.paths.tmp / "staged"
    staged.write_bytes(content)
    record = replace(image.record, version_id="another", size=len(content), stored=str(digest("sha256", content)))
    images.publish_over(store, staged, name, record)


def test_a_record_of_a_later_layout_makes_an_image_unrecorded_and_not_wrong(store: Store) -> None:
    source = FakeSource({REF: FakeImage(b"content")}, revalidate_after=300)
    path = ask(store, source).image.path
    with path.open("rb") as file:
        write_attribute(file.fileno(), b'{"layout": 2}')
    answer = ask(store, source)
    assert ("hit", None) == (answer.reason.code, answer.image.record)
