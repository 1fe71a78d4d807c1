"""Images from a real OCI registry: both layouts, tags that move, what is not there, what is damaged, and who may have them."""

import json
import os
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import urllib3
from pushing import (
    CONFIG,
    DISK,
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    DOCKER_TAR_GZIP,
    OCI_EMPTY,
    OCI_MANIFEST,
    OCI_TAR,
    TITLE,
    Document,
    Pusher,
    artifact,
    disk_layer,
    encoded,
    file_entry,
    image,
    index,
    other_entry,
    tar_of,
)
from reading import TokenRegistry, fetch, read, ref_to, source_for
from registry_server import LOGIN, PASSWORD, SERVICE, USER, RunningRegistry

from corpus import noise, prose
from machine import MIB, Machine
from underlay.errors import (
    DigestMismatch,
    ImageNotFound,
    NotAuthorized,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    UnsafeImage,
)
from underlay.model import Digest, ImageVersion
from underlay.refs import parse_ref
from underlay.run import SEARCH_PATH
from underlay.sources.oci.source import OciSource
from underlay.stream import filled
from underlay.testing.bootimage import write_qcow2, write_raw
from underlay.testing.httpserver import Served, serving
from underlay.web import Web

pytest_plugins = ["registry_fixtures"]
pytestmark = pytest.mark.component("docker-registry")

DISK_BYTES = noise(300_000) + prose(200_000) + bytes(100_000)


# ------------------------------------------------------------------------------------------------------------------ artifacts


def test_an_artifact_is_described_with_its_size_its_digest_and_its_manifests_digest_as_id(
    pusher: Pusher, source: OciSource
) -> None:
    digest = pusher.artifact("1", DISK_BYTES)
    [layer] = pusher.layers("1")

    version = source.describe(parse_ref(ref_to(pusher)))

    assert ref_to(pusher, f"@{digest}") == version.id
    assert (len(DISK_BYTES), (Digest.parse(layer["digest"]),)) == (version.size, version.digests)
    assert DISK_BYTES == read(source, version)


@pytest.mark.parametrize("offset", [1, 4096, len(DISK_BYTES) - 1, len(DISK_BYTES)])
def test_an_artifact_is_opened_at_any_byte(pusher: Pusher, source: OciSource, offset: int) -> None:
    pusher.artifact("1", DISK_BYTES)
    version = source.describe(parse_ref(ref_to(pusher)))

    assert DISK_BYTES[offset:] == read(source, version, offset=offset)


def test_an_artifact_may_come_by_several_ranges_at_once(pusher: Pusher, open_registry: RunningRegistry) -> None:
    pusher.artifact("1", DISK_BYTES)
    web = Web(parallel=3, range_size=100_000)
    source = OciSource(web=web, plain_http=frozenset({open_registry.host}))

    assert DISK_BYTES == fetch(source, ref_to(pusher))


def test_a_ref_by_digest_needs_no_question_once_it_is_here_and_has_the_same_id_as_its_tag(
    pusher: Pusher, source: OciSource
) -> None:
    digest = pusher.artifact("1", DISK_BYTES)
    by_tag, by_digest = parse_ref(ref_to(pusher)), parse_ref(ref_to(pusher, f":1@{digest}"))

    assert source.fixed_id(by_digest) == source.describe(by_tag).id == source.describe(by_digest).id
    assert source.fixed_id(by_tag) is None
    assert source.fixed_id(by_digest) == source.version_id(by_digest, 64 * "0")


def test_a_ref_without_a_tag_means_the_latest(pusher: Pusher, source: OciSource) -> None:
    pusher.artifact("latest", b"the latest")

    assert b"the latest" == fetch(source, ref_to(pusher, ""))


def test_what_is_here_is_asked_about_without_the_manifest(pusher: Pusher, source: OciSource) -> None:
    pusher.artifact("1", DISK_BYTES)
    ref = parse_ref(ref_to(pusher))
    version = source.describe(ref)
    assert version.validator is not None

    assert ImageVersion(ref=ref, validator=version.validator) == source.describe(ref, known=[version.validator])

    pusher.artifact("1", b"another")
    another = source.describe(ref, known=[version.validator])
    assert (7, False) == (another.size, another.validator == version.validator)


def test_a_tag_that_moves_changes_nothing_of_what_was_described(pusher: Pusher, source: OciSource) -> None:
    old = pusher.artifact("1", DISK_BYTES)
    version = source.describe(parse_ref(ref_to(pusher)))
    pusher.artifact("1", b"moved")

    assert DISK_BYTES == read(source, version)

    pusher.remove_manifest(old)
    with pytest.raises(ImageNotFound):
        read(source, version)
    assert b"moved" == fetch(source, ref_to(pusher))


