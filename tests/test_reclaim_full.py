"""Deliveries on a full file system: three caches give by priority, and nobody loses what he needs."""

import os
import random
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from aging import aged, original
from children import start, tell, told
from machine import MIB, command_line, run, tree
from underlay.delivery import Delivered
from underlay.errors import InsufficientSpace
from underlay.filesystems import free_bytes
from underlay.host import Host
from underlay.testing.bootimage import write_qcow2
from underlay.testing.httpserver import Served, Server, serving

pytestmark = pytest.mark.component("root", "qemu-img", "leases", "ext4", "xfs")

Mounted = Callable[..., Path]
HOUR, DAY = 3600.0, 86400.0
SIZE = 4 * MIB  # of an image that is wanted
VICTIM = 5 * MIB  # of a file that may go: each makes room for one image
SIZES = {"ext4": 96 * MIB, "xfs": 320 * MIB}  # the smallest that mkfs.xfs makes is 300 MB
STEPS = (MIB, 64 << 10, 4 << 10)
LEFT = MIB // 2  # bytes, in which records have room, and no image
NOTHING = 64 << 10  # bytes: with less than that, a file system cannot even make a file
CONFIG = """
[instances]
path = "{where}/instances"
[caches.base]
kind = "base"
path = "{where}/base"
[caches.second]
kind = "masters"
path = "{where}/second"
priority = 50
[caches.first]
kind = "masters"
path = "{where}/first"
priority = 75
[caches.elsewhere]
kind = "masters"
path = "{elsewhere}"
priority = 99
"""


class Room:
    """A small file system with three caches, and a cache elsewhere that has room enough."""

    def __init__(self, tmp_path: Path, where: Path, server: Server) -> None:
        self.where, self.config, self.server = where, tmp_path / "underlay.toml", server
        self.first, self.second, self.base = (where / name for name in ("first", "second", "base"))
        self.elsewhere = tmp_path / "elsewhere"
        self.nodes = where / "nodes"
        for path in (self.first, self.second, self.base, self.elsewhere, self.nodes, where / "instances"):
            path.mkdir()
        self.config.write_text(CONFIG.format(where=where, elsewhere=self.elsewhere))
        self.host = Host.open(self.config)
        for store in self.host.parts.stores():
            store.prepare()

    def put(self, cache: Path, *, age: float, size: int = VICTIM) -> Path:
        """An image that was last used so long ago."""
        name = original(f"{cache} {age}") if cache == self.base else str(uuid.uuid4())
        (cache / name).write_bytes(os.urandom(size))
        return aged(cache / name, age)

    def url(self, name: str) -> str:
        """An image that its server has."""
        self.server.serve(f"/{name}", Served(random.Random(name).randbytes(SIZE), etag=f'"{name}"'))
        return self.server.url(f"/{name}")

    def deliver(self, name: str, *, cache: str = "second") -> Delivered:
        delivered = self.host.deliver(self.url(name), self.nodes / name, cache=cache)
        assert random.Random(name).randbytes(SIZE) == (self.nodes / name).read_bytes()
        return delivered

    def fill(self, *, left: int = LEFT) -> None:
        """Write until there is no more room than that."""
        with (self.where / "filler").open("ab") as filler:
            for step in STEPS * 3:  # what a file system sets aside for a while comes back
                with suppress(OSError):
                    while free_bytes(self.where) >= left + step:
                        os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, step)
                os.sync()
        assert free_bytes(self.where) < left + NOTHING

    def fill_wholly(self) -> None:
        """Until nobody can make a file."""
        self.fill(left=0)
        with suppress(OSError):
            for number in count():
                (self.where / f"crowd-{number}").mkdir()
        with pytest.raises(OSError, match="No space left"):
            (self.where / "one-more").mkdir()

    def images(self) -> set[Path]:
        caches = (self.first, self.second, self.base, self.elsewhere)
        return {path for cache in caches for path in cache.iterdir() if path.is_file()}

    def temporaries(self) -> list[str]:
        private = [cache / ".underlay" for cache in (self.first, self.second, self.base, self.elsewhere)]
        staged = [name for one in private for directory in ("tmp", "trash") for name in os.listdir(one / directory)]
        return staged + [path.name for path in self.nodes.iterdir() if path.name.startswith(".")]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as server:
        yield server


