"""Who is at work on a disk: what they say of themselves, whether they are dead, and how they are shut out then.

Of work on this host the kernel tells whether it is under way. It may not be although its process lives: a call that was given
up has left it. Of another host nothing is known, so what it does is left alone for a day, and after that for as long as its
client is seen to watch the image.
"""

import re
import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial

import msgspec

from underlay.disks.rbd import underway
from underlay.disks.rbd.cluster import Cluster
from underlay.errors import UnderlayError

_ABANDONED = 86400.0  # seconds
_SHUT_OUT = 3600  # seconds
_TEMPORARY = r"\.(?P<image>.+)\.[0-9a-f]{16}"
_ADDRESS = r"(?:[\w.]+|\[[0-9a-f:.]+\]):\d+/\d+"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at work, and on what.

    Attributes:
        host: where. boot, namespace: within which sight there. token: of the work.
        address: of the connection, as Ceph shows those who watch an image.
        made_at: seconds since the epoch, by that host's clock.
        pool, temporary: of the image that is made; empty: one that is there is changed.
    """

    host: str = ""
    boot: str = ""
    namespace: str = ""
    token: str = ""
    address: str = ""
    made_at: float = 0.0
    pool: str = ""
    temporary: str = ""

    @property
    def makes(self) -> str | None:
        """The name that the temporary image is to get; None: there is none, or the claim was not made by us."""
        match = re.fullmatch(_TEMPORARY, self.temporary)
        return match["image"] if match and self.pool else None


def claimed(cluster: Cluster, *, token: str, pool: str, makes: str | None) -> Claim:
    """A claim of ours."""
    boot, namespace = underway.sight()
    return Claim(
        host=cluster.access.host,
        boot=boot,
        namespace=namespace,
        token=token,
        address=cluster.address,
        made_at=time.time(),
        pool=pool,
        temporary=f".{makes}.{token}" if makes else "",
    )


def encoded(claim: Claim) -> bytes:
    """As it is kept in a Ceph."""
    return msgspec.json.encode(claim)


def decoded(value: bytes) -> Claim:
    """As it was kept; what cannot be read is a claim of nobody, who is dead."""
    try:
        return msgspec.json.decode(value, type=Claim)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        return Claim()


def is_dead(cluster: Cluster, claim: Claim, *, watchers: Collection[str]) -> bool:
    """Whether nobody is at work any more, as far as it can be told here.

    Args:
        watchers: the addresses of those who have the image open that is made or changed.
    """
    host, (boot, namespace) = cluster.access.host, underway.sight()
    if claim.host == host and claim.boot != boot:
        return True
    if (claim.host, claim.namespace) == (host, namespace):
        return not underway.is_under_way(claim.token)
    return time.time() - claim.made_at > _ABANDONED and not _addresses(claim.address) & _addresses(*watchers)


def shut_out(cluster: Cluster, claim: Claim) -> None:
    """Have Ceph forget a client that is dead, or that hangs, and refuse what it still sends.

    Ceph believes it to be there for half a minute otherwise, with its locks and watches; so it is where we have no capability
    to shut anybody out.
    """
    for address in _addresses(claim.address) - _addresses(cluster.address):
        with suppress(UnderlayError):
            cluster.ask(partial(cluster.rados.blocklist_add, address, _SHUT_OUT), of=f"client {address}")
            cluster.ask(cluster.rados.wait_for_latest_osdmap, of="the map of OSDs")


def _addresses(*texts: str) -> set[str]:
    """The addresses in what Ceph prints, such as ``[v2:10.0.0.1:0/7,v1:10.0.0.1:0/7]``, without their protocols."""
    return {address for text in texts for address in re.findall(_ADDRESS, text)}