def test_one_layer_among_several_is_the_disk_by_its_type_or_its_title(pusher: Pusher, source: OciSource) -> None:
    pusher.blob("application/vnd.oci.empty.v1+json", b"{}")
    notes = pusher.blob("text/plain", b"some notes", annotations={TITLE: "notes.txt"})
    disk = pusher.blob("application/octet-stream", DISK_BYTES, annotations={TITLE: "disk.qcow2"})
    pusher.manifest("1", artifact(notes, disk))

    assert DISK_BYTES == fetch(source, ref_to(pusher))


def test_of_several_disks_one_is_chosen_by_its_title(pusher: Pusher, source: OciSource) -> None:
    pusher.blob("application/vnd.oci.empty.v1+json", b"{}")
    layers = [pusher.blob(DISK, name.encode(), annotations={TITLE: name}) for name in ("a b.raw", "c.raw")]
    digest = pusher.manifest("1", artifact(*layers))

    with pytest.raises(SourceRefused, match=r"more than one layer is a disk; there is 'a b.raw' .*, 'c.raw' ") as refused:
        fetch(source, ref_to(pusher))
    assert "choose a layer by its title: oci://…#title" == refused.value.hint
    assert b"a b.raw" == fetch(source, ref_to(pusher, ":1#a b.raw"))
    assert ref_to(pusher, f"@{digest}#a%20b.raw") == source.describe(parse_ref(ref_to(pusher, ":1#a%20b.raw"))).id
    with pytest.raises(ImageNotFound, match=r"no layer has this title; there is 'a b.raw'"):
        fetch(source, ref_to(pusher, ":1#d.raw"))


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ([], "no layer is a disk; there is nothing"),
        ([("text/plain", "a"), ("text/plain", "b")], "no layer is a disk; there is 'a' "),
        ([(DISK, "a"), (DISK, "a")], "more than one layer"),
    ],
)
def test_what_has_no_disk_is_refused_with_a_list(
    pusher: Pusher, source: OciSource, layers: list[tuple[str, str]], why: str
) -> None:
    pusher.blob("application/vnd.oci.empty.v1+json", b"{}")
    pusher.manifest("1", artifact(*(pusher.blob(kind, b"x", annotations={TITLE: title}) for kind, title in layers)))

    with pytest.raises(SourceRefused, match=why):
        source.describe(parse_ref(ref_to(pusher)))


def test_a_manifest_of_too_many_layers_is_refused(pusher: Pusher, source: OciSource) -> None:
    pusher.blob(OCI_EMPTY, b"{}")
    layer = pusher.blob(DISK, b"a layer")
    pusher.manifest("1", artifact(*[layer] * 257))

    with pytest.raises(SourceRefused, match="has 257 layers, and 256 are the most"):
        source.describe(parse_ref(ref_to(pusher)))


def test_a_directory_that_oras_packed_is_no_disk(pusher: Pusher, source: OciSource) -> None:
    pusher.blob("application/vnd.oci.empty.v1+json", b"{}")
    unpack = {TITLE: "directory", "io.deis.oras.content.unpack": "true"}
    pusher.manifest("1", artifact(pusher.blob(f"{OCI_TAR}+gzip", b"x", annotations=unpack)))

    with pytest.raises(SourceRefused, match="its layer is a packed directory"):
        source.describe(parse_ref(ref_to(pusher)))


# -------------------------------------------------------------------------------------------------------------- containerdisks


@pytest.mark.parametrize(
    ("compression", "media_type"),
    [
        ("", OCI_TAR),
        ("gzip", f"{OCI_TAR}+gzip"),
        ("zstd", f"{OCI_TAR}+zstd"),
        ("gzip", DOCKER_TAR_GZIP),
    ],
)
def test_a_containerdisk_comes_out_of_its_layer(pusher: Pusher, source: OciSource, compression: str, media_type: str) -> None:
    digest = pusher.containerdisk("1", disk_layer(DISK_BYTES, compression=compression), media_type=media_type)

    version = source.describe(parse_ref(ref_to(pusher)))

    assert (ref_to(pusher, f"@{digest}"), None, ()) == (version.id, version.size, version.digests)
    assert DISK_BYTES == read(source, version)
    for offset in (1, 299_999, len(DISK_BYTES)):
        assert DISK_BYTES[offset:] == read(source, version, offset=offset)


