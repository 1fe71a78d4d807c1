"""qcow2: what an image says of itself, and how much of the guest's disk it holds.

Numbers and names follow QEMU's docs/interop/qcow2.txt. Everything here distrusts its input: each offset, length and count is
checked against the file before it is used. `header` reads the header and has the rules about it, `tables` proves what it points
to, `write` makes new overlays, and `convert` makes the raw form (with `entries`, `pieces`, `hostclusters` and `inflate`); it is
imported by who converts only.
"""

from underlay.formats.qcow2.header import (
    HEADER_BYTES,
    INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_CORRUPT,
    INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_DIRTY,
    INCOMPATIBLE_EXTENDED_L2,
    MAGIC,
    MAX_BACKING_NAME,
    Header,
    backing_format,
    backing_name,
    check_safety,
    parse_header,
)
from underlay.formats.qcow2.tables import mapped_bytes
from underlay.formats.qcow2.write import CLUSTER_SIZES, DEFAULT_CLUSTER_BYTES, write_overlay

__all__ = [
    "CLUSTER_SIZES",
    "DEFAULT_CLUSTER_BYTES",
    "HEADER_BYTES",
    "INCOMPATIBLE_COMPRESSION",
    "INCOMPATIBLE_CORRUPT",
    "INCOMPATIBLE_DATA_FILE",
    "INCOMPATIBLE_DIRTY",
    "INCOMPATIBLE_EXTENDED_L2",
    "MAGIC",
    "MAX_BACKING_NAME",
    "Header",
    "backing_format",
    "backing_name",
    "check_safety",
    "mapped_bytes",
    "parse_header",
    "write_overlay",
]
