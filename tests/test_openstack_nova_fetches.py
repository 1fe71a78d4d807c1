"""Nova's fetch functions over our sources, where no Nova is: a file at a path, or an image in the cache.

Beside the real Nova: tests/components/nova/test_image_backends.py.
"""

import gzip
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import corpus
from children import start
from machine import MIB, Machine
from underlay.errors import (
    CacheMissing,
    ImageNotFound,
    InvalidRef,
    SourceUnavailable,
    UnderlayError,
    UnsafeImage,
    VirtualSizeRefused,
)
from underlay.openstack.nova import Backend, fetch, fetch_raw_image, fetch_to_raw
from underlay.testing.httpserver import Served, Server, serving

pytestmark = pytest.mark.component("qemu-img")

NAME = "e" * 40
INSTANCE = SimpleNamespace(uuid="7a3f1d4e-0001-4c1c-9e50-1d2f00000002")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as one:
        yield one


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A host whose configuration the functions find."""
    made = Machine.make(tmp_path, options="force_raw_images = true", extra='[transfer]\nfirst_wait = "0.01s"\nattempts = 2')
    monkeypatch.setenv("UNDERLAY_CONFIG", os.fspath(made.config))
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to/image"


def served(server: Server, content: bytes, path: str = "/image") -> str:
    server.serve(path, Served(content))
    return server.url(path)


def test_a_kernel_arrives_byte_for_byte(machine: Machine, server: Server, target: Path) -> None:
    content = gzip.compress(corpus.noise(MIB))
    fetch(None, served(server, content), os.fspath(target))
    assert (content, ["image"]) == (target.read_bytes(), os.listdir(target.parent))
    other = target.with_name("other")
    fetch_raw_image(None, os.fspath(other), served(server, content))
    assert content == other.read_bytes()


def test_a_disk_s_image_is_inspected_and_made_raw(machine: Machine, server: Server, tmp_path: Path, target: Path) -> None:
    image = corpus.small(tmp_path / "image.qcow2", "qcow2")
    fetch_to_raw(None, served(server, image.read_bytes()), os.fspath(target))
    assert corpus.to_raw(image, tmp_path / "raw", "qcow2").read_bytes() == target.read_bytes()
    assert (["image"], 1) == (os.listdir(target.parent), target.stat().st_nlink)


def test_without_force_raw_images_an_image_stays_as_it_is(
    machine: Machine, server: Server, tmp_path: Path, target: Path
) -> None:
    machine.config.write_text(machine.config.read_text().replace("force_raw_images = true", "force_raw_images = false"))
    content = corpus.small(tmp_path / "image.qcow2", "qcow2").read_bytes()
    fetch_to_raw(None, served(server, content), os.fspath(target))
    assert content == target.read_bytes()


def test_what_was_at_the_path_is_replaced_in_one_step(machine: Machine, server: Server, target: Path) -> None:
    target.write_bytes(b"before")
    url = served(server, b"r" * MIB)
    fetch_to_raw(None, url, os.fspath(target))
    assert b"r" * MIB == target.read_bytes()
    server.withdraw("/image")
    with pytest.raises(ImageNotFound):
        fetch_to_raw(None, url, os.fspath(target))
    assert (b"r" * MIB, ["image"]) == (target.read_bytes(), os.listdir(target.parent))


@pytest.mark.parametrize("kind", ["unsafe", "cut", "absent"])
def test_a_fetch_that_fails_leaves_nothing(machine: Machine, server: Server, tmp_path: Path, target: Path, kind: str) -> None:
    secret = corpus.raw(tmp_path / "secret", MIB)
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", tmp_path / "lying", "1M")
    server.serve("/unsafe", Served((tmp_path / "lying").read_bytes()))
    server.serve("/cut", Served(bytes(MIB), cut_after=1000, ranges=False))
    expected: dict[str, type[UnderlayError]] = {"unsafe": UnsafeImage, "cut": UnderlayError, "absent": ImageNotFound}
    for path in (target, machine.base / NAME):
        with pytest.raises(expected[kind]):
            fetch_to_raw(None, server.url(f"/{kind}"), os.fspath(path))
        assert [] == [name for name in os.listdir(path.parent) if name != ".underlay"]
    assert [] == os.listdir(machine.base / ".underlay/tmp")


def test_an_image_above_the_cache_s_limit_is_refused_elsewhere_too(
    machine: Machine, server: Server, tmp_path: Path, target: Path
) -> None:
    text = machine.config.read_text()
    machine.config.write_text(text.replace("force_raw_images = true", 'force_raw_images = true\nvirtual_size_limit = "4MiB"'))
    huge = corpus.create(tmp_path / "huge", "qcow2", 64 * MIB)
    with pytest.raises(VirtualSizeRefused):
        fetch_to_raw(None, served(server, huge.read_bytes()), os.fspath(target))
    assert [] == os.listdir(target.parent)


def fetch_slowly(url: str, path: str) -> None:
    """In a process of its own."""
    fetch(None, url, path)


def test_a_fetch_that_is_killed_leaves_nothing_beside_its_path_and_what_it_leaves_is_swept(
    machine: Machine, server: Server, target: Path
) -> None:
    server.serve("/image", Served(b"i" * MIB, rate=MIB // 8))
    with start(fetch_slowly, server.url("/image"), os.fspath(target)) as child:
        end = time.monotonic() + 30
        while not list(machine.base.glob(".underlay/tmp/*/.underlay/tmp/*/download")) and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.process.wait(60)
    assert [] == os.listdir(target.parent)
    assert 1 == len(os.listdir(machine.base / ".underlay/tmp"))
    fetch(None, served(server, b"j" * MIB), os.fspath(target))
    assert (b"j" * MIB, []) == (target.read_bytes(), os.listdir(machine.base / ".underlay/tmp"))


@pytest.mark.parametrize("href", ["", "no ref", "nothing:x"])
def test_what_names_no_image_is_refused(machine: Machine, target: Path, href: str) -> None:
    with pytest.raises(UnderlayError) as refusal:
        fetch_to_raw(None, href, os.fspath(target))
    assert refusal.type.exit_code in (InvalidRef.exit_code, 11)
    assert [] == os.listdir(target.parent)


def test_nothing_is_fetched_to_where_no_directory_is(machine: Machine, server: Server, tmp_path: Path) -> None:
    with pytest.raises(CacheMissing):
        fetch(None, served(server, b"k" * 512), os.fspath(tmp_path / "nowhere/image"))
    assert 0 == server.bodies("/image")


def test_a_path_in_the_cache_is_an_image_that_is_fetched_once(machine: Machine, server: Server) -> None:
    server.serve("/image", Served(b"i" * MIB, rate=4 * MIB))
    path = os.fspath(machine.base / NAME)

    def one(number: int) -> None:
        if number % 2:
            fetch_to_raw(None, server.url("/image"), path)
        else:
            backend = Backend(use_cow=True).by_name(INSTANCE, f"disk.{number}")
            backend.cache(fetch_func=fetch_image, filename=NAME, context=None, image_id=server.url("/image"), size=2 * MIB)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    assert 1 == server.bodies("/image")
    assert ({".underlay", NAME}, b"i" * MIB) == (set(os.listdir(machine.base)), Path(path).read_bytes())
    fetch_to_raw(None, server.url("/gone"), path)  # it is here
    assert 1 == server.bodies("/image")


def fetch_image(context: object, target: str, image_id: str) -> None:
    """As in Nova's ``libvirt.utils``."""
    fetch_to_raw(context, image_id, target)


def test_a_silent_server_is_told_as_such(machine: Machine, target: Path) -> None:
    with pytest.raises(SourceUnavailable):
        fetch_to_raw(None, "http://127.0.0.1:9/image", os.fspath(target))
    assert [] == os.listdir(target.parent)