def test_a_containerdisk_of_dockers_form_is_read_as_well(pusher: Pusher, source: OciSource) -> None:
    config = pusher.blob(DOCKER_CONFIG, CONFIG)
    layer = pusher.blob(DOCKER_TAR_GZIP, disk_layer(DISK_BYTES, compression="gzip"))
    pusher.manifest("1", image(layer, config=config, media_type=DOCKER_MANIFEST))

    assert DISK_BYTES == fetch(source, ref_to(pusher))


def test_the_uppermost_layer_with_a_disk_is_read_and_the_others_are_passed(pusher: Pusher, source: OciSource) -> None:
    system = tar_of(file_entry("etc/os-release", b"NAME=test\n"), file_entry("disks/x", b"no disk"))
    pusher.containerdisk("1", disk_layer(b"below"), disk_layer(b"above"), system)

    assert b"above" == fetch(source, ref_to(pusher))


def test_of_several_files_one_is_chosen_by_its_name(pusher: Pusher, source: OciSource) -> None:
    pusher.containerdisk("1", tar_of(file_entry("disk/a", b"first"), file_entry("disk/b", b"second")))
    version = source.describe(parse_ref(ref_to(pusher)))

    with source.open(version) as stream, pytest.raises(SourceRefused, match="more than one file in disk/") as refused:
        list(filled(stream))
    assert "choose one by its name: oci://…#b" == refused.value.hint
    assert b"first" == fetch(source, ref_to(pusher, ":1#a"))
    assert b"second" == fetch(source, ref_to(pusher, ":1#b"))
    with pytest.raises(ImageNotFound, match="no layer has this file in disk/"):
        fetch(source, ref_to(pusher, ":1#c"))


def test_a_container_image_without_a_disk_is_refused(pusher: Pusher, source: OciSource) -> None:
    pusher.containerdisk("1", tar_of(file_entry("etc/passwd", b"root\n")))

    with pytest.raises(SourceRefused, match="is a container image without a disk"):
        fetch(source, ref_to(pusher))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (file_entry("disk/../disk/x", b"x"), "its name is not plain"),
        (file_entry("etc/../disk/x", b"x"), "its name is not plain"),
        (file_entry("/disk/x", b"x"), "its name is not plain"),
        (file_entry("../disk/x", b"x"), "its name is not plain"),
        (file_entry("disk//x", b"x"), "its name is not plain"),
        (file_entry("disk", b"x"), "it is a file"),
        (file_entry("disk/a/x", b"x"), "it lies in a directory of its own"),
        (file_entry("disk/.wh.x", b""), "it takes away files of the layers below"),
        (other_entry("disk/x", tarfile.SYMTYPE, "/etc/shadow"), "it is a symlink"),
        (other_entry("disk/x", tarfile.LNKTYPE, "etc/passwd"), "it is a hard link"),
        (other_entry("disk/x", tarfile.BLKTYPE), "it is a device"),
        (other_entry("disk/x", tarfile.FIFOTYPE), "it is a FIFO"),
        (other_entry("disk", tarfile.SYMTYPE, "/etc"), "it is a symlink"),
    ],
)
def test_a_disk_under_a_trick_is_refused(
    pusher: Pusher, source: OciSource, entry: tuple[tarfile.TarInfo, bytes], why: str
) -> None:
    # Behind a good disk, so that it is told before the end is said.
    pusher.containerdisk("1", tar_of(file_entry("./disk/good", b"good"), entry))
    version = source.describe(parse_ref(ref_to(pusher)))

    with source.open(version) as stream, pytest.raises(SourceRefused, match=why):
        list(filled(stream))


def test_an_archive_that_is_cut_off_is_refused_although_its_digest_is_right(pusher: Pusher, source: OciSource) -> None:
    pusher.containerdisk("1", disk_layer(DISK_BYTES)[:400_000])
    version = source.describe(parse_ref(ref_to(pusher)))

    with source.open(version) as stream, pytest.raises(SourceRefused, match="cut off in the middle of an entry"):
        list(filled(stream))


def test_broken_compression_is_refused(pusher: Pusher, source: OciSource) -> None:
    layer = disk_layer(DISK_BYTES, compression="gzip")
    pusher.containerdisk("1", layer[:-100_000], media_type=f"{OCI_TAR}+gzip")
    version = source.describe(parse_ref(ref_to(pusher)))

    with pytest.raises(UnsafeImage, match="cut-short"):
        read(source, version)