@pytest.fixture(params=["ext4", "xfs"])
def room(request: pytest.FixtureRequest, tmp_path: Path, mounted: Mounted, server: Server) -> Room:
    where = mounted(request.param, SIZES[request.param])
    if request.param == "ext4":  # it keeps room back for root, as which tests run, and services do not
        device = subprocess.run(["findmnt", "-no", "SOURCE", where], capture_output=True, text=True, check=True)
        subprocess.run(["tune2fs", "-m", "0", device.stdout.strip()], check=True, capture_output=True)
    return Room(tmp_path, where, server)


def in_use(room: Room) -> set[Path]:
    """Old images that somebody needs: by a link, a pin, a disk, and one that was used just now."""
    linked, pinned, recent = (room.put(room.first, age=age) for age in (9 * DAY, 9 * DAY, 60))
    (room.where / "somebody").hardlink_to(linked)
    room.host.pin(pinned.name, holder="test")
    based, young = room.put(room.base, age=9 * DAY), room.put(room.base, age=HOUR)
    room.host.create_disk("web-1", based.name)
    aged(based, 9 * DAY)
    aged(room.base / ".underlay/used" / based.name, 9 * DAY)
    return {linked, pinned, recent, based, young}


def test_each_delivery_takes_the_least_recently_used_of_the_highest_priority(room: Room) -> None:
    kept = in_use(room)
    in_order = [
        room.put(room.first, age=3 * HOUR),
        room.put(room.first, age=2 * HOUR),
        room.put(room.second, age=8 * DAY),
        room.put(room.second, age=7 * DAY),
        room.put(room.base, age=3 * DAY),
        room.put(room.base, age=2 * DAY),
    ]
    far = room.put(room.elsewhere, age=9 * DAY)
    for number, victim in enumerate(in_order):
        room.fill()
        before = room.images()
        delivered = room.deliver(f"image-{number}")
        assert ("fetched", "linked") == (delivered.came and delivered.came.code, delivered.reason.code)
        assert ({victim}, {delivered.image.path}) == (before - room.images(), room.images() - before)
        kept.add(delivered.image.path)
    assert kept | {far} == room.images()
    assert_refused_and_untouched(room)


def assert_refused_and_untouched(room: Room) -> None:
    """Nothing more can go: the error says what each cache could give, and all is as it was."""
    room.fill()
    before, images = tree(room.first, room.second, room.base, room.nodes), room.images()
    with pytest.raises(InsufficientSpace) as caught:
        room.deliver("one-too-many")
    assert {str(cache): 0 for cache in (room.first, room.second, room.base)} == caught.value.reclaimable
    assert caught.value.needed is not None
    assert caught.value.needed >= SIZE
    assert caught.value.free < LEFT + NOTHING
    assert images == room.images()
    assert [] == room.temporaries()
    assert not (room.nodes / "one-too-many").exists()
    after = tree(room.first, room.second, room.base, room.nodes)
    assert [] == [path for path in before if ".underlay" not in path and path not in after]


def test_what_could_go_but_is_not_enough_is_told_by_cache_and_stays(room: Room) -> None:
    in_use(room)
    first, second = room.put(room.first, age=DAY, size=MIB), room.put(room.second, age=DAY, size=2 * MIB)
    room.fill()
    before = room.images()
    with pytest.raises(InsufficientSpace) as caught:
        room.deliver("image")
    assert {str(room.first): MIB, str(room.second): 2 * MIB, str(room.base): 0} == caught.value.reclaimable
    assert before == room.images() >= {first, second}
    assert [] == room.temporaries()


def test_what_the_request_itself_hits_never_goes(room: Room, tmp_path: Path) -> None:
    """The raw form is made from the master as served, which is the oldest of the highest priority by far."""
    write_qcow2(tmp_path / "image.qcow2", size=SIZE, message="served as qcow2", payload=SIZE - MIB)
    room.server.serve("/converted", Served(tmp_path / "image.qcow2", etag='"1"'))
    served = room.host.ensure(room.server.url("/converted"), cache="first", raw=False)
    aged(room.first / ".underlay/used" / served.name, 30 * DAY)
    room.fill()
    with pytest.raises(InsufficientSpace) as caught:
        room.host.deliver(room.server.url("/converted"), room.nodes / "raw", cache="first", raw=True)
    assert 0 == caught.value.reclaimable[str(room.first)]
    assert {served.path} == room.images()
    aged(room.first / ".underlay/used" / served.name, 30 * DAY)
    (room.where / "filler").unlink()
    victim = room.put(room.first, age=HOUR)
    room.fill()
    delivered = room.host.deliver(room.server.url("/converted"), room.nodes / "raw", cache="first", raw=True)
    assert "made-raw" == (delivered.came and delivered.came.code)
    assert {served.path, delivered.image.path} == room.images()
    assert not victim.exists()
    assert (1, 2) == (served.path.stat().st_nlink, delivered.image.path.stat().st_nlink)
    assert 1 == room.server.count("GET", "/converted")


