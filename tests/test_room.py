"""Room that a fetch or a delivery makes by itself: enough and no more, never of what it asks for, and never in vain."""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from aging import HOUR, aged, original
from children import start, tell, told
from machine import MIB, Ended, command_line, run
from test_scrub import flip
from underlay.errors import InsufficientSpace
from underlay.filesystems import free_bytes
from underlay.host import Host
from underlay.model import Event
from underlay.testing.bootimage import write_qcow2
from underlay.testing.fakes import Recorder
from underlay.testing.httpserver import Served, Server, serving

pytestmark = pytest.mark.component("root", "tmpfs", "ext4", "leases")

Mounted = Callable[..., Path]
SIZE = 8 * MIB
SPARE = MIB  # more than our own small files take


class Place:
    """A small file system with two caches of masters and a base cache, and images that are served."""

    def __init__(self, tmp_path: Path, where: Path, server: Server) -> None:
        self.where, self.server, self.config = where, server, tmp_path / "underlay.toml"
        self.first, self.second, self.base = (where / name for name in ("first", "second", "base"))
        self.node = where / "node"
        for path in (self.first, self.second, self.base, self.node, tmp_path / "instances"):
            path.mkdir()
        self.config.write_text(
            f'[instances]\npath = "{tmp_path}/instances"\n'
            f'[caches.first]\nkind = "masters"\npath = "{self.first}"\npriority = 50\n'
            f'[caches.second]\nkind = "masters"\npath = "{self.second}"\npriority = 75\n'
            f'[caches.base]\nkind = "base"\npath = "{self.base}"\nforce_raw_images = false\n',
            encoding="utf-8",
        )
        self.host = Host.open(self.config)
        for store in self.host.config.caches.values():
            store.prepare()

    def url(self, name: str, *, size: int = SIZE) -> str:
        """An image that cannot be made smaller."""
        self.server.serve(f"/{name}", Served(os.urandom(size), etag=f'"{name}"'))
        return self.server.url(f"/{name}")

    def put(self, cache: Path, *, age: float, size: int = SIZE) -> Path:
        """A file that nobody needs, last used so long ago."""
        path = cache / (original(f"{age}") if cache == self.base else str(uuid.uuid4()))
        path.write_bytes(os.urandom(size))
        return aged(path, age)

    def leave(self, size: int) -> None:
        """Fill the file system with what is nobody's, but for so many bytes."""
        os.sync()
        with (self.where / "foreign").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free_bytes(self.where) - size)
        # What the file system takes to keep track of it is not known before.
        while (missing := size - free_bytes(self.where)) > 0:
            os.truncate(self.where / "foreign", os.stat(self.where / "foreign").st_size - missing - 4096)

    def age(self, path: Path) -> None:
        """As if a master had last been used two hours ago; its own time is that of its publication."""
        aged(path.parent / ".underlay/used" / path.name, 2 * HOUR)

    def images(self) -> set[Path]:
        caches = (self.first, self.second, self.base)
        return {path for cache in caches for path in cache.iterdir() if path.name != ".underlay"}