def test_a_layer_of_an_unknown_kind_is_refused_before_anything_is_transferred(pusher: Pusher, source: OciSource) -> None:
    pusher.containerdisk("1", b"x", media_type=f"{OCI_TAR}+encrypted")

    with pytest.raises(SourceRefused, match=r"a layer is no tar archive .*\+encrypted"):
        source.describe(parse_ref(ref_to(pusher)))


# --------------------------------------------------------------------------------------------------------------------- indexes


def indexed(pusher: Pusher, *platforms: Document | None) -> tuple[str, list[str]]:
    """Push an artifact for each platform, and an index of them all; its digest, and theirs."""
    digests, entries = [], []
    for number, platform in enumerate(platforms):
        digests.append(pusher.artifact(f"of-{number}", f"disk {number}".encode()))
        content = len(encoded(artifact(*pusher.layers(f"of-{number}"))))
        more = {} if platform is None else {"platform": platform}
        entries.append({"mediaType": OCI_MANIFEST, "digest": digests[-1], "size": content, **more})
    return pusher.manifest("1", index(*entries)), digests


def test_an_index_means_the_manifest_of_this_platform(pusher: Pusher, open_registry: RunningRegistry) -> None:
    amd64, arm64 = {"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64", "variant": "v8"}
    _, digests = indexed(pusher, amd64, arm64, {"os": "unknown", "architecture": "unknown"})
    ref = parse_ref(ref_to(pusher))

    for number, platform in enumerate(("linux/amd64", "linux/arm64")):
        source = source_for(open_registry, platform=platform)
        version = source.describe(ref)
        assert ref_to(pusher, f"@{digests[number]}") == version.id
        assert f"disk {number}".encode() == read(source, version)
        # What one platform knows tells another nothing.
        assert version.validator is not None
        other = source_for(open_registry, platform="linux/amd64" if number else "linux/arm64")
        assert version.id != other.describe(ref, known=[version.validator]).id


def test_an_index_with_nothing_for_this_platform_is_told_with_what_it_has(
    pusher: Pusher, open_registry: RunningRegistry
) -> None:
    indexed(pusher, {"os": "linux", "architecture": "arm64"})

    with pytest.raises(ImageNotFound, match=r"has nothing for linux/s390x; there is \(linux/arm64, sha256:") as missing:
        source_for(open_registry, platform="linux/s390x").describe(parse_ref(ref_to(pusher)))
    assert "set platform under [sources.oci], or name a manifest by its digest" == missing.value.hint


def test_an_index_of_two_for_one_platform_is_refused_and_either_is_had_by_its_digest(pusher: Pusher, source: OciSource) -> None:
    amd64 = {"os": "linux", "architecture": "amd64"}
    _, [first, _] = indexed(pusher, amd64, amd64)

    with pytest.raises(SourceRefused, match="has several manifests for linux/amd64"):
        fetch(source, ref_to(pusher))
    assert b"disk 0" == fetch(source, ref_to(pusher, f"@{first}"))


def test_an_index_by_its_digest_is_asked_for_each_time(pusher: Pusher, source: OciSource) -> None:
    named, [manifest] = indexed(pusher, {"os": "linux", "architecture": "amd64"})
    ref = parse_ref(ref_to(pusher, f"@{named}"))

    assert source.fixed_id(ref) != source.describe(ref).id == ref_to(pusher, f"@{manifest}")


# --------------------------------------------------------------------------------------------------- what is missing or damaged


@pytest.mark.parametrize("reference", [":2", "@sha256:" + 64 * "0"])
def test_what_a_repository_does_not_have_is_not_found(pusher: Pusher, source: OciSource, reference: str) -> None:
    pusher.artifact("1", b"x")

    with pytest.raises(ImageNotFound, match="answers 404 MANIFEST_UNKNOWN"):
        source.describe(parse_ref(ref_to(pusher, reference)))


def test_a_repository_that_is_not_there_is_not_found(pusher: Pusher, source: OciSource) -> None:
    with pytest.raises(ImageNotFound, match=r"localhost:\d+ answers 404 [A-Z_]+UNKNOWN"):
        source.describe(parse_ref(ref_to(pusher)))


def test_a_blob_that_is_gone_is_not_found(pusher: Pusher, source: OciSource) -> None:
    pusher.artifact("1", DISK_BYTES)
    version = source.describe(parse_ref(ref_to(pusher)))
    pusher.remove_blob(str(version.digests[0]))

    with pytest.raises(ImageNotFound, match=r"does not have the blob sha256:[0-9a-f]{64}"):
        read(source, version)


