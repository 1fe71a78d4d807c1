"""Who uses the real Glance beside us, and what they change there."""

import os
import sqlite3
import warnings
from dataclasses import dataclass
from typing import Any

from glance_environment import Cloud

PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


@dataclass(frozen=True)
class Person:
    """Somebody who uses Glance's API."""

    session: Any
    glance: str
    cloud: Cloud

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """A change of what Glance has."""
        with self.cloud.changing():
            return self.session.request(self.glance + path, method, **request)

    def upload(self, image: str, content: bytes, *, to: str = "file") -> None:
        """Give an image its data."""
        kind = {"Content-Type": "application/octet-stream"}
        self.ask("PUT", f"/v2/images/{image}/{to}", data=content, headers=kind)

    def image(self, content: bytes | None, **properties: Any) -> str:
        """Make an image, with its data unless there is none; its UUID."""
        wanted = {"name": "an image", "disk_format": "raw", "container_format": "bare", **properties}
        made: str = self.ask("POST", "/v2/images", json=wanted).json()["id"]
        if content is not None:
            self.upload(made, content)
        return made

    def change(self, image: str, **properties: str) -> None:
        """Give an image these properties."""
        changes = [{"op": "add", "path": f"/{name}", "value": value} for name, value in properties.items()]
        self.ask("PATCH", f"/v2/images/{image}", json=changes, headers=PATCH)

    def delete(self, image: str) -> None:
        """Remove an image from Glance."""
        self.ask("DELETE", f"/v2/images/{image}")


def person(cloud: Cloud, name: str) -> Person:
    """Who has a cloud of this name in clouds.yaml."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from openstack.config import OpenStackConfig

        config = OpenStackConfig(config_files=[os.fspath(cloud.clouds_yaml)])  # type: ignore[no-untyped-call,unused-ignore]
        session = config.get_one(cloud=name).get_session()
    return Person(session, cloud.open_glance if name == "open" else cloud.glance, cloud)


def rewrite(cloud: Cloud, image: str, **columns: str | int | None) -> None:
    """Have Glance's database say this of an image, as of one that an older Glance took, or that was registered where it lay."""
    with cloud.changing(), sqlite3.connect(cloud.database, timeout=30) as database:
        changes = ", ".join(f"{column} = ?" for column in columns)
        values = (*columns.values(), image)
        assert 1 == database.execute(f"UPDATE images SET {changes} WHERE id = ?", values).rowcount
    database.close()