@pytest.fixture(params=["ext4", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path, mounted: Mounted) -> Iterator[Place]:
    with serving({}) as server:
        yield Place(tmp_path, mounted(request.param, 64 * MIB), server)


def test_a_fetch_that_finds_no_room_makes_it_of_what_nobody_needs_and_of_no_more(place: Place) -> None:
    older, newer = place.put(place.first, age=9 * HOUR), place.put(place.first, age=2 * HOUR)
    place.leave(3 * MIB)
    image = place.host.fetch(place.url("a"), cache="first").image
    assert {newer, image.path} == place.images()
    assert not older.exists()


def test_the_caches_of_the_file_system_give_by_their_priority_whichever_is_asked(place: Place) -> None:
    first, second = place.put(place.first, age=9 * HOUR), place.put(place.second, age=2 * HOUR)
    place.leave(3 * MIB)
    image = place.host.fetch(place.url("a"), cache="first").image
    assert {first, image.path} == place.images()
    assert not second.exists()


def test_a_base_cache_gives_too_what_has_passed_its_minimum_age(place: Place) -> None:
    young, old = place.put(place.base, age=2 * HOUR), place.put(place.base, age=99 * HOUR)
    place.leave(3 * MIB)
    image = place.host.fetch(place.url("a"), cache="first").image
    assert {young, image.path} == place.images()
    assert not old.exists()


def test_a_delivery_makes_room_as_a_fetch_does(place: Place) -> None:
    old = place.put(place.second, age=9 * HOUR)
    place.leave(3 * MIB)
    delivered = place.host.deliver(place.url("a"), place.node / "disk")
    assert "linked" == delivered.reason.code
    assert SIZE == (place.node / "disk").stat().st_size
    assert not old.exists()


def test_an_image_of_unknown_length_has_its_room_made_too(place: Place) -> None:
    old = place.put(place.first, age=9 * HOUR)
    place.leave(3 * MIB)
    place.server.serve("/a", Served(os.urandom(SIZE), etag='"a"', chunked=True))
    image = place.host.fetch(place.server.url("/a"), cache="first").image
    assert {image.path} == place.images()
    assert (SIZE, False) == (image.size, old.exists())


def test_what_cannot_be_had_is_told_by_cache_and_nothing_is_removed(place: Place) -> None:
    given = {place.put(place.first, age=9 * HOUR, size=2 * MIB), place.put(place.second, age=9 * HOUR, size=MIB)}
    place.leave(3 * MIB)
    with pytest.raises(InsufficientSpace) as caught:
        place.host.deliver(place.url("a"), place.node / "disk")
    error = caught.value
    assert error.needed is not None
    assert SIZE <= error.needed < SIZE + SPARE
    assert 2 * MIB < error.free < 3 * MIB + SPARE
    assert {str(place.first): 2 * MIB, str(place.second): MIB, str(place.base): 0} == error.reclaimable
    for number in (error.needed, error.free, 2 * MIB, MIB):
        assert f" {number} bytes" in error.message
    assert given == place.images()
    assert [] == os.listdir(place.node)
    assert 0 == place.server.bodies("/a")


def test_what_somebody_needs_or_used_just_now_is_never_given(place: Place) -> None:
    linked, pinned, recent = (place.put(place.first, age=age) for age in (9 * HOUR, 8 * HOUR, 60))
    (place.node / "linked").hardlink_to(linked)
    place.host.pin(pinned.name, holder="test")
    place.leave(3 * MIB)
    with pytest.raises(InsufficientSpace) as caught:
        place.host.fetch(place.url("a"), cache="first")
    assert {0} == set(caught.value.reclaimable.values())
    assert {linked, pinned, recent} == place.images()


def test_a_hit_needs_no_room_and_removes_nothing(place: Place) -> None:
    """With Ironic, the very master that would have been the hit goes, and the deployment fails."""
    url = place.url("a")
    image = place.host.fetch(url, cache="first").image
    place.age(image.path)
    other = place.put(place.first, age=9 * HOUR)
    place.leave(MIB)
    assert "hit" == place.host.deliver(url, place.node / "disk").came.code  # type: ignore[union-attr]
    assert {image.path, other} == place.images()
    assert 1 == place.server.bodies("/a")


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("enough", [True, False])
def test_the_image_that_a_raw_form_is_made_from_is_never_given_for_it(place: Place, tmp_path: Path, *, enough: bool) -> None:
    write_qcow2(tmp_path / "image.qcow2", size=16 * MIB, message="room", payload=SIZE)
    place.server.serve("/q", Served(tmp_path / "image.qcow2", etag='"q"'))
    url = place.server.url("/q")
    kept = place.host.fetch(url, cache="first").image
    place.age(kept.path)
    other = place.put(place.first, age=HOUR, size=SIZE if enough else MIB)
    place.leave(3 * MIB)
    if not enough:
        with pytest.raises(InsufficientSpace):
            place.host.fetch(url, cache="first", raw=True)
        assert {kept.path, other} == place.images()
        return
    raw = place.host.fetch(url, cache="first", raw=True)
    assert "made-raw" == raw.reason.code
    assert {kept.path, raw.image.path} == place.images()
    assert 1 == place.server.bodies("/q")


def test_an_older_version_of_what_is_asked_for_is_not_given_for_the_newer(place: Place) -> None:
    """It may be the very image that is delivered when its source goes away meanwhile."""
    url = place.url("a")
    image = place.host.fetch(url, cache="first").image
    place.age(image.path)
    place.leave(3 * MIB)
    host = Host.open(_asking_each_time(place))
    place.server.serve("/a", Served(os.urandom(SIZE), etag='"newer"'))
    with pytest.raises(InsufficientSpace):
        host.fetch(url, cache="first")
    assert {image.path} == place.images()


def _asking_each_time(place: Place) -> Path:
    path = place.config.with_name("stale.toml")
    path.write_text(f'{place.config.read_text()}[sources.http]\nrevalidate_after = "0s"\n')
    return path


def test_a_copy_that_finds_no_room_makes_it_on_its_own_file_system(tmp_path: Path, mounted: Mounted) -> None:
    where, there = mounted("tmpfs", 64 * MIB), mounted("tmpfs", 24 * MIB)
    with serving({}) as server:
        place = Place(tmp_path, where, server)
        host = _with_a_cache_at(place, there / "third")
        other = place.put(place.first, age=9 * HOUR)
        # Of what is free there, all is wanted: not a byte more than is missing may be asked for.
        old = place.put(there / "third", age=9 * HOUR, size=3 * MIB)
        _fill(there / "foreign", free_bytes(there) - 6 * MIB)
        delivered = host.deliver(place.url("a"), there / "disk", cache="first")
    assert ("copied", SIZE) == (delivered.reason.code, (there / "disk").stat().st_size)
    assert (True, False) == (other.exists(), old.exists())


def test_a_copy_that_finds_no_room_at_all_leaves_everything(tmp_path: Path, mounted: Mounted) -> None:
    where, there = mounted("tmpfs", 64 * MIB), mounted("tmpfs", 24 * MIB)
    with serving({}) as server:
        place = Place(tmp_path, where, server)
        host = _with_a_cache_at(place, there / "third")
        old = place.put(there / "third", age=9 * HOUR, size=MIB)
        _fill(there / "foreign", free_bytes(there) - 3 * MIB)
        (there / "disk").write_bytes(b"what was there")
        with pytest.raises(InsufficientSpace) as caught:
            host.deliver(place.url("a"), there / "disk", cache="first")
    assert {str(there / "third"): MIB} == caught.value.reclaimable
    assert (True, b"what was there") == (old.exists(), (there / "disk").read_bytes())
    assert {"third", "foreign", "disk"} == set(os.listdir(there))


def _with_a_cache_at(place: Place, root: Path) -> Host:
    root.mkdir()
    path = place.config.with_name("third.toml")
    path.write_text(f'{place.config.read_text()}[caches.third]\nkind = "masters"\npath = "{root}"\n')
    return Host.open(path)


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


class FilledMeanwhile(Recorder):
    """Somebody else fills the file system once half of the image is there."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place, self.is_filled = place, False

    def event(self, event: Event) -> None:
        if event.code == "fetching" and not self.is_filled:
            self.is_filled = True
            _fill(self.place.where / "another", free_bytes(self.place.where) - 4 * MIB)
        super().event(event)


def test_a_file_system_that_is_filled_meanwhile_costs_no_more_than_is_missing(tmp_path: Path, mounted: Mounted) -> None:
    with serving({}) as server:
        place = Place(tmp_path, mounted("tmpfs", 64 * MIB), server)
        old = place.put(place.first, age=9 * HOUR, size=6 * MIB)
        observer = FilledMeanwhile(place)
        image = Host.open(place.config, observer=observer).fetch(place.url("a"), cache="first").image
    assert observer.is_filled
    assert {image.path} == place.images()
    assert not old.exists()


def test_of_two_threads_for_the_last_room_one_has_it(place: Place) -> None:
    old = place.put(place.first, age=9 * HOUR)
    place.leave(3 * MIB)
    urls = [place.url("a"), place.url("b")]
    barrier = threading.Barrier(2)

    def one(number: int) -> str:
        barrier.wait()
        try:
            return place.host.fetch(urls[number], cache=("first", "second")[number]).reason.code
        except InsufficientSpace as error:
            return error.code

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(one, range(2)))
    assert ["fetched", "insufficient-space"] == outcomes
    assert not old.exists()
    assert [SIZE] == [path.stat().st_size for path in place.images()]


def fetch_when_told(config: str, url: str, cache: str) -> None:
    """In a child: fetch an image when told to, and tell what came of it."""
    host = Host.open(config)
    tell("ready")
    told()
    try:
        tell(host.fetch(url, cache=cache).reason.code)
    except InsufficientSpace as error:
        tell(error.code)


def test_of_several_processes_for_the_last_room_one_has_it(place: Place) -> None:
    old = place.put(place.first, age=9 * HOUR)
    place.leave(3 * MIB)
    with ExitStack() as stack:
        children = [
            stack.enter_context(start(fetch_when_told, place.config, place.url(f"{number}"), ("first", "second")[number % 2]))
            for number in range(4)
        ]
        assert ["ready"] * 4 == [child.hear() for child in children]
        for child in children:
            child.say()
        outcomes = sorted(child.hear() for child in children)
    assert ["fetched", *["insufficient-space"] * 3] == outcomes
    assert not old.exists()
    assert [SIZE] == [path.stat().st_size for path in place.images()]


def test_of_many_who_make_room_at_once_none_fails_while_there_is_enough_for_all(place: Place) -> None:
    old = [place.put(place.second, age=(hours + 2) * HOUR, size=4 * MIB) for hours in range(8)]
    urls = [place.url(f"{number}", size=5 * MIB) for number in range(6)]
    place.leave(2 * MIB)
    with ThreadPoolExecutor(6) as pool:
        fetched = list(pool.map(lambda url: place.host.fetch(url, cache="first"), urls))
    assert ["fetched"] * 6 == [one.reason.code for one in fetched]
    assert {one.image.path for one in fetched} <= place.images()
    assert [path for path in reversed(old) if path.exists()] == []


def delivered_by_command(place: Place, url: str) -> Ended:
    path = os.fspath(place.node / "disk")
    return run(command_line(["--config", os.fspath(place.config), "fetch", url, "--to", path, "--json"]))


def test_the_command_says_what_is_missing_and_has_a_status_of_its_own(place: Place) -> None:
    place.put(place.second, age=9 * HOUR, size=MIB)
    place.leave(3 * MIB)
    url = place.url("a")
    refused = delivered_by_command(place, url)
    assert (47, "insufficient-space") == (refused.status, refused.error["code"])
    assert f"{MIB} bytes in {place.second}" in str(refused.error["message"])
    os.unlink(place.where / "foreign")
    place.put(place.second, age=9 * HOUR)
    place.leave(3 * MIB)
    done = delivered_by_command(place, url)
    assert (0, "fetched") == (done.status, done.json["reason"]["code"])


def test_a_cache_that_cannot_be_looked_at_gives_nothing_and_stops_nobody(place: Place) -> None:
    old = place.put(place.second, age=9 * HOUR)
    (place.base / ".underlay/format").write_text('{"layout": 99, "nova_locks": null}')
    place.leave(3 * MIB)
    assert "fetched" == place.host.fetch(place.url("a"), cache="first").reason.code
    assert not old.exists()


def test_the_repair_of_a_damaged_image_that_nobody_needs_makes_no_room(tmp_path: Path, mounted: Mounted) -> None:
    with serving({}) as server:
        place = Place(tmp_path, mounted("ext4", 64 * MIB), server)
        image = place.host.fetch(place.url("a"), cache="first").image
        flip(image.path)
        place.age(image.path)
        other = place.put(place.second, age=9 * HOUR)
        place.leave(3 * MIB)

        [damaged] = place.host.scrub([image.name], instances=()).damaged

        assert ((), "refetch-failed") == (damaged.users, damaged.repair and damaged.repair.code)
        assert {image.path, other} == place.images()
