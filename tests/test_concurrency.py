"""Many who ask for one image at once, from threads and from processes: one of them fetches, and all are served."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from children import Child, start, tell, told
from underlay.cache import Cache, Ensured
from underlay.contracts import ByteStream
from underlay.errors import DigestMismatch, SourceUnavailable
from underlay.model import Digest, Event, ImageVersion, Progress
from underlay.naming import CacheKind
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.sources.http import HttpSource
from underlay.store import Store
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.testing.httpserver import Served, Server, serving

MIB = 1 << 20
BODY = os.urandom(6 * MIB)
PROCESSES, THREADS = 8, 4


def laid_out(root: Path, *, kind: CacheKind = CacheKind.BASE) -> Store:
    root.mkdir(exist_ok=True)
    return Store(root=root, kind=kind)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return laid_out(tmp_path / "base")


def ask(store: Store, url: str, *, revalidate_after: float = 300, observer: Recorder | None = None) -> Ensured:
    source = HttpSource(revalidate_after=revalidate_after)
    return Cache(name="base", store=store).ensure(parse_ref(url), source, observer or Recorder())


def image_files(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if path.name != ".underlay")


@contextmanager
def in_background(function: Callable[[], Ensured]) -> Iterator["Future[Ensured]"]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(function)


# ------------------------------------------------------------------------------------------------------------- all at one time


class TellsOnce(Recorder):
    """Tells the parent as soon as there is progress, one's own or another's."""

    def progress(self, progress: Progress) -> None:
        if not self.steps:
            tell("under way")
        super().progress(progress)


def ask_from_threads(root: str, kind: str, url: str, revalidate_after: str) -> None:
    """In a child: ask from several threads at once, and tell what each has got."""
    store = Store(root=Path(root), kind=CacheKind(kind))

    def one(_: int) -> str:
        answer = ask(store, url, revalidate_after=float(revalidate_after), observer=TellsOnce())
        return f"{answer.reason.code} {answer.image.name} {hashlib.sha256(answer.image.path.read_bytes()).hexdigest()}"

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(one, range(THREADS)))
    for answer in answers:
        tell(answer)


@pytest.mark.parametrize(
    ("kind", "revalidate_after", "etag"),
    [(CacheKind.BASE, 300, '"1"'), (CacheKind.BASE, 0, None), (CacheKind.MASTERS, 0, '"1"')],
)
def test_from_many_processes_and_threads_one_fetches_and_all_are_served(
    tmp_path: Path, kind: CacheKind, revalidate_after: int, etag: str | None
) -> None:
    store = laid_out(tmp_path / "cache", kind=kind)
    with serving({"/a.img": Served(BODY, etag=etag, stall_after=5 * MIB)}) as server, ExitStack() as stack:
        arguments = (store.root, kind, server.url("/a.img"), revalidate_after)
        children = [stack.enter_context(start(ask_from_threads, *arguments)) for _ in range(PROCESSES)]
        for child in children:  # nobody gets it before all have asked
            assert ["under way"] * THREADS == [child.hear() for _ in range(THREADS)]
        server.resume()
        answers = [child.hear().split() for child in children for _ in range(THREADS)]
        for child in children:
            child.end()
        assert 1 == server.bodies("/a.img")
        assert len(BODY) == server.sent("/a.img")
    (name,) = image_files(store)
    assert {(name, hashlib.sha256(BODY).hexdigest())} == {(found, sha256) for _, found, sha256 in answers}
    assert ["fetched"] + ["hit"] * (PROCESSES * THREADS - 1) == sorted(reason for reason, *_ in answers)
    assert [] == list(store.paths.tmp.iterdir())


def test_those_who_come_one_after_the_other_share_the_body_by_its_etag(store: Store) -> None:
    with serving({"/a.img": Served(BODY, etag='"1"')}) as server, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, store, server.url("/a.img"), revalidate_after=0) for _ in range(32)]
        assert 1 == len({future.result().image.path for future in futures})
        assert 1 == server.bodies("/a.img")


def test_one_image_does_not_wait_for_another(store: Store) -> None:
    with serving({"/slow": Served(BODY, stall_after=MIB), "/quick": Served(BODY)}) as server:
        with in_background(lambda: ask(store, server.url("/slow"))) as slow:
            server.wait_until_sent("/slow", MIB)
            assert "fetched" == ask(store, server.url("/quick")).reason.code
            assert not slow.done()
            server.resume()
            assert BODY == slow.result().image.path.read_bytes()


# ------------------------------------------------------------------------------------------------------- those who wait for one


class Halting(Recorder):
    """Halts the work at the first event of a code, tells the parent, and goes on when the parent says so."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self._code = code

    def event(self, event: Event) -> None:
        super().event(event)
        if event.code == self._code and self.codes.count(self._code) == 1:
            tell(self._code)
            told()


def fetch_and_halt(root: str, url: str, code: str) -> None:
    """In a child: fetch, and halt at an event on the way."""
    try:
        tell(ask(Store(root=Path(root), kind=CacheKind.BASE), url, observer=Halting(code)).reason.code)
    except SourceUnavailable as error:
        tell(error.code)


@contextmanager
def fetching_elsewhere(store: Store, server: Server, *, halt: str) -> Iterator[Child]:
    """Another process fetches and has come as far as the event ``halt``."""
    with start(fetch_and_halt, store.root, server.url("/a.img"), halt) as child:
        assert halt == child.hear()
        yield child


