"""The web, for every adapter that speaks HTTP: one client, its errors in our words, bodies from any byte on."""

from underlay.web.body import open_body
from underlay.web.client import Answer, Web
from underlay.web.credentials import Credential
from underlay.web.status import check_status, printable

__all__ = ["Answer", "Credential", "Web", "check_status", "open_body", "printable"]
