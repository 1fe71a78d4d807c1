"""Cached images read again and held against the digests that they were published with: `passes` over all, `verify` of one.

What is read and in which order is decided in `policy.scrub`, as is what the readings say. `reading` reads from the medium,
`repair` has a damaged image fetched again. A damaged image stays where it is, and its note keeps everybody from it
(`store.quarantine`).
"""

from underlay.scrub.outcome import Scrubbed, ScrubReport

__all__ = ["ScrubReport", "Scrubbed"]
