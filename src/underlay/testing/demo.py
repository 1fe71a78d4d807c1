"""The main job on real input, start to end, in a directory of its own: what ``underlay demo`` and ``scripts/demo`` run.

Each step is a command that anybody could type, and is printed before it runs.
"""

import os
import shlex
import subprocess  # the commands' output goes to the terminal, progress bars included, which `run` is not for
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import urljoin

from underlay.checksumlist import LIMIT
from underlay.checksums import find_checksum, name_in_url
from underlay.errors import ImageNotFound, InvalidDigest, NotAuthorized, ToolFailed
from underlay.host import Host
from underlay.testing.bootimage import PREFIX, boot, boot_line, write_qcow2
from underlay.testing.httpserver import serving
from underlay.web import Web

_IMAGE, _SUMS = "demo.qcow2", "SHA256SUMS"
_LISTS = (_SUMS, "SHA512SUMS")
_VIRTUAL_SIZE, _PAYLOAD = 2 << 30, 48 << 20
_INSTANCES = ("web-1", "web-2", "db-1")
_OWN_BOOT_SECONDS, _OTHER_BOOT_SECONDS = 30.0, 900.0


def run_demo(url: str | None = None) -> None:
    """Fetch an image with its digest verified, make three disks from it, look at them, boot one.

    Args:
        url: the image; None serves the project's own over loopback.

    Raises:
        UnderlayError: a step failed; its own output says how.
    """
    with tempfile.TemporaryDirectory(prefix="underlay-demo-") as directory:
        config = _lay_out(Path(directory))
        with _served(Path(directory)) if url is None else _elsewhere(url) as image:
            checksums = _list_beside(image)
            _say(f"# {image}" + (" with its published digest" if checksums else ", which no list of digests beside it has"))
            _underlay(config, "fetch", image, *(("--checksum", checksums) if checksums else ()))
            for number, instance in enumerate(_INSTANCES):
                size = ("--size", f"{20 + 10 * number}GiB") if url is None or number else ()
                _underlay(config, "disk", "create", instance, "--image", image, *size)
        # The server is gone, and nothing below needs it.
        _underlay(config, "list")
        _underlay(config, "show", image)
        _underlay(config, "disk", "list")
        _underlay(config, "du")
        _boot(config, own=url is None)


def _lay_out(directory: Path) -> Path:
    for name in ("base", "instances"):
        (directory / name).mkdir()
    config = directory / "underlay.toml"
    config.write_text(
        f'[instances]\npath = "{directory}/instances"\n\n[caches.base]\nkind = "base"\npath = "{directory}/base"\n',
        encoding="utf-8",
    )
    return config


@contextmanager
def _served(directory: Path) -> Iterator[str]:
    """The project's own bootable image and its list of digests, served over loopback HTTP."""
    site = directory / "site"
    site.mkdir()
    write_qcow2(site / _IMAGE, size=_VIRTUAL_SIZE, message="from a disk that underlay made", payload=_PAYLOAD)
    digest = sha256((site / _IMAGE).read_bytes()).hexdigest()
    (site / _SUMS).write_text(f"{digest}  {_IMAGE}\n", encoding="ascii")
    with serving(site) as server:
        yield server.url(f"/{_IMAGE}")


@contextmanager
def _elsewhere(url: str) -> Iterator[str]:
    yield url


def _list_beside(image: str) -> str | None:
    """The URL of the list of checksums beside an image, as distributions publish it; None when none there lists it."""
    for url in (urljoin(image, name) for name in _LISTS):
        with suppress(ImageNotFound, NotAuthorized, InvalidDigest):
            find_checksum(Web().document(url, url, limit=LIMIT).decode(errors="replace"), name_in_url(image))
            return url
    return None


def _underlay(config: Path, *arguments: str) -> None:
    _say("$ " + shlex.join(["underlay", *arguments]))
    argv = [sys.executable, "-m", "underlay", "--config", os.fspath(config), *arguments]
    status = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode
    if status != 0:
        raise ToolFailed(f"'underlay {arguments[0]}' ended with {status}")


def _boot(config: Path, *, own: bool) -> None:
    disk = Host.open(config).disk(_INSTANCES[0])
    _say(f"$ qemu-system-x86_64 -accel tcg -serial … {disk.path}")
    until = PREFIX if own else "login:"
    seconds, memory = (_OWN_BOOT_SECONDS, 64 << 20) if own else (_OTHER_BOOT_SECONDS, 512 << 20)
    console = boot(disk.path, format=disk.format or "raw", seconds=seconds, until=None if own else until, memory=memory)
    lines = [line for line in console.splitlines() if until in line]
    if not lines:
        raise ImageNotFound(f"the guest never printed {until!r} on its serial console")
    _say(f"the guest says: {lines[-1].strip()}")
    assert not own or lines[-1].strip() == boot_line("from a disk that underlay made")


def _say(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()
