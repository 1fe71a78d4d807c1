"""What an instance is busy with, as a driver says it to its compute service during a snapshot."""

IMAGE_SNAPSHOT = "image_snapshot"
IMAGE_PENDING_UPLOAD = "image_pending_upload"
IMAGE_UPLOADING = "image_uploading"
