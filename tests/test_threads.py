"""Who has reached a limit on threads is slow and does not fail."""

import hashlib
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

import corpus
from children import start, tell
from corpus import MIB
from storing import laid_out
from underlay.cache import Cache
from underlay.errors import SourceUnavailable, UnsafeImage
from underlay.openstack.piped import piped
from underlay.policy.form import Want
from underlay.refs import parse_ref
from underlay.scrub.pace import Pace
from underlay.scrub.reading import ImageReader, opened
from underlay.sources.http import HttpSource
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Served, serving
from underlay.threads import each, submit
from underlay.web import Web

A_USER = 80_000  # from here on, nobody has these numbers


def limited_to(threads: str) -> None:
    """In a child that is a user of its own: no more threads beside the first."""
    allowed = 1 + int(threads)
    resource.setrlimit(resource.RLIMIT_NPROC, (allowed, allowed))


def slowly(number: int) -> tuple[int, int]:
    time.sleep(0.05)  # so that each thread has begun before all is done
    return number, threading.get_ident()


def twenty_with(allowed: str) -> None:
    limited_to(allowed)
    done = each(slowly, range(20), threads=4)
    tell(f"{[number for number, _ in done] == list(range(20))} {len({thread for _, thread in done})}")


@pytest.mark.component("root")
@pytest.mark.parametrize(("allowed", "used"), [(0, 1), (1, 2), (4, 4)])
def test_all_is_done_once_and_in_order_with_what_threads_there_are(allowed: int, used: int) -> None:
    with start(twenty_with, allowed, user=A_USER + os.getpid()) as child:
        assert f"True {used}" == child.hear()


def counted(allowed: str) -> None:
    limited_to(allowed)
    done: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        for number in range(50):
            submit(pool, done.append, number)
    tell(f"{sorted(done) == list(range(50))}")


@pytest.mark.component("root")
@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_what_a_pool_could_not_begin_is_not_done_twice(allowed: int) -> None:
    with start(counted, allowed, user=A_USER + os.getpid()) as child:
        assert "True" == child.hear()


def test_what_work_raises_is_raised_where_it_is_waited_for() -> None:
    def refuse(number: int) -> int:
        if number == 2:
            raise UnsafeImage("it", rule="corrupt", why="as told")
        return number

    with ThreadPoolExecutor(1) as pool:
        answer = submit(pool, refuse, 2)
        with pytest.raises(UnsafeImage):
            answer.result()
    with pytest.raises(UnsafeImage):
        each(refuse, range(4), threads=2)


def test_after_an_error_what_has_not_begun_never_does() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(0.02)

    with pytest.raises(KeyboardInterrupt):
        each(work, range(200), threads=1)
    assert len(begun) < 100


# ---------------------------------------------------------------------------------------------------------------------- a fetch


def fetch_with(allowed: str, url: str, root: str, parallel: str) -> None:
    limited_to(allowed)
    observer = Recorder()
    cache = Cache(name="base", store=laid_out(Path(root)))
    image = cache.ensure(parse_ref(url), HttpSource(web=Web(parallel=int(parallel))), observer, want=Want()).image
    assert image.record is not None
    with opened(image.path) as opened_image:
        reading = ImageReader(opened_image, Pace()).finish(lambda: True)
    assert reading is not None
    tell(f"{hashlib.sha256(image.path.read_bytes()).hexdigest()} {reading.stored == image.record.stored}")
    tell(" ".join(observer.codes))


@pytest.mark.component("root", "qemu-img")
@pytest.mark.parametrize(("allowed", "parallel"), [(0, 1), (2, 1), (3, 1), (0, 3), (1, 3), (9, 3)])
def test_an_image_is_fetched_converted_and_scrubbed_with_what_threads_there_are(
    tmp_path: Path, open_directory: Path, allowed: int, parallel: int
) -> None:
    disk = corpus.scattered(tmp_path / "disk", 24 * MIB)
    served = corpus.convert(disk, tmp_path / "image", "qcow2", compressed=True).read_bytes()
    user, root = A_USER + os.getpid(), open_directory / "base"
    root.mkdir()
    os.chown(root, user, user)
    with (
        serving({"/image": Served(served, etag='"1"')}) as server,
        start(fetch_with, allowed, server.url("/image"), root, parallel, user=user) as child,
    ):
        assert f"{hashlib.sha256(disk.read_bytes()).hexdigest()} True" == child.hear()
        codes = child.hear().split()
    assert "published" in codes
    assert (allowed < 3) == ("converted-later" in codes)


def piped_without_thread() -> None:
    limited_to("0")
    before = len(os.listdir("/proc/self/fd"))
    try:
        with piped(lambda file: None, nullcontext):
            tell("it was read")
    except SourceUnavailable as error:
        tell(f"{error} {len(os.listdir('/proc/self/fd')) - before}")


@pytest.mark.component("root")
def test_what_needs_a_thread_to_be_written_is_refused_without_one() -> None:
    with start(piped_without_thread, user=A_USER + os.getpid()) as child:
        assert "an image service cannot be read from: the machine has no thread left 0" == child.hear()