def test_a_manifest_with_other_bytes_than_its_digest_says_is_refused(
    pusher: Pusher, source: OciSource, open_registry: RunningRegistry
) -> None:
    digest = pusher.artifact("1", DISK_BYTES)
    file = open_registry.blob_file(digest)
    file.write_bytes(file.read_bytes().replace(b"disk.img", b"bask.img"))

    # The registry itself refuses to serve it, or serves it under the digest that it should have.
    with pytest.raises((DigestMismatch, SourceError)):
        source.describe(parse_ref(ref_to(pusher)))


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_a_layer_with_other_bytes_than_its_digest_says_is_refused_before_its_end_is_said(
    pusher: Pusher, source: OciSource, open_registry: RunningRegistry, compression: str
) -> None:
    media_type = f"{OCI_TAR}+{compression}" if compression else OCI_TAR
    pusher.containerdisk("1", disk_layer(DISK_BYTES, compression=compression), media_type=media_type)
    version = source.describe(parse_ref(ref_to(pusher)))
    [layer] = pusher.layers("1")
    file = open_registry.blob_file(layer["digest"])
    content = bytearray(file.read_bytes())
    content[100_000] ^= 1
    file.write_bytes(content)

    with pytest.raises(DigestMismatch, match="the layer of oci://"):
        read(source, version)


def test_a_registry_that_is_not_there_may_come_back(repository: str) -> None:
    source = OciSource(web=Web(), plain_http=frozenset({"localhost:1"}))

    with pytest.raises(SourceUnavailable):
        source.describe(parse_ref(f"oci://localhost:1/{repository}:1"))


def test_a_registry_without_tls_is_never_asked_unless_the_configuration_names_it(pusher: Pusher) -> None:
    pusher.artifact("1", DISK_BYTES)

    with pytest.raises(SourceUnavailable) as refused:
        OciSource(web=Web()).describe(parse_ref(ref_to(pusher)))
    assert refused.value.hint is not None
    assert "plain_http" in refused.value.hint


# -------------------------------------------------------------------------------------------------------------- who may have it


def write_logins(file: Path, logins: dict[str, str]) -> Path:
    file.write_text(json.dumps({"auths": {name: {"auth": login} for name, login in logins.items()}}))
    return file


@pytest.fixture
def private(basic_registry: RunningRegistry, repository: str) -> Pusher:
    """Pushes to a repository behind Basic authentication."""
    headers = urllib3.make_headers(basic_auth=f"{USER}:{PASSWORD}")
    return Pusher(basic_registry.url, repository, headers=headers)


def test_a_login_of_dockers_file_opens_a_registry(private: Pusher, basic_registry: RunningRegistry, logins: Path) -> None:
    private.artifact("1", DISK_BYTES)
    source = source_for(basic_registry, logins.with_name("absent.json"), write_logins(logins, {basic_registry.host: LOGIN}))

    assert DISK_BYTES == fetch(source, ref_to(private))


def test_a_registry_that_wants_a_login_is_told_of_with_where_we_looked(
    private: Pusher, basic_registry: RunningRegistry, logins: Path
) -> None:
    private.artifact("1", DISK_BYTES)
    file = write_logins(logins, {"other.example": LOGIN})

    with pytest.raises(NotAuthorized, match=f"there is no login for {basic_registry.host}") as refused:
        source_for(basic_registry, file).describe(parse_ref(ref_to(private)))
    assert refused.value.hint is not None
    assert str(file) in refused.value.hint


def test_a_wrong_login_is_named_and_not_shown(private: Pusher, basic_registry: RunningRegistry, logins: Path) -> None:
    private.artifact("1", DISK_BYTES)
    wrong = "b3BlcmF0b3I6Z3Vlc3NlZA=="  # operator:guessed
    file = write_logins(logins, {basic_registry.host: wrong})

    with pytest.raises(NotAuthorized) as refused:
        source_for(basic_registry, file).describe(parse_ref(ref_to(private)))

    told = f"{refused.value} {refused.value.hint}"
    assert f"answers 401 UNAUTHORIZED to the login of {basic_registry.host} in {file}" in told
    assert "guessed" not in told
    assert wrong not in told


