"""Which machine this is, to placement: a UUID that never changes."""

from uuid import UUID, uuid5

from underlay.errors import ConfigError
from underlay.store.hosts import machine_id

_NAMESPACE = UUID("a2b3f0a5-0d0e-5a61-9c86-8b1f6d6b8f4e")  # of Underlay's nodes, drawn once


def local_node_uuid() -> str:
    """The UUID of this machine's node, made from the machine's id (machine-id(5)), which itself is told to nobody.

    Raises:
        ConfigError: the machine has no id.
    """
    machine = machine_id()
    if not machine:
        raise ConfigError("this machine has no id, so its node has no UUID that lasts", hint="run systemd-machine-id-setup")
    return str(uuid5(_NAMESPACE, machine))
