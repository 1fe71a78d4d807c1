"""VMDK descriptors as plain text: a few lines that make QEMU open any file of the host.

oslo.utils takes such a file for raw and safe, so this is a check of our own.
"""

import re

BEGINNING = 4096
"""Bytes of a file's beginning that tell."""

_VERSION = re.compile(rb"version\s*=\s*\d", re.IGNORECASE)


def is_vmdk_descriptor(beginning: bytes) -> bool:
    """Whether the file begins as QEMU's vmdk driver expects of a text descriptor: comments and blank lines, then a version."""
    if beginning[:21].lower() == b"# disk descriptorfile":
        return True
    for line in beginning[:BEGINNING].splitlines():
        line = line.strip()
        if line and not line.startswith(b"#"):
            return bool(_VERSION.match(line))
    return False
