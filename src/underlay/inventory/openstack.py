"""Instances from Nova's API: ``openstack:CLOUD``, a name in clouds.yaml; empty: the environment's ``OS_…``.

Nova answers with less than all there is and says nothing about it in three cases. Each is looked for, because a list that is
too short says that images are not needed:

- soft-deleted servers are left out unless ``soft_deleted`` asks for them (``status=soft_deleted`` alone finds none);
- the servers of a cell whose database is out of reach are left out of any filtered list, and only the list of services tells;
- a filter that the user may not use is dropped, ``soft_deleted`` too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from underlay.clouds import Library, imported, region_of
from underlay.errors import InventoryUnavailable
from underlay.model import Ephemeral, InstanceRecord
from underlay.waiting import within

# Nova's own version of its API, of April 2019 (Stein): the first that tells of cells out of reach.
_MICROVERSION = "2.69"
_ADMIN = "the user must be an administrator of Nova, who sees every project's servers and their hosts"
_HINT = "check the cloud's entry in clouds.yaml and that Nova answers"


class _Flavor(msgspec.Struct):
    swap: int | Literal[""] = 0
    ephemeral: int = 0


class _Image(msgspec.Struct):
    id: str


class _Server(msgspec.Struct, kw_only=True):
    id: str
    image: _Image | Literal[""] | None
    flavor: _Flavor
    host: str | UnsetType | None = msgspec.field(name="OS-EXT-SRV-ATTR:host", default=UNSET)
    name: str | UnsetType | None = msgspec.field(name="OS-EXT-SRV-ATTR:instance_name", default=UNSET)
    kernel_id: str | None = msgspec.field(name="OS-EXT-SRV-ATTR:kernel_id", default=None)
    ramdisk_id: str | None = msgspec.field(name="OS-EXT-SRV-ATTR:ramdisk_id", default=None)
    vm_state: str | None = msgspec.field(name="OS-EXT-STS:vm_state")
    task_state: str | None = msgspec.field(name="OS-EXT-STS:task_state")


class _Servers(msgspec.Struct):
    servers: list[_Server]


class _Service(msgspec.Struct):
    host: str
    state: str | None = None


class _Services(msgspec.Struct):
    services: list[_Service]


_Answer = TypeVar("_Answer")


class OpenstackInventory:
    """The servers that Nova has on some hosts.

    Attributes:
        cloud: its name in clouds.yaml, or empty.
        hosts: as Nova's option ``host`` names them.
        timeout: seconds that Nova may take for one answer; Nova itself waits 60 for a cell.
    """

    def __init__(self, location: str, *, host: str, hosts: Sequence[str], timeout: float = 120.0) -> None:
        self.cloud = location
        self.hosts = tuple(dict.fromkeys((host, *hosts)))
        self.timeout = timeout

    def instances(self) -> Sequence[InstanceRecord]:
        """Every server of the hosts, soft-deleted ones included.

        Raises:
            ExtraMissing: openstacksdk is not installed.
            InventoryUnavailable: Nova does not answer, or not with everything.
        """
        with self._connected() as ask:
            _check_hosts(ask, self.hosts)
            _check_filters(ask)
            # Once more all but the last: a server may move from a host that is still to be asked to one that was.
            servers = [server for host in (*self.hosts, *self.hosts[:-1]) for server in _servers_of(ask, host)]
            _check_hosts(ask, self.hosts)  # a cell may have gone away meanwhile
        return list({server.id: _record(server) for server in servers}.values())

    @contextmanager
    def _connected(self) -> Iterator["_Ask"]:
        library = imported("openstack")
        connection = None
        try:
            connection = within(self.timeout, lambda: _connect(library, self.cloud, self.timeout))
            compute = within(self.timeout, lambda: connection.compute)
            yield _Ask(compute, self.timeout)
        except TimeoutError as error:
            raise InventoryUnavailable(f"Nova does not answer for {self.timeout:g} s", hint=_HINT) from error
        except library.failures as error:
            raise _meaning(error) from error
        except OSError as error:
            raise InventoryUnavailable(f"Nova does not answer: {error}", hint=_HINT) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InventoryUnavailable(f"Nova's answer is not what its API promises: {error}") from error
        finally:
            if connection is not None:
                connection.close()


class _Ask:
    def __init__(self, compute: Any, timeout: float) -> None:
        self.compute = compute
        self.timeout = timeout

    def __call__(self, path: str, kind: type[_Answer], **query: str) -> _Answer:
        get: Callable[[], Any] = lambda: self.compute.get(path, params=query, microversion=_MICROVERSION)  # noqa: E731
        response = within(self.timeout, get)
        if response.status_code != 200:
            raise _refusal(response.status_code, f"Nova answers {response.status_code}")
        return msgspec.json.decode(response.content, type=kind)


def _connect(library: Library, cloud: str, timeout: float) -> Any:
    return library.sdk.connection.Connection(config=region_of(library, cloud, timeout=timeout))


def _check_hosts(ask: _Ask, hosts: Sequence[str]) -> None:
    """Nova has these hosts, and reaches the cells that they are in."""
    services = {one.host: one.state for one in ask("/os-services", _Services, binary="nova-compute").services}
    for host in hosts:
        if host not in services:
            raise InventoryUnavailable(
                f"Nova has no compute service on the host {host!r}", hint="name hosts as Nova's own option host does"
            )
        if services[host] is None:
            raise InventoryUnavailable(
                f"Nova does not reach the database of the cell of the host {host!r}", hint="try again when it is back"
            )


def _check_filters(ask: _Ask) -> None:
    """The user may filter: else these would be all servers there are."""
    nowhere = ask("/servers/detail", _Servers, all_tenants="True", host=f"nowhere-{uuid4()}", limit="1")
    if nowhere.servers:
        raise InventoryUnavailable("Nova does not let this user filter servers by host", hint=_ADMIN)


def _servers_of(ask: _Ask, host: str) -> Iterator[_Server]:
    """Page by page up to an empty one: a link to the next page is trusted by nobody who must have them all."""
    seen: set[str] = set()
    query = {"all_tenants": "True", "host": host, "soft_deleted": "True"}
    while servers := ask("/servers/detail", _Servers, **query).servers:
        for server in servers:
            if server.id in seen:
                raise InventoryUnavailable(f"Nova lists the server {server.id} on two pages", hint="try again")
            if not isinstance(server.host, str) or not isinstance(server.name, str):
                raise InventoryUnavailable(f"Nova does not show the host and the name of {server.id}", hint=_ADMIN)
            if server.host.casefold() != host.casefold():
                raise InventoryUnavailable(f"Nova, asked for {host!r}, lists {server.id} on {server.host!r}", hint=_ADMIN)
            seen.add(server.id)
            yield server
        query["marker"] = servers[-1].id


def _record(server: _Server) -> InstanceRecord:
    assert isinstance(server.name, str)
    assert isinstance(server.host, str)
    return InstanceRecord(
        uuid=server.id,
        name=server.name,
        host=server.host,
        image_ref=server.image.id if isinstance(server.image, _Image) else None,
        kernel_id=server.kernel_id or None,
        ramdisk_id=server.ramdisk_id or None,
        vm_state=server.vm_state,
        task_state=server.task_state,
        swap_mib=(server.flavor.swap,) if server.flavor.swap else (),
        ephemerals=(Ephemeral(size_gib=server.flavor.ephemeral),) if server.flavor.ephemeral else (),
    )


def _meaning(error: Exception) -> InventoryUnavailable:
    status = getattr(error, "http_status", None) or getattr(error, "status_code", None)
    return _refusal(status, f"Nova does not answer: {error}")


def _refusal(status: int | None, message: str) -> InventoryUnavailable:
    if status in (401, 403):
        return InventoryUnavailable(message, hint=_ADMIN)
    if status == 406:
        return InventoryUnavailable(message, hint=f"Nova must speak version {_MICROVERSION} of its API (2019) or newer")
    return InventoryUnavailable(message, hint=_HINT)