def test_a_copy_has_its_room_made_where_it_goes(room: Room) -> None:
    old, new, far = room.put(room.first, age=DAY), room.put(room.first, age=HOUR), room.put(room.elsewhere, age=9 * DAY)
    room.fill()
    delivered = room.deliver("image", cache="elsewhere")
    assert "copied" == delivered.reason.code
    assert {new, far, delivered.image.path} == room.images()
    assert not old.exists()


def test_the_command_frees_by_priority_what_is_asked_for_on_a_full_file_system(room: Room) -> None:
    kept = in_use(room)
    first, second, base = room.put(room.first, age=DAY), room.put(room.second, age=9 * DAY), room.put(room.base, age=2 * DAY)
    room.fill()

    def reclaim(size: int) -> tuple[int, list[Path], int]:
        arguments = ["--config", os.fspath(room.config), "reclaim", f"{size}B", "--path", os.fspath(room.where), "--json"]
        ended = run(command_line(arguments))
        return ended.status, [Path(path) for path in ended.json["removed"]], ended.json["shortfall"]

    assert (0, [first], 0) == reclaim(SIZE)
    assert free_bytes(room.where) >= SIZE
    assert (0, [], 0) == reclaim(SIZE)
    assert (0, [second], 0) == reclaim(SIZE + VICTIM)
    status, removed, shortfall = reclaim(30 * MIB)
    assert (47, [base]) == (status, removed)
    assert 0 < shortfall < 30 * MIB - 2 * VICTIM
    assert kept == room.images()


# ------------------------------------------------------------------------------------------------------- not a block is left


def test_a_delivery_makes_room_where_not_even_a_record_has_any(room: Room) -> None:
    victim, kept = room.put(room.first, age=2 * HOUR), room.put(room.first, age=HOUR)
    room.fill_wholly()
    delivered = room.deliver("image")
    assert {kept, delivered.image.path} == room.images()
    assert not victim.exists()


def test_the_command_makes_room_where_not_even_a_record_has_any(room: Room) -> None:
    victim, kept = room.put(room.first, age=2 * HOUR), room.put(room.first, age=HOUR)
    room.fill_wholly()
    arguments = ["--config", os.fspath(room.config), "reclaim", f"{SIZE}B", "--path", os.fspath(room.where), "--json"]
    ended = run(command_line(arguments))
    assert (0, [os.fspath(victim)]) == (ended.status, ended.json["removed"])
    assert {kept} == room.images()


# ----------------------------------------------------------------------------------------------------------- at the same time


def deliver_at_once(config: str, ref: str, place: str) -> None:
    """In a child: deliver when told to, and tell what came of it."""
    host = Host.open(Path(config))
    tell("ready")
    told()
    try:
        tell(host.deliver(ref, place, cache="second").reason.code)
    except InsufficientSpace as error:
        tell(error.code)


def deliver_together(room: Room, names: Sequence[str]) -> list[str]:
    """Each in a process of its own; what came of each."""
    with ExitStack() as stack:
        tasks = [(room.config, room.url(name), room.nodes / name) for name in names]
        children = [stack.enter_context(start(deliver_at_once, *task)) for task in tasks]
        assert ["ready"] * len(names) == [child.hear() for child in children]
        for child in children:
            child.say()
        answers = [child.hear() for child in children]
        for child in children:
            child.end()
    assert [] == room.temporaries()
    assert {name for name, answer in zip(names, answers, strict=True) if answer == "linked"} == set(os.listdir(room.nodes))
    return answers


def test_of_two_deployments_one_gets_the_last_room(room: Room) -> None:
    for attempt in range(4):
        (room.where / "filler").unlink(missing_ok=True)
        victim = room.put(room.first, age=DAY)
        room.fill()
        answers = deliver_together(room, [f"image-{attempt}-{number}" for number in range(2)])
        assert ["insufficient-space", "linked"] == sorted(answers)
        assert not victim.exists()
        for path in (*room.nodes.iterdir(), *room.second.glob("*-*")):
            path.unlink()


def test_as_many_deployments_pass_at_once_as_there_is_room_for(room: Room) -> None:
    together = 6
    victims = [room.put(room.first, age=number * DAY) for number in range(1, together + 1)]
    room.fill()
    assert ["linked"] * together == deliver_together(room, [f"image-{number}" for number in range(together)])
    assert together == len(room.images() - set(victims))
