"""The web, for every adapter that speaks HTTP: one client, its errors in our words, bodies from any byte on.

The names are imported on first use: a configuration names the client whatever a command does, and a hit asks nobody.
"""

from typing import TYPE_CHECKING

from underlay import later

if TYPE_CHECKING:
    from underlay.web.body import open_body
    from underlay.web.client import Answer, Web
    from underlay.web.credentials import Credential
    from underlay.web.status import check_status, printable

__all__ = ["Answer", "Credential", "Web", "check_status", "open_body", "printable"]

__getattr__, __dir__ = later.exports(
    __name__,
    {
        "underlay.web.body": ("open_body",),
        "underlay.web.client": ("Answer", "Web"),
        "underlay.web.credentials": ("Credential",),
        "underlay.web.status": ("check_status", "printable"),
    },
)
