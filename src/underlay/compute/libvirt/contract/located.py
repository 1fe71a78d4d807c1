"""What every theme stands on: the site, from `init_host` on."""

from underlay.compute.errors import InternalError
from underlay.compute.libvirt.service import Running
from underlay.compute.libvirt.site import Site


class Located:
    """The driver's site."""

    _running: Running | None = None

    @property
    def site(self) -> Site:
        """The host with its libvirt.

        Raises:
            InternalError: before `init_host`, or after `cleanup_host`.
        """
        if self._running is None:
            raise InternalError(err="the driver has not been started: call init_host first")
        return self._running.site
