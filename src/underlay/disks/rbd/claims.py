"""What is being made in a pool, and what of it a dead maker has left: a list in an object of the pool.

An image comes about under a temporary name, and gets its own when it is whole, so nobody takes a part for a disk. Before it
appears, the list says so: its key is ``IMAGE/TEMPORARY``, its value a `Claim`. A maker of the same disk holds the disk's lock
on its host, so a claim of this host that is not of a piece of work under way is a dead one's, or of a call that was given up.
Ceph believes a dead client to be there for half a minute, and keeps its locks and watches: it is shut out first (``osd
blocklist``), which also ends a call that still hangs.

Who changes an image that is there says so as well, under its own name: ``IMAGE/IMAGE``.

A claim of another host is left alone for a day: nothing here tells whether its maker lives.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from underlay.disks.rbd.cluster import Cluster, spoken
from underlay.disks.rbd.looking import Claim, Found, find
from underlay.disks.rbd.snapshots import remove_snapshot
from underlay.errors import BackendUnavailable, DiskInUse, DiskNotFound, UnderlayError
from underlay.waiting import Pulse

LIST = "underlay.making"
"""The object that has the list, as key and value pairs."""

_ABANDONED = 86400.0  # seconds
_SHUT_OUT = 3600  # seconds
_MOST = 1000  # claims of one image that are looked at


@dataclass(frozen=True, slots=True)
class Maker:
    """Who makes images: the host, and the temporary names of those that it makes now."""

    host: str
    at_work_on: set[str] = field(default_factory=set)


def claim_of(cluster: Cluster, maker: Maker) -> Claim:
    """Ours."""
    return Claim(host=maker.host, address=cluster.address, made_at=time.time())


def put(cluster: Cluster, pool: Any, image: str, temporary: str, claim: Claim) -> None:
    """Say what is about to be made.

    Raises:
        BackendUnavailable, InsufficientSpace
    """

    def write() -> None:
        with cluster.library.rados.WriteOpCtx() as operation:
            pool.set_omap(operation, (_key(image, temporary),), (msgspec.json.encode(claim),))
            pool.operate_write_op(operation, LIST)

    cluster.ask(write, of=f"object {pool.name}/{LIST}")


def drop(cluster: Cluster, pool: Any, image: str, temporary: str) -> None:
    """Say that it is no more on its way."""

    def write() -> None:
        with cluster.library.rados.WriteOpCtx() as operation:
            pool.remove_omap_keys(operation, (_key(image, temporary),))
            pool.operate_write_op(operation, LIST)

    with suppress(DiskNotFound):
        cluster.ask(write, of=f"object {pool.name}/{LIST}")


def _key(image: str, temporary: str) -> str:
    return f"{image}/{temporary}"


def listed(cluster: Cluster, pool: Any, image: str) -> dict[str, Claim]:
    """By temporary name, what is being made of an image, or was left."""

    def read() -> list[tuple[str, bytes]]:
        with cluster.library.rados.ReadOpCtx() as operation:
            pairs, _ = pool.get_omap_vals(operation, "", f"{image}/", _MOST)
            pool.operate_read_op(operation, LIST)
            return list(pairs)

    try:
        pairs = cluster.ask(read, of=f"object {pool.name}/{LIST}")
    except DiskNotFound:
        return {}
    return {key.partition("/")[2]: msgspec.json.decode(value, type=Claim) for key, value in pairs}


def take_away_left(cluster: Cluster, pool: Any, image: str, *, maker: Maker) -> None:
    """Take away what makers have left of an image; what cannot go now stays on the list. The caller holds the disk's lock.

    Raises:
        BackendUnavailable
    """
    for temporary, claim in listed(cluster, pool, image).items():
        if temporary not in maker.at_work_on and is_dead(claim, maker):
            with suppress(DiskInUse):
                _take_away(cluster, pool, image, temporary, claim)
                drop(cluster, pool, image, temporary)


def is_dead(claim: Claim, maker: Maker) -> bool:
    """Whether nobody works on it any more, as far as it can be told."""
    return claim.host == maker.host or time.time() - claim.made_at > _ABANDONED


@contextmanager
def changing(cluster: Cluster, pool: Any, image: str, *, maker: Maker) -> Iterator[None]:
    """Change an image that is there; who is killed meanwhile is shut out by the next who wants to. The caller holds its lock.

    Raises:
        BackendUnavailable, InsufficientSpace
    """
    take_away_left(cluster, pool, image, maker=maker)
    put(cluster, pool, image, image, claim_of(cluster, maker))
    maker.at_work_on.add(image)
    try:
        yield
    finally:
        maker.at_work_on.discard(image)
        with suppress(UnderlayError):  # crash, or a Ceph that is gone: a claim of who is dead by then
            drop(cluster, pool, image, image)


def _take_away(cluster: Cluster, pool: Any, image: str, temporary: str, claim: Claim) -> None:
    left, whole = find(cluster, pool, temporary), find(cluster, pool, image)
    if temporary == image:
        if whole is not None:
            shut_out(cluster, whole, claim)
        return
    if left is not None:
        shut_out(cluster, left, claim)
        if whole is not None and left.id == whole.id:
            finish_rename(cluster, pool, temporary, image)
            return
    discard(cluster, pool, temporary)


def shut_out(cluster: Cluster, found: Found, claim: Claim) -> None:
    """Have Ceph forget a client that is dead and has an image open; without the capability to, it takes half a minute."""
    nonces = {part.rpartition("/")[2].strip("]") for part in claim.address.split(",")}
    for watcher in found.watchers:
        if watcher.rpartition("/")[2] in nonces and claim.address != cluster.address:
            with suppress(UnderlayError):
                cluster.ask(partial(cluster.rados.blocklist_add, watcher, _SHUT_OUT), of=f"client {watcher}")
                cluster.ask(cluster.rados.wait_for_latest_osdmap, of="the map of OSDs")


def finish_rename(cluster: Cluster, pool: Any, temporary: str, image: str) -> None:
    """Bring a renaming to its end that stopped halfway, when both names mean one image.

    An image's name is an object of its own, ``rbd_id.NAME``, and stands in the pool's directory of images. librbd writes the
    new object, changes the directory, and removes the old object (its RenameRequest).
    """
    listed_names = cluster.ask(lambda: list(cluster.library.rbd.RBD().list(pool)), of=f"the pool {pool.name}")
    if temporary in listed_names:
        cluster.ask(lambda: pool.remove_object(f"rbd_id.{image}"), of=spoken(pool, image))  # crash: the temporary one, whole
        rename(cluster, pool, temporary, image)
    else:
        cluster.ask(lambda: pool.remove_object(f"rbd_id.{temporary}"), of=spoken(pool, temporary))


def rename(cluster: Cluster, pool: Any, temporary: str, image: str) -> None:
    """Give an image its name.

    Raises:
        DiskExists: another has it.
    """
    cluster.ask(lambda: cluster.library.rbd.RBD().rename(pool, temporary, image), of=spoken(pool, image))


def discard(cluster: Cluster, pool: Any, temporary: str) -> None:
    """Remove an image that never got its name, with the snapshots that it may have already.

    Raises:
        as `remove_image`
    """
    left = find(cluster, pool, temporary)
    for snapshot in left.snapshots if left else ():
        remove_snapshot(cluster, pool, temporary, snapshot)
    remove_image(cluster, pool, temporary)


def remove_image(cluster: Cluster, pool: Any, name: str) -> None:
    """Remove an image that has no snapshots, or what is left of one; one that is gone is a success.

    Raises:
        DiskInUse, BackendUnavailable
    """
    pulse = Pulse()
    with suppress(DiskNotFound):
        cluster.ask(lambda: cluster.library.rbd.RBD().remove(pool, name, pulse.beat), of=spoken(pool, name), pulse=pulse)


def refuse_alive(claim: Claim, what: str) -> None:
    """Refuse to touch what another host is at.

    Raises:
        BackendUnavailable
    """
    raise BackendUnavailable(f"{what} is being removed by {claim.host}", hint="try again when it is gone")
