"""Images in object stores, by obstore: Amazon S3 and what speaks its language, Google Cloud Storage, Azure Blob Storage."""

from underlay.sources.objects.access import Addressing, AzureAccess, GcsAccess, Keys, S3Access
from underlay.sources.objects.source import ObjectSource

__all__ = ["Addressing", "AzureAccess", "GcsAccess", "Keys", "ObjectSource", "S3Access"]
