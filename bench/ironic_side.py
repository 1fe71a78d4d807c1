"""Runs in Ironic's environment and does with Ironic's own image cache what it is asked, see side.py.

``fetch`` has the cache's directory, the image's address and the path that it is to be at; ``clean-up`` the directory.
"""

from importlib import import_module
from typing import Any

CONF: Any = import_module("ironic.conf").CONF
image_cache: Any = import_module("ironic.drivers.modules.image_cache")
context: Any = import_module("ironic.common.context")
side: Any = import_module("side")  # it lies beside this program


def cache_of(request: dict[str, Any]) -> Any:
    """A cache that has room for everything, and in which nothing is too old."""
    return image_cache.ImageCache(request["masters"], cache_size=1 << 50, cache_ttl=86400)


def fetch(request: dict[str, Any]) -> dict[str, Any]:
    """As a node's deployment does."""
    cache_of(request).fetch_image(request["href"], request["path"], ctx=context.get_admin_context())
    return {}


def clean_up(request: dict[str, Any]) -> dict[str, Any]:
    """As the conductor's periodic task does."""
    cache_of(request).clean_up()
    return {}


def main() -> None:
    """Answer until there are no more requests."""
    with side.answers() as answers:
        CONF([], project="ironic", default_config_files=[])
        side.answer({"fetch": fetch, "clean-up": clean_up}, answers)


if __name__ == "__main__":
    main()
