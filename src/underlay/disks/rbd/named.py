"""A name that an image may have in a pool, with the connection to ask about it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from underlay.disks.rbd.cluster import Cluster
from underlay.waiting import Pulse

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class ImageName:
    """A name of an image, whether there is one or not. As a text it is what messages call it."""

    cluster: Cluster
    pool: Any
    name: str

    def __str__(self) -> str:
        return f"image {self.pool.name}/{self.name}"

    def beside(self, name: str) -> "ImageName":
        """Another name in the same pool."""
        return ImageName(self.cluster, self.pool, name)

    def ask(self, question: Callable[[], _Answer], *, pulse: Pulse | None = None) -> _Answer:
        """As `Cluster.ask`, about the image."""
        return self.cluster.ask(question, of=str(self), pulse=pulse)

    @contextmanager
    def opened(self, *, snapshot: str | None = None, read_only: bool = True) -> Iterator[Any]:
        """The image, open. Who opens one to read only is not seen by others.

        Raises:
            as `Cluster.ask`
        """
        made, of = self.cluster.library.rbd.Image, f"{self}@{snapshot}" if snapshot else str(self)
        image = self.cluster.ask(lambda: made(self.pool, self.name, snapshot=snapshot, read_only=read_only), of=of)
        try:
            yield image
        finally:
            self.cluster.close(image)
