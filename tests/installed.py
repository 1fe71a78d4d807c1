"""A third party's package with a disk backend, built as a wheel and installed by pip into a directory of its own."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

_MODULE = '''
"""Disks in memory, of which this process has one store."""

from underlay.testing.fakedisks import FakeBackend

STORE = FakeBackend()


def open_backend():
    return STORE
'''


def install_backend(site: Path) -> None:
    """Install the package ``underlay-volumes``, whose backend is called ``fake`` as its traits say."""
    files = {
        "underlay_volumes.py": _MODULE,
        "underlay_volumes-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: underlay-volumes\nVersion: 1.0\n",
        "underlay_volumes-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "underlay_volumes-1.0.dist-info/entry_points.txt": "[underlay.disks]\nfake = underlay_volumes:open_backend\n",
    }
    record = "underlay_volumes-1.0.dist-info/RECORD"
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    wheel = site / "underlay_volumes-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (files | {record: "\n".join([*lines, f"{record},,"]) + "\n"}).items():
            archive.writestr(name, content)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", site, wheel], check=True, capture_output=True)
    wheel.unlink()


def _digest(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
