"""Runs in Ironic's environment: reads one JSON object a line, lets Ironic's own image cache fetch, answers when it is done.

A request has the cache's directory, the image's address and the path that it is to be at.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any

CONF: Any = import_module("ironic.conf").CONF
image_cache: Any = import_module("ironic.drivers.modules.image_cache")
context: Any = import_module("ironic.common.context")


def main() -> None:
    """Answer until there are no more requests."""
    answers = os.fdopen(os.dup(1), "w")  # nothing that is printed on the way may get among the answers
    os.dup2(2, 1)
    CONF([], project="ironic", default_config_files=[])
    ctx = context.get_admin_context()
    for line in sys.stdin:
        request = json.loads(line)
        cache = image_cache.ImageCache(request["masters"], cache_size=1 << 40, cache_ttl=86400)
        cache.fetch_image(request["href"], request["path"], ctx=ctx)
        answers.write("{}\n")
        answers.flush()


if __name__ == "__main__":
    main()
