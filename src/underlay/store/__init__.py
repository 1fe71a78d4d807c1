"""One cache directory: the only code that renames or unlinks below a cache's root.

`layout` opens a directory and owns its own record, `images` finds, publishes and holds base images, `refs` remembers what a
ref was last seen to mean, `staging` owns an ingest in progress, `space` reserves room for it, `roots` keeps the disks that lie
elsewhere, `scrubs` and `quarantine` what reading images again has told.
"""

from underlay.store.layout import Store

__all__ = ["Store"]
