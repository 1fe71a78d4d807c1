"""One entry of an L2 table: flags, offsets, and what of a file a compressed cluster takes."""

OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
COMPRESSED = 1 << 62
ALL_ZEROS = 1 << 0
"""The cluster reads as zeros (version 3, without extended L2 entries)."""

SUBCLUSTERS = 32
ALLOCATED = 0xFFFF_FFFF
"""In the second half of an extended entry: a bit for each subcluster that the file holds. The other half are zeros' bits."""

SECTOR = 512


def compressed_range(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Where a compressed cluster begins in the file, and where the last sector that it reaches into ends."""
    offset_bits = 62 - (cluster_bits - 8)
    offset = entry & ((1 << offset_bits) - 1)
    more_sectors = (entry & (COMPRESSED - 1)) >> offset_bits
    return offset, (offset // SECTOR + more_sectors + 1) * SECTOR
