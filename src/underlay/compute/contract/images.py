"""The images that a host keeps."""

from collections.abc import Sequence

from underlay.compute.arguments import Context, Instance


class Images:
    """The host's cache of images."""

    def manage_image_cache(self, context: Context, all_instances: Sequence[Instance]) -> None:
        """Remove cached images that nobody needs and that are old enough.

        Args:
            all_instances: every instance, of all hosts, that uses this storage.
        """

    def cache_image(self, context: Context, image_id: str) -> bool:
        """Have an image in the cache before it is needed.

        Returns:
            True when it was fetched, False when it was there.

        Raises:
            whatever keeps it from being fetched. A driver that leaves this out does not support it.
        """
        raise NotImplementedError
