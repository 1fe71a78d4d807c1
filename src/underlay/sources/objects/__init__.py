"""Images in object stores, by obstore: Amazon S3 and what speaks its language, Google Cloud Storage, Azure Blob Storage."""