@pytest.fixture
def closed(token_registry: TokenRegistry, repository: str) -> Pusher:
    """Pushes to a repository behind tokens."""
    return token_registry.pusher(repository)


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_a_token_is_asked_for_once_and_opens_a_repository(
    closed: Pusher, token_registry: TokenRegistry, repository: str, field: str
) -> None:
    closed.artifact("1", DISK_BYTES)
    token_registry.gives(token_registry.maker.token(repository, "pull"), field=field)
    before = token_registry.server.count("GET", "/token")
    source = source_for(token_registry.registry)

    assert DISK_BYTES == fetch(source, ref_to(closed))
    assert DISK_BYTES == fetch(source, ref_to(closed))

    assert 1 == token_registry.server.count("GET", "/token") - before
    scope = f"scope=repository%3A{repository.replace('/', '%2F')}%3Apull"
    assert f"/token?kept=yes&service=registry-of-a-test&{scope}" == token_registry.server.requests[-1].path


def test_a_token_server_is_shown_the_login_of_the_registry(
    closed: Pusher, token_registry: TokenRegistry, repository: str, logins: Path
) -> None:
    closed.artifact("1", DISK_BYTES)
    token_registry.gives(token_registry.maker.token(repository, "pull"), credentials=f"{USER}:{PASSWORD}")
    file = write_logins(logins, {token_registry.registry.host: LOGIN})

    assert DISK_BYTES == fetch(source_for(token_registry.registry, file), ref_to(closed))
    with pytest.raises(NotAuthorized, match=r"the token server of .* answers 401, and there is no login for"):
        fetch(source_for(token_registry.registry), ref_to(closed))


def test_a_token_that_has_ended_is_replaced_in_the_middle_of_a_fetch(
    closed: Pusher, token_registry: TokenRegistry, repository: str
) -> None:
    closed.artifact("1", DISK_BYTES)
    make = token_registry.maker.token
    # The registry grants 60 s more, so the first is good for a second or two.
    token_registry.gives(make(repository, "pull", lasts=-58), make(repository, "pull"))
    source = source_for(token_registry.registry)
    before = token_registry.server.count("GET", "/token")
    version = source.describe(parse_ref(ref_to(closed)))
    time.sleep(2.5)

    assert DISK_BYTES[1000:] == read(source, version, offset=1000)
    assert 2 == token_registry.server.count("GET", "/token") - before


def test_a_token_that_does_not_allow_it_is_told(closed: Pusher, token_registry: TokenRegistry, repository: str) -> None:
    closed.artifact("1", DISK_BYTES)
    token_registry.gives(token_registry.maker.token("another/repository", "pull"))

    with pytest.raises(NotAuthorized, match=r"answers 401 UNAUTHORIZED, and there is no login"):
        fetch(source_for(token_registry.registry), ref_to(closed))


# --------------------------------------------------------------------------------------- identity tokens and their programs

IDENTITY = "1dentity token+&="


def write_identity(file: Path, host: str, token: str = IDENTITY) -> Path:
    """A file of docker's with an identity token for a registry."""
    file.write_text(json.dumps({"auths": {host: {"identitytoken": token}}}))
    return file


def test_an_identity_token_is_posted_and_stands_in_no_url(
    closed: Pusher, token_registry: TokenRegistry, repository: str, logins: Path
) -> None:
    closed.artifact("1", DISK_BYTES)
    token_registry.gives_for(IDENTITY, token_registry.maker.token(repository, "pull"))
    before, asked = token_registry.server.count("POST", "/token"), len(token_registry.server.requests)
    source = source_for(token_registry.registry, write_identity(logins, token_registry.registry.host))

    assert DISK_BYTES == fetch(source, ref_to(closed))

    assert 1 == token_registry.server.count("POST", "/token") - before
    [request] = token_registry.server.requests[asked:]
    form = {"client_id": "underlay", "scope": f"repository:{repository}:pull", "service": SERVICE}
    assert {"grant_type": "refresh_token", "refresh_token": IDENTITY, **form} == dict(parse_qsl(request.content.decode()))
    assert ("/token?kept=yes", None) == (request.path, request.headers.get("authorization"))


def test_a_wrong_identity_token_is_named_and_not_shown(
    closed: Pusher, token_registry: TokenRegistry, repository: str, logins: Path
) -> None:
    closed.artifact("1", DISK_BYTES)
    token_registry.gives_for(IDENTITY, token_registry.maker.token(repository, "pull"))
    host = token_registry.registry.host

    with pytest.raises(NotAuthorized, match=f"answers 401 to the login of {host} in {logins}") as refused:
        fetch(source_for(token_registry.registry, write_identity(logins, host, "guessed")), ref_to(closed))
    assert "guessed" not in f"{refused.value} {refused.value.hint}"


