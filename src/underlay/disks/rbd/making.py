"""How an image comes about and how it goes: whole or not at all, whoever is killed meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Any

import msgspec

from underlay.attributes import encode_record
from underlay.disks.rbd import claims
from underlay.disks.rbd.claims import Maker
from underlay.disks.rbd.cluster import Cluster, spoken
from underlay.disks.rbd.looking import GOING, RECORD, Found, find
from underlay.disks.rbd.snapshots import refuse_needed, take_away_our_snapshots
from underlay.errors import BackendUnavailable, DiskExists, DiskInUse, UnderlayError
from underlay.model import DiskRecord


@contextmanager
def making(cluster: Cluster, pool: Any, image: str, *, maker: Maker) -> Iterator[str]:
    """A name under which to make an image, which then gets its own.

    Raises:
        DiskExists: another image got the name meanwhile.
    """
    temporary = f".{image}.{token_hex(8)}"
    maker.at_work_on.add(temporary)
    try:
        with _claimed(cluster, pool, image, temporary, maker=maker):
            yield temporary
    finally:
        maker.at_work_on.discard(temporary)


@contextmanager
def _claimed(cluster: Cluster, pool: Any, image: str, temporary: str, *, maker: Maker) -> Iterator[None]:
    claims.put(cluster, pool, image, temporary, claims.claim_of(cluster, maker))  # crash: a claim of what never came
    try:
        yield  # crash: an image that is on the list
        _publish(cluster, pool, temporary, image)  # crash: both names, or the new one
    except BackendUnavailable:
        raise  # nothing can be removed now; it is on the list, and the next who makes the disk does
    except BaseException:
        with suppress(UnderlayError):  # as above
            claims.discard(cluster, pool, temporary)
            claims.drop(cluster, pool, image, temporary)
        raise
    claims.drop(cluster, pool, image, temporary)  # crash: a claim of what is whole


def _publish(cluster: Cluster, pool: Any, temporary: str, image: str) -> None:
    try:
        claims.rename(cluster, pool, temporary, image)
    except DiskExists:
        if find(cluster, pool, image) is not None:
            raise
        # The name of an image that is not there: who removed it was killed before the last step.
        claims.remove_image(cluster, pool, image)
        claims.rename(cluster, pool, temporary, image)


def set_record(cluster: Cluster, image: Any, record: DiskRecord, *, of: str) -> None:
    """Have an open image say what it is; a snapshot's parent may have left it other words of ours."""

    def write() -> None:
        image.metadata_set(RECORD, encode_record(record).decode())

    cluster.ask(write, of=of)


def remove_disk(cluster: Cluster, pool: Any, image: str, *, maker: Maker) -> None:
    """Remove a disk's image, what its making left, and what a killed remover left; one that is gone is a success.

    Raises:
        DiskInUse: somebody has it open, or needs it. BackendUnavailable
    """
    with claims.changing(cluster, pool, image, maker=maker):
        _remove(cluster, pool, image, maker=maker)


def _remove(cluster: Cluster, pool: Any, image: str, *, maker: Maker) -> None:
    found = find(cluster, pool, image)
    if found is not None and found.claim is None:
        _refuse_open(found, spoken(pool, image))
        take_away_our_snapshots(cluster, pool, image, found)
        refuse_needed(cluster, pool, image)
        _mark(cluster, pool, image, maker=maker)  # crash: a disk that is there, and is none any more
    elif found is not None and found.claim is not None:
        finish_removal(cluster, pool, image, found, maker=maker)
        return
    try:
        claims.remove_image(cluster, pool, image)  # crash: a part of it, marked
    except DiskInUse:
        _unmark(cluster, pool, image)
        raise


def finish_removal(cluster: Cluster, pool: Any, image: str, found: Found, *, maker: Maker) -> None:
    """Remove what a killed remover left of a disk.

    Raises:
        BackendUnavailable: another host is at it. DiskInUse
    """
    assert found.claim is not None
    if not claims.is_dead(found.claim, maker):
        claims.refuse_alive(found.claim, spoken(pool, image))
    claims.shut_out(cluster, found, found.claim)
    claims.remove_image(cluster, pool, image)


def _refuse_open(found: Found, what: str) -> None:
    if found.watchers:
        raise DiskInUse(f"{what} is open: {', '.join(found.watchers)}", hint="stop the instance; rbd status shows who has it")


def _mark(cluster: Cluster, pool: Any, image: str, *, maker: Maker) -> None:
    claim = msgspec.json.encode(claims.claim_of(cluster, maker)).decode()
    with cluster.image(pool, image, read_only=False) as opened:
        cluster.ask(lambda: opened.metadata_set(GOING, claim), of=spoken(pool, image))


def _unmark(cluster: Cluster, pool: Any, image: str) -> None:
    with suppress(UnderlayError), cluster.image(pool, image, read_only=False) as opened:
        cluster.ask(lambda: opened.metadata_remove(GOING), of=spoken(pool, image))