def waiting(store: Store, server: Server, observer: Recorder) -> Ensured:
    return ask(store, server.url("/a.img"), observer=observer)


def test_who_waits_sees_how_far_the_other_has_come_and_gets_its_image(store: Store) -> None:
    observer = Recorder()
    with serving({"/a.img": Served(BODY, etag='"1"', rate=3 * MIB)}) as server:
        with fetching_elsewhere(store, server, halt="fetching") as child:
            with in_background(lambda: waiting(store, server, observer)) as answer:
                observer.wait_for_progress("wait")
                child.say()
                assert "hit" == answer.result().reason.code
            assert "fetched" == child.hear()
            child.end()
        assert 1 == server.bodies("/a.img")
        assert 1 == server.count("HEAD", "/a.img")
    done = [step.done for step in observer.steps if step.stage == "fetch"]
    assert len(set(done)) >= 2
    assert done == sorted(done)
    assert {(server.url("/a.img"), len(BODY))} == {(step.ref, step.total) for step in observer.steps if step.stage == "fetch"}


def test_when_the_one_who_fetches_fails_one_who_waits_takes_over(store: Store) -> None:
    good, bad = Served(BODY, etag='"1"'), Served(status=503)
    observers = [Recorder() for _ in range(4)]
    with serving({"/a.img": [good, bad, good]}) as server, ThreadPoolExecutor(4) as pool:
        with fetching_elsewhere(store, server, halt="fetching") as child:
            answers = [pool.submit(waiting, store, server, observer) for observer in observers]
            for observer in observers:
                observer.wait_for_progress("wait")
            child.say()
            assert "source-unavailable" == child.hear()
            child.end()
        reasons = sorted(answer.result().reason.code for answer in answers)
        assert ["fetched", "hit", "hit", "hit"] == reasons
        assert 1 == server.bodies("/a.img")
        assert 2 == server.count("GET", "/a.img")


@pytest.mark.parametrize("halt", ["staged", "reserved", "fetching", "received", "verified", "remembered", "published"])
def test_when_the_one_who_fetches_is_killed_one_who_waits_takes_over(store: Store, halt: str) -> None:
    observers = [Recorder() for _ in range(4)]
    with serving({"/a.img": Served(BODY, etag='"1"')}) as server, ThreadPoolExecutor(4) as pool:
        with fetching_elsewhere(store, server, halt=halt) as child:
            answers = [pool.submit(waiting, store, server, observer) for observer in observers]
            for observer in observers:
                observer.wait_for_event("hit") if halt == "published" else wait_for_any_progress(observer)
            child.kill()
        assert {BODY} == {answer.result().image.path.read_bytes() for answer in answers}
        assert server.bodies("/a.img") <= 2
        assert "hit" == ask(store, server.url("/a.img")).reason.code
    assert 1 == len(image_files(store))
    assert [] == list(store.paths.tmp.iterdir())


def wait_for_any_progress(observer: Recorder) -> None:
    deadline = time.monotonic() + 60
    while not observer.steps:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_is_killed_in_the_middle_of_a_body_is_taken_over_from(store: Store) -> None:
    observer = Recorder()
    with serving({"/a.img": Served(BODY, etag='"1"', stall_after=3 * MIB)}) as server:
        with start(fetch_and_halt, store.root, server.url("/a.img"), "received") as child:
            server.wait_until_sent("/a.img", 3 * MIB)
            with in_background(lambda: waiting(store, server, observer)) as answer:
                observer.wait_for_progress("fetch")
                server.serve("/a.img", Served(BODY, etag='"1"'))
                child.kill()
                assert ("fetched", BODY) == (answer.result().reason.code, answer.result().image.path.read_bytes())
    assert [] == list(store.paths.tmp.iterdir())


# ------------------------------------------------------------------------------------------------------- those who want another


def test_who_waits_with_another_checksum_is_not_given_the_others_image(store: Store) -> None:
    source = FakeSource({"fake:image": FakeImage(BODY, piece=MIB, delay=0.05)}, revalidate_after=300)
    cache, ref, observer = Cache(name="base", store=store), parse_ref("fake:image"), Recorder()
    wrong = Digest("sha256", hashlib.sha256(b"other").hexdigest())
    with in_background(lambda: cache.ensure(ref, source, observer)) as first:
        observer.wait_for_progress("fetch")
        with pytest.raises(DigestMismatch):
            cache.ensure(ref, source, Recorder(), want=Want(checksum=wrong))
        assert "fetched" == first.result().reason.code
    assert 1 == source.opened("fake:image")


class FailsOnce(FakeSource):
    """A source whose first transfer fails."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[ByteStream]:  # type: ignore[override]
        with super().open(version, offset=offset) as stream:
            if self.opened(version.ref.canonical) == 1:
                raise SourceUnavailable("the line is dead")
            yield stream


def test_of_many_threads_only_the_one_whose_transfer_fails_fails(store: Store) -> None:
    source = FailsOnce({"fake:image": FakeImage(BODY, delay=0.1, piece=2 * MIB)}, revalidate_after=300)
    cache, ref = Cache(name="base", store=store), parse_ref("fake:image")
    barrier = threading.Barrier(8)

    def one(_: int) -> str:
        barrier.wait()
        try:
            return cache.ensure(ref, source, Recorder()).reason.code
        except SourceUnavailable as error:
            return error.code

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(one, range(8)))
    assert ["fetched", *["hit"] * 6, "source-unavailable"] == outcomes
    assert 2 == source.opened("fake:image")