def test_an_identity_token_never_follows_a_redirect(closed: Pusher, token_registry: TokenRegistry, logins: Path) -> None:
    closed.artifact("1", DISK_BYTES)
    with serving({"/": Served(b"{}", form={})}) as elsewhere:
        headers = {"Location": elsewhere.url("/")}
        token_registry.server.serve("/token", Served(status=307, headers=headers, form={}))
        with pytest.raises(SourceRefused, match="redirects what was to stay between us"):
            fetch(source_for(token_registry.registry, write_identity(logins, token_registry.registry.host)), ref_to(closed))
        assert () == elsewhere.requests


def test_a_token_server_that_knows_no_identity_tokens_is_told(
    closed: Pusher, token_registry: TokenRegistry, repository: str, logins: Path
) -> None:
    closed.artifact("1", DISK_BYTES)
    token_registry.gives(token_registry.maker.token(repository, "pull"))

    with pytest.raises(SourceRefused, match=r"the token server of .* answers 405"):
        fetch(source_for(token_registry.registry, write_identity(logins, token_registry.registry.host)), ref_to(closed))


def test_a_registry_that_wants_a_password_takes_no_identity_token(
    private: Pusher, basic_registry: RunningRegistry, logins: Path
) -> None:
    private.artifact("1", DISK_BYTES)

    with pytest.raises(NotAuthorized, match=r"is an identity token, and .* wants user and password"):
        fetch(source_for(basic_registry, write_identity(logins, basic_registry.host)), ref_to(private))


@pytest.mark.parametrize("user", [USER, "<token>"])
def test_a_program_that_keeps_the_login_opens_a_registry(
    closed: Pusher, token_registry: TokenRegistry, repository: str, tmp_path: Path, logins: Path, user: str
) -> None:
    closed.artifact("1", DISK_BYTES)
    token, host = token_registry.maker.token(repository, "pull"), token_registry.registry.host
    if user == USER:
        token_registry.gives(token, credentials=f"{USER}:{PASSWORD}")
    else:
        token_registry.gives_for(PASSWORD, token)
    program = tmp_path / "docker-credential-test"
    answer = json.dumps({"ServerURL": host, "Username": user, "Secret": PASSWORD})
    program.write_text(f'#!/bin/sh\ntest "$1 $(cat)" = "get {host}" && echo \'{answer}\'\n')
    program.chmod(0o755)
    logins.write_text(json.dumps({"auths": {host: {}}, "credsStore": "test"}))
    environment = {"PATH": f"{tmp_path}:{SEARCH_PATH}"}

    assert DISK_BYTES == fetch(source_for(token_registry.registry, logins, environment=environment), ref_to(closed))


def test_a_program_that_keeps_a_login_and_fails_is_told(private: Pusher, basic_registry: RunningRegistry, logins: Path) -> None:
    private.artifact("1", DISK_BYTES)
    logins.write_text(json.dumps({"credHelpers": {basic_registry.host: "absent-of-a-test"}}))

    with pytest.raises(NotAuthorized, match="kept by docker-credential-absent-of-a-test cannot be used: the program is not in"):
        fetch(source_for(basic_registry, logins), ref_to(private))


@pytest.mark.parametrize("answer", [Served(b"no json"), Served(b"{}"), Served(b'{"token": "a\\nb"}')])
def test_a_token_server_that_gives_none_is_refused(closed: Pusher, token_registry: TokenRegistry, answer: Served) -> None:
    closed.artifact("1", DISK_BYTES)
    token_registry.server.serve("/token", answer)

    with pytest.raises(SourceRefused, match="gives no token"):
        fetch(source_for(token_registry.registry), ref_to(closed))


def test_a_login_that_changes_in_its_file_is_used_at_once(
    closed: Pusher, token_registry: TokenRegistry, repository: str, logins: Path
) -> None:
    closed.artifact("1", DISK_BYTES)
    host, token = token_registry.registry.host, token_registry.maker.token(repository, "pull")
    token_registry.gives(token, token, credentials=f"{USER}:{PASSWORD}")
    source = source_for(token_registry.registry, write_logins(logins, {host: LOGIN}))
    before = token_registry.server.count("GET", "/token")
    fetch(source, ref_to(closed))
    fetch(source, ref_to(closed))
    assert 1 == token_registry.server.count("GET", "/token") - before

    write_logins(logins, {host: "b3BlcmF0b3I6Z3Vlc3NlZA=="})
    with pytest.raises(NotAuthorized, match=r"answers 401 to the login of"):
        fetch(source, ref_to(closed))
    write_logins(logins, {host: LOGIN})
    assert DISK_BYTES == fetch(source, ref_to(closed))


