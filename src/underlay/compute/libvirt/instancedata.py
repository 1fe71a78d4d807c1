"""What a guest is told about itself, in the files that OpenStack's guests look for: meta_data.json, user_data and others.

The formats are those of Nova's metadata (https://docs.openstack.org/nova/latest/user/metadata.html), as cloud-init reads them.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from underlay.compute.arguments import Instance, NetworkInfo, Vif
from underlay.compute.errors import InvalidInput
from underlay.compute.libvirt.taggeddevices import devices_of
from underlay.compute.metadata import field_of

_VERSION = "latest"


def files_of(
    instance: Instance, network_info: NetworkInfo | None, *, password: str | None, devices: Any = None
) -> dict[str, bytes]:
    """The files by their paths.

    Args:
        password: of the guest's administrator. devices: what is written down of them, as `devices_of` has it.

    Raises:
        InvalidInput: the user data is no base64.
    """
    files = {
        "meta_data.json": _json(_metadata(instance, password, devices_of(devices))),
        "network_data.json": _json(network_data(network_info or ())),
        "vendor_data.json": _json({}),
    }
    user_data = field_of(instance, "user_data")
    if user_data:
        files["user_data"] = _decoded(user_data)
    return {f"openstack/{_VERSION}/{name}": content for name, content in files.items()}


def network_data(network_info: NetworkInfo) -> dict[str, Any]:
    """Links, networks and services of all interfaces."""
    networks = [one for number, vif in enumerate(network_info) for one in _networks(number, vif)]
    servers = dict.fromkeys(server for vif in network_info for server in _name_servers(vif))
    return {
        "links": [_link(number, vif) for number, vif in enumerate(network_info)],
        "networks": [{"id": f"network{number}", **network} for number, network in enumerate(networks)],
        "services": [{"type": "dns", "address": server} for server in servers],
    }


def _metadata(instance: Instance, password: str | None, devices: Sequence[Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "uuid": instance.uuid,
        "name": instance.display_name,
        "hostname": field_of(instance, "hostname") or instance.display_name,
        "availability_zone": instance.availability_zone,
        "project_id": instance.project_id,
        "launch_index": field_of(instance, "launch_index") or 0,
    }
    if password:
        told["admin_pass"] = password
    if instance.metadata:
        told["meta"] = dict(instance.metadata)
    if instance.key_data:
        name = field_of(instance, "key_name") or "key"
        told["public_keys"] = {name: instance.key_data}
        told["keys"] = [{"name": name, "type": "ssh", "data": instance.key_data}]
    if devices:
        told["devices"] = list(devices)
    return told


def _link(number: int, vif: Vif) -> dict[str, Any]:
    return {
        "id": f"interface{number}",
        "vif_id": vif["id"],
        "type": "bridge" if vif["type"] == "bridge" else "phy",
        "mtu": _of_network(vif, "meta", {}).get("mtu"),
        "ethernet_mac_address": vif["address"],
    }


def _networks(number: int, vif: Vif) -> Iterator[dict[str, Any]]:
    for subnet in _of_network(vif, "subnets", ()):
        version = subnet.get("version", 4)
        link = {"link": f"interface{number}", "network_id": _of_network(vif, "id", None)}
        if (subnet.get("meta") or {}).get("dhcp_server"):
            yield {**link, "type": f"ipv{version}_dhcp"}
            continue
        for ip in subnet.get("ips") or ():
            mask = str(ip_network(subnet["cidr"], strict=False).netmask)
            yield {**link, "type": f"ipv{version}", "ip_address": ip["address"], "netmask": mask, "routes": _routes(subnet)}


def _routes(subnet: Mapping[str, Any]) -> list[dict[str, str]]:
    gateway = _address(subnet.get("gateway"))
    anywhere = ("::", "::") if subnet.get("version", 4) == 6 else ("0.0.0.0", "0.0.0.0")  # noqa: S104 - a route, no bind
    default = [{"network": anywhere[0], "netmask": anywhere[1], "gateway": gateway}] if gateway else []
    further = []
    for route in subnet.get("routes") or ():
        target = ip_network(route["cidr"], strict=False)
        further.append(
            {
                "network": str(target.network_address),
                "netmask": str(target.netmask),
                "gateway": _address(route.get("gateway")) or "",
            }
        )
    return [*default, *further]


def _name_servers(vif: Vif) -> Iterator[str]:
    for subnet in _of_network(vif, "subnets", ()):
        for server in subnet.get("dns") or ():
            if address := _address(server):
                yield address


def _address(told: Any) -> str | None:
    """A service tells an address as text, or as a mapping that has it."""
    return told.get("address") if isinstance(told, Mapping) else told


def _of_network(vif: Vif, key: str, default: Any) -> Any:
    return (vif.get("network") or {}).get(key) or default


def _decoded(user_data: str) -> bytes:
    try:
        return base64.b64decode("".join(user_data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(reason=f"the user data is no base64: {error}") from error


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
