"""Whether the host is to have new instances: what a compute service said last is kept over restarts.

It is in a file of the instances path, named after the host, because hosts may share that. Whoever has never said anything has
no such file, and then the trait by which placement knows it is somebody else's.
"""

from pathlib import Path

from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt.localdisks import translated
from underlay.compute.libvirt.site import Site
from underlay.files import translated as translated_files, write_durably
from underlay.naming import plain_name

_MODE = 0o644
_WORDS = {True: "enabled", False: "disabled"}


def set_enabled(site: Site, *, enabled: bool) -> str:
    """Say it, durably; the word for it.

    Raises:
        InvalidInput: the host's name can be no file's. OperationFailed
    """
    path, word = _path(site), _WORDS[enabled]
    with translated(), translated_files(path):
        write_durably(path, word.encode(), mode=_MODE)
    return word


def is_enabled(site: Site) -> bool | None:
    """What was said last; None: nothing.

    Raises:
        OperationFailed: it cannot be read.
    """
    path = _path(site)
    with translated(), translated_files(path):
        try:
            said = path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return None
    for enabled, word in _WORDS.items():
        if said == word:
            return enabled
    raise OperationFailed(f"{path} says neither of {' and '.join(_WORDS.values())}", hint="remove it, or say it again")


def _path(site: Site) -> Path:
    with translated():
        return site.host.config.instances / f".underlay-enabled-{plain_name(site.name, what='a host')}"