def test_fetches_by_one_host_cost_one_token_in_all_its_threads_and_a_forked_child_asks_for_its_own(
    tmp_path: Path, closed: Pusher, token_registry: TokenRegistry, repository: str
) -> None:
    extra = f'[sources.oci]\nplain_http = ["{token_registry.registry.host}"]\nrevalidate_after = "0s"\n'
    host = Machine.make(tmp_path, extra=extra).host()
    for tag in ("1", "2", "3"):
        write_raw(tmp_path / tag, size=4 * MIB, message=f"image {tag}", payload=MIB)
        closed.artifact(tag, (tmp_path / tag).read_bytes())
    token_registry.gives(token_registry.maker.token(repository, "pull"))
    before = token_registry.server.count("GET", "/token")

    first = host.ensure(ref_to(closed, ":1"))
    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda tag: host.ensure(ref_to(closed, tag)), (":2", ":3", ":1")))

    assert 3 == len({first.name, *(image.name for image in others)})
    assert 1 == token_registry.server.count("GET", "/token") - before
    child = os.fork()
    if child == 0:
        name = None
        try:
            name = host.ensure(ref_to(closed, ":1")).name
        finally:
            os._exit(0 if name == first.name else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 2 == token_registry.server.count("GET", "/token") - before


# --------------------------------------------------------------------------------------------------------------- the whole way


@pytest.fixture
def machine(tmp_path: Path, open_registry: RunningRegistry) -> Machine:
    """A host that is configured for the open registry."""
    extra = f'[sources.oci]\nplain_http = ["{open_registry.host}"]\nrevalidate_after = "0s"\nplatform = "linux/amd64"'
    return Machine.make(tmp_path, extra=extra)


def push_as(layout: str, pusher: Pusher, content: bytes) -> None:
    if layout == "artifact":
        pusher.artifact("1", content)
    else:
        pusher.containerdisk("1", disk_layer(content, compression="gzip"), media_type=f"{OCI_TAR}+gzip")


@pytest.mark.parametrize("layout", ["artifact", "containerdisk"])
@pytest.mark.parametrize(("write", "suffix"), [(write_raw, ".raw"), (write_qcow2, ".qcow2")])
def test_an_image_is_cached_by_its_format_with_one_transfer(
    machine: Machine, pusher: Pusher, layout: str, write: Callable[..., None], suffix: str
) -> None:
    write(machine.root / "disk", size=16 * MIB, message="from a registry", payload=MIB)
    content = (machine.root / "disk").read_bytes()
    push_as(layout, pusher, content)

    image = machine.host().ensure(ref_to(pusher))

    assert suffix == image.path.suffix
    assert content == image.path.read_bytes()
    assert image.record is not None
    assert image.record.version_id.startswith(f"oci://{pusher.url.removeprefix('http://')}/{pusher.repository}@sha256:")
    again = machine.call("fetch", ref_to(pusher), "--json").json
    assert (str(image.path), "revalidated") == (again["image"]["path"], again["reason"]["code"])


def test_a_precache_transfers_once_and_a_digest_is_not_asked_for_again(machine: Machine, pusher: Pusher) -> None:
    write_raw(machine.root / "disk", size=16 * MIB, message="from a registry", payload=MIB)
    digest = pusher.artifact("1", (machine.root / "disk").read_bytes())

    first, second = (machine.call("precache", ref_to(pusher), "--json") for _ in range(2))
    pusher.remove_manifest(digest)
    by_digest = machine.call("fetch", ref_to(pusher, f"@{digest}"), "--json").json

    assert (0, 0) == (first.status, second.status)
    assert "hit" == by_digest["reason"]["code"]


def test_a_damaged_layer_leaves_nothing_behind(machine: Machine, pusher: Pusher, open_registry: RunningRegistry) -> None:
    write_raw(machine.root / "disk", size=16 * MIB, message="from a registry", payload=MIB)
    pusher.containerdisk("1", disk_layer((machine.root / "disk").read_bytes()))
    [layer] = pusher.layers("1")
    file = open_registry.blob_file(layer["digest"])
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1  # behind the disk
    file.write_bytes(content)

    failed = machine.call("fetch", ref_to(pusher), "--json")

    assert "digest-mismatch" == failed.error["code"]
    assert [] == [path for path in machine.base.iterdir() if path.name != ".underlay"]
