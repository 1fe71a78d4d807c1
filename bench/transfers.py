"""The bytes of one image from each kind of source, hashed and written on their way, against ``curl -o`` of the same bytes.

What is timed is the data path: describe, open, receive, sha256, write. Nothing is synchronised, as curl does not do it either.
A file of this host is compared with ``cp``, which does not hash.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from bench.components import COMPONENTS, component
from bench.images import write_dense
from bench.measure import Contender, Row, Things
from bench.results import Goal, LeftOut
from bench.serving import serving
from bench.setting import CannotRun, Setting
from underlay.contracts import ImageSource
from underlay.pipeline import running
from underlay.refs import parse_ref
from underlay.sources.file import FileSource
from underlay.sources.glance import GlanceSource
from underlay.sources.http import HttpSource
from underlay.stream import ServedAndStored, SparseWriter

_GOAL = Goal(wall=1.11, why="nine tenths of the peer's throughput")


def transfers(setting: Setting) -> Things:
    """A row for each kind of source; those of services that nobody asks for are not started."""
    directory, image = setting.directory, write_dense(setting.directory / "served" / "image.img", setting.size)
    with serving(image.parent) as base:
        url = f"{base}/{image.name}"
        yield _row("http", directory, HttpSource(), url, ["curl", "-s", "-o", "TARGET", url])
    file = FileSource(allowed_paths=(image.parent,))
    yield _row("file", directory, file, image.as_uri(), ["cp", "--reflink=never", os.fspath(image), "TARGET"])
    for name, served, program in (
        ("oci", _registry, None),
        ("s3", _moto, "objects/moto_environment.py"),
        ("gs", _fake_gcs, "objects/gcs_environment.py"),
        ("glance", _glance, "glance/glance_environment.py"),
    ):
        row = f"transfer, {name}"
        if not setting.wants(row):
            continue
        try:
            _check_there(program)
            with served(image) as (source, ref, curl):
                yield _row(name, directory, source, ref, [*curl, "-s", "-o", "TARGET"])
        except CannotRun as missing:
            yield LeftOut(name=row, why=str(missing))


def _row(name: str, directory: Path, source: ImageSource, ref: str, peer: Sequence[str]) -> Row:
    ours, theirs = directory / "transferred.img", directory / "peer.img"
    argv = [os.fspath(theirs) if word == "TARGET" else word for word in peer]

    def settled(path: Path) -> None:
        path.unlink(missing_ok=True)
        os.sync()

    return Row(
        name=f"transfer, {name}",
        what=f"the data path of `{name}`, with a sha256 that the peer has not; nothing is synchronised",
        ours=Contender(name="data path", run=lambda _: _transfer(source, ref, ours), prepare=lambda _: settled(ours)),
        peer=Contender(name=argv[0], run=lambda _: subprocess.run(argv, check=True), prepare=lambda _: settled(theirs)),
        goal=_GOAL,
    )


def _transfer(source: ImageSource, ref: str, target: Path) -> None:
    version = source.describe(parse_ref(ref))
    with target.open("wb") as file:
        consumers = (ServedAndStored(), SparseWriter(file.fileno()))
        with running(consumers) as pipeline, source.open(version) as stream:
            buffer = pipeline.empty()
            while received := stream.readinto(buffer.free):
                buffer.length += received
                if not buffer.free:
                    pipeline.pass_on(buffer)
                    buffer = pipeline.empty()
            pipeline.pass_on(buffer)
            pipeline.finish()
        consumers[1].finish()


def _check_there(program: str | None) -> None:
    """A service's environment has to be made by its program; the registry is Debian's."""
    if program is None:
        if missing := cast("str | None", component("oci", "registry_server").missing()):
            raise CannotRun(missing)
        return
    made = subprocess.run([sys.executable, COMPONENTS / program], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise CannotRun(made.stderr.strip())


_Served = tuple[ImageSource, str, list[str]]  # the source, the ref, and curl with the URL of the same bytes


@contextmanager
def _registry(image: Path) -> Iterator[_Served]:
    server, pushing, reading = (component("oci", name) for name in ("registry_server", "pushing", "reading"))
    with tempfile.TemporaryDirectory() as directory, server.registry(Path(directory)) as registry:
        pusher = pushing.Pusher(registry.url, "bench/image")
        pusher.artifact("1", image.read_bytes())
        [layer] = pusher.layers("1")
        blob = f"{registry.url}/v2/bench/image/blobs/{layer['digest']}"
        yield reading.source_for(registry), reading.ref_to(pusher), ["curl", blob]


@contextmanager
def _moto(image: Path) -> Iterator[_Served]:
    with component("objects", "moto_environment").s3_server() as url:
        place = component("objects", "object_places").s3_place(url, "bench")
        place.put("image.raw", image.read_bytes())
        yield place.source, place.ref("image.raw"), ["curl", f"{url}/bench/image.raw"]


@contextmanager
def _fake_gcs(image: Path) -> Iterator[_Served]:
    with component("objects", "object_places").gcs_place("bench") as place:
        place.put("image.raw", image.read_bytes())
        yield place.source, place.ref("image.raw"), ["curl", f"{place.url}/bench/image.raw"]


@contextmanager
def _glance(image: Path) -> Iterator[_Served]:
    environment, people = (component("glance", name) for name in ("glance_environment", "glance_people"))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud = stack.enter_context(environment.running(directory / "cloud"))
        os.environ["OS_CLIENT_CONFIG_FILE"] = os.fspath(cloud.clouds_yaml)
        alice = people.person(cloud, "alice")
        uuid, token = alice.image(image.read_bytes()), f"X-Auth-Token: {alice.session.get_token()}"
        yield GlanceSource(cloud="alice"), f"glance:{uuid}", ["curl", "-H", token, f"{cloud.glance}/v2/images/{uuid}/file"]
