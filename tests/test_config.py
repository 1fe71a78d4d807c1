"""The configuration: every key, every way to get one wrong, and which file is read."""

import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from machine import command_line, run
from underlay.config import Config, Follow, embedded_config, for_command_line, load_config, parse_config
from underlay.config.environment import of_programs_that_keep_logins
from underlay.errors import ConfigError
from underlay.naming import CacheKind
from underlay.plan import Rules
from underlay.policy.retry import Retries
from underlay.web import Web

ORIGIN = Path("/etc/underlay/underlay.toml")
CACHE = '[caches.base]\nkind = "base"\npath = "/srv/base"\n'


def parsed(text: str) -> Config:
    return parse_config(text, origin=ORIGIN)


# ----------------------------------------------------------------------------------------------------------------------- keys


def test_one_cache_is_all_that_a_configuration_needs() -> None:
    config = parsed(CACHE)

    assert (ORIGIN, Path("/var/lib/nova/instances"), True) == (config.origin, config.instances, config.use_cow_images)
    assert ["base"] == list(config.caches)
    store = config.caches["base"]
    assert (Path("/srv/base"), CacheKind.BASE, True, True) == (store.root, store.kind, store.force_raw, store.validation)
    assert (10 << 40, None, "nova-") == (store.virtual_size_limit, store.nova_locks, store.nova_lock_prefix)
    http = {"revalidate_after": 300.0, "stale_if_error": True, "web": Web()}
    assert [http, http, {"allowed_paths": ()}] == [config.sources[scheme] for scheme in ("http", "https", "file")]
    oci = {"revalidate_after": 300.0, "stale_if_error": True, "plain_http": frozenset(), "platform": None, "web": Web()}
    assert oci == {key: value for key, value in config.sources["oci"].items() if key not in ("auth_files", "environment")}
    expected = {"http": http, "https": http, "file": {"allowed_paths": ()}}
    assert expected == {scheme: config.sources[scheme] for scheme in expected}
    streams = {**http, "keyrings": (), "require_signature": True}
    assert streams == config.sources["simplestreams"]
    assert Web() == config.web
    assert ((), True) == (config.keyrings, config.require_signature)


def test_every_key_has_its_effect() -> None:
    config = parsed(
        """
        [instances]
        path = "/srv/instances"
        lock_prefix = "other-"
        [caches.second]
        kind = "masters"
        path = "/srv/masters"
        force_raw_images = true
        validation = false
        virtual_size_limit = "1TiB"
        [caches.base]
        kind = "base"
        path = "/srv/instances/_base"
        nova_locks = "/run/locks"
        force_raw_images = false
        [sources.http]
        revalidate_after = "1h"
        connect_timeout = "1.5s"
        stale_if_error = false
        read_timeout = "2min"
        low_speed_limit = "8KiB"
        low_speed_time = "30s"
        parallel = 4
        ca_file = "/etc/ca.pem"
        client_cert = "/etc/client.pem"
        client_key = "/etc/client.key"
        [sources.file]
        allowed_paths = ["/srv/images", "/media"]
        [checksums]
        keyrings = ["/usr/share/keyrings/debian-role-keys.gpg", "/etc/underlay/ours.asc"]
        require_signature = false
        [sources.oci]
        revalidate_after = "2h"
        stale_if_error = false
        plain_http = ["LOCALHOST:5000", "registry.local:443"]
        platform = "linux/arm64/v8"
        auth_file = "/etc/underlay/registries.json"
        [disks]
        use_cow_images = false
        """
    )

    assert (Path("/srv/instances"), False) == (config.instances, config.use_cow_images)
    assert (Path("/usr/share/keyrings/debian-role-keys.gpg"), Path("/etc/underlay/ours.asc")) == config.keyrings
    assert config.require_signature is False
    assert ["second", "base"] == list(config.caches)
    second, base = config.caches.values()
    assert (CacheKind.MASTERS, True, False, 1 << 40) == (
        second.kind,
        second.force_raw,
        second.validation,
        second.virtual_size_limit,
    )
    assert (Path("/run/locks"), "other-", False) == (base.nova_locks, base.nova_lock_prefix, base.force_raw)
    web = Web(
        connect_timeout=1.5,
        read_timeout=120.0,
        low_speed_limit=8 << 10,
        low_speed_time=30.0,
        parallel=4,
        ca_file="/etc/ca.pem",
        client_cert="/etc/client.pem",
        client_key="/etc/client.key",
    )
    assert web == config.web
    http = {"revalidate_after": 3600.0, "stale_if_error": False, "web": web}
    assert http == config.sources["http"] == config.sources["https"]
    assert (Path("/srv/images"), Path("/media")) == config.sources["file"]["allowed_paths"]
    assert {
        "revalidate_after": 7200.0,
        "stale_if_error": False,
        "plain_http": frozenset({"localhost:5000", "registry.local"}),
        "platform": "linux/arm64/v8",
        "auth_files": (Path("/etc/underlay/registries.json"),),
        "environment": of_programs_that_keep_logins,
        "web": web,
    } == config.sources["oci"]


@pytest.mark.parametrize(
    ("environment", "files"),
    [
        ({}, ["/home/u/.config/containers/auth.json", "/home/u/.docker/config.json"]),
        (
            {"REGISTRY_AUTH_FILE": "/a.json", "XDG_RUNTIME_DIR": "/run/user/1", "DOCKER_CONFIG": "/d", "XDG_CONFIG_HOME": "/c"},
            ["/a.json", "/run/user/1/containers/auth.json", "/c/containers/auth.json", "/d/config.json"],
        ),
        ({"XDG_RUNTIME_DIR": "relative"}, ["/home/u/.config/containers/auth.json", "/home/u/.docker/config.json"]),
    ],
)
def test_logins_of_registries_are_looked_for_where_podman_and_docker_have_them(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], files: list[str]
) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/u", **environment}.items():
        monkeypatch.setenv(name, value)

    assert [Path(file) for file in files] == list(parsed(CACHE).sources["oci"]["auth_files"])


@pytest.mark.parametrize(("kind", "forced"), [("base", True), ("masters", False)])
def test_raw_images_are_forced_as_nova_and_ironic_do(kind: str, *, forced: bool) -> None:
    assert forced is parsed(f'[caches.a]\nkind = "{kind}"\npath = "/srv/a"').caches["a"].force_raw


@pytest.mark.parametrize(
    ("path", "kind", "nova_locks", "expected"),
    [
        ("/var/lib/nova/instances/_base", "base", "true", "/var/lib/nova/instances/locks"),
        ("/var/lib/nova/instances/other", "base", "true", "/var/lib/nova/instances/locks"),
        ("/var/lib/nova/instances/_base", "base", "false", None),
        ("/var/lib/nova/instances/_base", "base", '"/run/locks"', "/run/locks"),
        ("/var/lib/nova/instances/_base/deeper", "base", "true", None),
        ("/var/lib/nova/instances/masters", "masters", "true", None),
        ("/srv/base", "base", "true", None),
        ("/srv/base", "base", '"/run/locks"', "/run/locks"),
    ],
)
def test_novas_locks_are_found_where_nova_has_them(path: str, kind: str, nova_locks: str, expected: str | None) -> None:
    config = parsed(f'[caches.a]\nkind = "{kind}"\npath = "{path}"\nnova_locks = {nova_locks}')

    assert (None if expected is None else Path(expected)) == config.caches["a"].nova_locks


def test_a_command_may_fetch_what_its_user_can_read_beside_what_is_allowed_anyhow() -> None:
    config = parsed(CACHE + '[sources.file]\nallowed_paths = ["/srv"]')
    files = for_command_line(config).sources["file"]
    assert ((Path("/srv"),), (Path("/srv"), Path("/"))) == (config.sources["file"]["allowed_paths"], files["allowed_paths"])
    assert config.sources["http"] == for_command_line(config).sources["http"]


def test_a_command_keeps_to_the_allowed_paths_where_it_is_told_to() -> None:
    config = parsed(CACHE + '[sources.file]\nallowed_paths = ["/srv"]\ncommand_line = false')
    assert config == for_command_line(config)


def test_the_embedded_default_keeps_all_below_one_directory(tmp_path: Path) -> None:
    config = embedded_config(tmp_path)

    assert None is config.origin
    assert {"base": tmp_path / "base", "masters": tmp_path / "masters"} == {n: s.root for n, s in config.caches.items()}
    assert [CacheKind.BASE, CacheKind.MASTERS] == [store.kind for store in config.caches.values()]
    assert tmp_path / "instances" == config.instances
    assert {"allowed_paths": (Path("/"),)} == config.sources["file"]
    assert [] == list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[caches.base", "no TOML"),
        ("a = 1\na = 2", "no TOML"),
        ("", "caches: no cache is configured"),
        ("[caches]", "caches: no cache is configured"),
        (CACHE + "[other]\n", "unknown field `other`"),
        (CACHE + '[sources.oci]\nplatform = "arm64"', "sources.oci.platform: 'arm64' is no platform"),
        (CACHE + '[sources.oci]\nplain_http = ["http://localhost"]', "sources.oci.plain_http: 'http://localhost' is no host"),
        (CACHE + '[sources.oci]\nauth_file = "auth.json"', "sources.oci.auth_file: 'auth.json' is not a plain absolute path"),
        ("name = 1\n" + CACHE, "unknown field `name`"),
        ("host = 1\n" + CACHE, "Expected `str | null`, got `int` - at `$.host`"),
        (CACHE + "pth = 1", "unknown field `pth`"),
        (CACHE + 'nova_locks = "/srv"\n', "caches.base.nova_locks: /srv holds"),
        (CACHE + "[instances]\nname = 1", "unknown field `name`"),
        (CACHE + "[sources.http]\nretries = 1", "unknown field `retries`"),
        (CACHE + "[sources.gopher]\n", "unknown field `gopher`"),
        (CACHE + "[sources.file]\npaths = []", "unknown field `paths`"),
        (CACHE + "[disks]\nbackend = 'flat'", "unknown field `backend`"),
        ('[caches.base]\nkind = "base"', "missing required field `path`"),
        ('[caches.base]\npath = "/srv/base"', "missing required field `kind`"),
        ('[caches.base]\nkind = "bass"\npath = "/srv/base"', "bass"),
        ('[caches.base]\nkind = "base"\npath = 5', "Expected `str`, got `int`"),
        (CACHE + 'force_raw_images = "yes"', "Expected `bool"),
        (CACHE + "validation = 1", "Expected `bool"),
        (CACHE + "virtual_size_limit = true", "got `bool`"),
        (CACHE + "[disks]\nuse_cow_images = 1", "Expected `bool"),
        (CACHE + "[sources.file]\nallowed_paths = '/srv'", "Expected `array`"),
        ("caches = []", "Expected `object`, got `array`"),
    ],
)
def test_what_is_no_configuration_is_told_in_one_line_with_the_file_and_the_key(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(text)

    assert refused.value.message.startswith(str(ORIGIN))
    assert told in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "value", ["relative", "./relative", "", "~/base", "/srv/../base", "//srv/base", "/srv/a\\u0000b", "/srv/a\\nb"]
)
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("instances.path", CACHE + '[instances]\npath = "{}"'),
        ("caches.base.path", '[caches.base]\nkind = "base"\npath = "{}"'),
        ("caches.base.nova_locks", CACHE + 'nova_locks = "{}"'),
        ("sources.http.ca_file", CACHE + '[sources.http]\nca_file = "{}"'),
        ("sources.file.allowed_paths", CACHE + '[sources.file]\nallowed_paths = ["/srv", "{}"]'),
        ("sources.glance.direct_locations", CACHE + '[sources.glance]\ndirect_locations = ["{}"]'),
        ("sources.glance.certificates", CACHE + '[sources.glance]\ncertificates = "{}"'),
        ("checksums.keyrings", CACHE + '[checksums]\nkeyrings = ["/etc/ours.gpg", "{}"]'),
    ],
)
def test_a_path_that_is_not_plain_and_absolute_is_refused_with_its_key(key: str, text: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{ORIGIN}: {key}: .*plain absolute path"):
        parsed(text.format(value))


@pytest.mark.parametrize("value", ["10", '"10"', '"10 parsecs"', '"-1GiB"', '"much"', '""', "-1"])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("caches.base.virtual_size_limit", CACHE + "virtual_size_limit = {}"),
        ("sources.http.revalidate_after", CACHE + "[sources.http]\nrevalidate_after = {}"),
        ("sources.http.connect_timeout", CACHE + "[sources.http]\nconnect_timeout = {}"),
        ("sources.http.read_timeout", CACHE + "[sources.http]\nread_timeout = {}"),
    ],
)
def test_a_size_or_a_duration_without_its_unit_is_refused_with_its_key_and_an_example(key: str, text: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{ORIGIN}: {key}: ") as refused:
        parsed(text.format(value))

    assert refused.value.hint is not None
    assert any(example in refused.value.hint for example in ("20GiB", "7d", "use one of"))


@pytest.mark.parametrize("key", ["connect_timeout", "read_timeout"])
def test_no_time_at_all_is_no_timeout(key: str) -> None:
    with pytest.raises(ConfigError, match=f"sources.http.{key}"):
        parsed(CACHE + f'[sources.http]\n{key} = "0s"')


def test_glance_is_where_the_cloud_says_unless_the_configuration_does() -> None:
    nothing = {"cloud": None, "region": None, "interface": None, "endpoints": (), "allow_md5": False, "direct_locations": ()}
    assert nothing | {"certificates": None, "web": Web()} == parsed(CACHE).sources["glance"]
    text = """
        [sources.glance]
        cloud = "ours"
        region = "RegionOne"
        interface = "internal"
        endpoints = ["https://glance.example.org/image", "http://10.0.0.1:9292"]
        allow_md5 = true
        direct_locations = ["/var/lib/glance/images"]
        verify_signatures = true
        certificates = "/etc/underlay/publishers"
    """
    expected = {
        "cloud": "ours",
        "region": "RegionOne",
        "interface": "internal",
        "endpoints": ("https://glance.example.org/image", "http://10.0.0.1:9292"),
        "allow_md5": True,
        "direct_locations": (Path("/var/lib/glance/images"),),
        "certificates": Path("/etc/underlay/publishers"),
        "web": Web(),
    }
    assert expected == parsed(CACHE + text).sources["glance"]
    unasked = parsed(CACHE + text.replace("verify_signatures = true", "")).sources["glance"]
    assert unasked["certificates"] is None


@pytest.mark.parametrize(
    "url", ["", "host:9292", "ftp://host", "http://", "http://host:0", "http://host:port", "http://u:secret@host", "http://h?x"]
)
def test_an_endpoint_that_is_no_plain_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=f"{ORIGIN}: sources.glance.endpoints: ") as refused:
        parsed(CACHE + f'[sources.glance]\nendpoints = ["{url}"]')
    assert "secret" not in refused.value.message


def test_signatures_need_the_certificates_of_those_who_sign() -> None:
    with pytest.raises(ConfigError, match=r"sources\.glance\.verify_signatures") as refused:
        parsed(CACHE + "[sources.glance]\nverify_signatures = true")
    assert "certificates" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["../x", "a b", ".x", "-x", ""])
def test_a_cache_needs_a_plain_name(name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a cache"):
        parsed(f'[caches."{name}"]\nkind = "base"\npath = "/srv/base"')


# ------------------------------------------------------------------------------------------------------------- who needs what


def test_a_host_that_says_nothing_prunes_as_nova_does_and_asks_no_inventory() -> None:
    config = parsed(CACHE)

    assert (socket.gethostname(), (), "none", (), {}) == (
        config.host,
        config.hosts,
        config.inventory,
        config.extra_roots,
        config.leases,
    )
    assert {"base": Rules()} == config.rules
    rules = config.rules["base"]
    assert (True, 86400.0, 3600.0, 86400.0, 900.0) == (
        rules.remove_unused,
        rules.original_age,
        rules.resized_age,
        rules.leftover_age,
        rules.keep_recent,
    )
    assert (None, None, None) == (rules.max_size, rules.free_low, rules.free_high)
    assert (None, {}, 1) == (config.default_ephemeral_format, config.virt_mkfs, config.precache_concurrency)


def test_every_key_about_usage_and_pruning_has_its_effect() -> None:
    config = parsed(
        """
        host = "node1"
        precache_concurrency = 4
        [instances]
        inventory = "openstack:cloud"
        hosts = ["node1", "node2"]
        extra_roots = ["/srv/more"]
        [caches.base]
        kind = "base"
        path = "/srv/base"
        remove_unused_base_images = false
        remove_unused_original_minimum_age_seconds = 7
        remove_unused_resized_minimum_age_seconds = 0
        leftover_minimum_age = "2h"
        keep_recent = "0s"
        max_size = "20GiB"
        free_low = "1GiB"
        free_high = "2GiB"
        lease_on_fetch = "1h"
        [disks]
        default_ephemeral_format = "xfs"
        virt_mkfs = ["windows=mkfs.ntfs %(target)s", "default=mkfs.ext4 -L a=b %(target)s", "windows=mkfs.vfat"]
        """
    )

    assert ("node1", ("node1", "node2"), 4) == (config.host, config.hosts, config.precache_concurrency)
    assert ("openstack:cloud", (Path("/srv/more"),)) == (config.inventory, config.extra_roots)
    gib = 1 << 30
    assert {
        "base": Rules(
            remove_unused=False,
            original_age=7.0,
            resized_age=0.0,
            leftover_age=7200.0,
            keep_recent=0.0,
            max_size=20 * gib,
            free_low=gib,
            free_high=2 * gib,
        )
    } == config.rules
    assert {"base": 3600.0} == config.leases
    assert "xfs" == config.default_ephemeral_format
    assert {"windows": "mkfs.vfat", "default": "mkfs.ext4 -L a=b %(target)s"} == config.virt_mkfs


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('host = ""\n' + CACHE, None),
        ('host = "a/b"\n' + CACHE, "host: "),
        ('host = ".."\n' + CACHE, "host: "),
        ("precache_concurrency = 0\n" + CACHE, "precache_concurrency"),
        (CACHE + '[instances]\nhosts = ["a b"]', "instances.hosts: "),
        (CACHE + '[instances]\ninventory = ""', "instances.inventory: "),
        (CACHE + '[instances]\ninventory = "libvirt"', "instances.inventory: "),
        (CACHE + '[instances]\nextra_roots = ["relative"]', "instances.extra_roots: "),
        (CACHE + "remove_unused_original_minimum_age_seconds = -1", "remove_unused_original_minimum_age_seconds"),
        (CACHE + 'remove_unused_resized_minimum_age_seconds = "1h"', "remove_unused_resized_minimum_age_seconds"),
        (CACHE + "leftover_minimum_age = 3600", "caches.base.leftover_minimum_age: "),
        (CACHE + 'keep_recent = "15"', "caches.base.keep_recent: "),
        (CACHE + 'max_size = "20"', "caches.base.max_size: "),
        (CACHE + 'free_low = "1GiB"', "caches.base.free_low: "),
        (CACHE + 'free_high = "1GiB"', "caches.base.free_low: "),
        (CACHE + 'free_low = "2GiB"\nfree_high = "1GiB"', "caches.base.free_low: "),
        (CACHE + 'lease_on_fetch = "0s"', "caches.base.lease_on_fetch: "),
        (CACHE + '[disks]\nvirt_mkfs = ["mkfs.ext4"]', "disks.virt_mkfs: "),
    ],
)
def test_what_a_key_about_usage_or_pruning_cannot_be_is_refused_with_the_key(text: str, told: str | None) -> None:
    if told is None:  # an empty name is none: the system's counts
        assert socket.gethostname() == parsed(text).host
        return
    with pytest.raises(ConfigError, match=re.escape(told)):
        parsed(text)


def test_the_embedded_default_leases_what_is_fetched_into_its_base(tmp_path: Path) -> None:
    assert {"base": 7 * 86400.0} == embedded_config(tmp_path).leases


def test_streams_are_signed_by_the_keys_that_are_named() -> None:
    table = '[sources.simplestreams]\nrevalidate_after = "1h"\nkeyrings = ["/etc/a.gpg"]\nrequire_signature = false\n'

    streams = parsed(CACHE + table).sources["simplestreams"]

    told = (streams["revalidate_after"], streams["keyrings"], streams["require_signature"])
    assert (3600.0, (Path("/etc/a.gpg"),), False) == told
    with pytest.raises(ConfigError, match=r"sources\.simplestreams\.keyrings"):
        parsed(f'{CACHE}[sources.simplestreams]\nkeyrings = ["a.gpg"]\n')


# ----------------------------------------------------------------------------------------------------------- what is followed


def test_nothing_is_followed_unless_it_is_said() -> None:
    assert Follow() == parsed(CACHE).follow


def test_each_ref_is_followed_once() -> None:
    refs = ["https://example.org/a.img", "https://EXAMPLE.org:443/a.img", "file:///srv/b.img"]

    follow = parsed(CACHE + f'[follow]\nrefs = {refs}\ncache = "base"\nkeep = 0\nmax_age = "2h"\n').follow

    assert ["https://example.org/a.img", "file:///srv/b.img"] == [ref.canonical for ref in follow.refs]
    assert ("base", 0, 7200.0) == (follow.cache, follow.keep, follow.max_age)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('refs = ["nonsense"]', r"follow\.refs: 'nonsense' is no image ref"),
        ('cache = "none"', r"follow\.cache: there is no cache 'none'"),
        ("keep = -1", r"keep"),
        ('max_age = "5"', r"follow\.max_age"),
        ("max_age = 5", r"follow\.max_age"),
    ],
)
def test_what_cannot_be_followed_is_told_with_its_key(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(f"{CACHE}[follow]\n{line}\n")


# --------------------------------------------------------------------------------------------------------------- directories


def test_two_caches_never_share_a_directory() -> None:
    with pytest.raises(ConfigError, match=r"caches\.other\.path: /srv/base is caches\.base\.path already"):
        parsed(CACHE + '[caches.other]\nkind = "masters"\npath = "/srv/base/"')


def test_the_instances_path_is_no_cache() -> None:
    with pytest.raises(ConfigError, match=r"caches\.base\.path: /srv/base is instances\.path already"):
        parsed(CACHE + '[instances]\npath = "/srv/base"')


@pytest.mark.parametrize("prefix", ["../", "a/b", "\\u0000"])
def test_a_prefix_of_lock_names_stays_in_its_directory(prefix: str) -> None:
    with pytest.raises(ConfigError, match="lock_prefix"):
        parsed(CACHE + f'[instances]\nlock_prefix = "{prefix}"')


@given(st.text(alphabet="[]={}.\"'\n#0123456789abcdehinopstuv/_- \\\0\x1f\ud7ff", max_size=80))
def test_any_text_is_a_configuration_or_a_configuration_error(text: str) -> None:
    with suppress(ConfigError):
        parsed(text)


# ------------------------------------------------------------------------------------------------------------- which file it is


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home; nothing in the environment names a configuration."""
    for variable in ("UNDERLAY_CONFIG", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CACHE)
    return path


def test_the_named_file_comes_before_the_environments_and_that_before_the_users(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = write(home / ".config" / "underlay" / "underlay.toml")
    assert users == load_config().origin

    xdg = write(home / "xdg" / "underlay" / "underlay.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    assert xdg == load_config().origin

    environments = write(home / "environments.toml")
    monkeypatch.setenv("UNDERLAY_CONFIG", str(environments))
    assert environments == load_config().origin

    named = write(home / "named.toml")
    assert named == load_config(named).origin


@pytest.mark.component("root", "tmpfs")
def test_the_systems_file_comes_before_the_users(home: Path) -> None:
    system, users = home / "system.toml", home / ".config" / "underlay" / "underlay.toml"
    for name, path in (("system", system), ("users", users)):
        (home / name).mkdir()
        write(path).write_text(f'[caches.{name}]\nkind = "base"\npath = "{home}/{name}"\n')
    script = 'mount -t tmpfs tmpfs /etc && mkdir /etc/underlay && cp "$0" /etc/underlay/underlay.toml && shift && exec "$@"'
    hidden = ["unshare", "--mount", "sh", "-ec", script, str(system), "--"]

    with_both = run([*hidden, *command_line(["du", "--json"])])
    named = run([*hidden, *command_line(["--config", str(users), "du", "--json"])])

    assert ["system"] == [cache["name"] for cache in with_both.json["caches"]]
    assert ["users"] == [cache["name"] for cache in named.json["caches"]]


def test_without_any_file_there_is_the_embedded_default(home: Path) -> None:
    assert None is load_config().origin


def test_a_relative_base_directory_is_ignored_as_its_specification_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "xdg" / "underlay" / "underlay.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "xdg")
    monkeypatch.chdir(home)

    assert None is load_config().origin


@pytest.mark.parametrize("kind", ["missing", "directory", "not UTF-8"])
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_named_file_that_cannot_be_read_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch, way: str, kind: str) -> None:
    path = home / "named.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "not UTF-8":
        path.write_bytes(b"\xff\xfe")
    monkeypatch.setenv("UNDERLAY_CONFIG", str(path))

    with pytest.raises(ConfigError, match=str(path)):
        load_config(path if way == "argument" else None)


NEW_USER = 12345


@pytest.fixture
def users_home(short_directory: Path) -> Path:
    short_directory.chmod(0o755)
    home = short_directory / "home"
    home.mkdir()
    os.chown(home, NEW_USER, NEW_USER)
    return home


def environment(**variables: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **variables}


@pytest.mark.component("root")
def test_a_users_own_file_that_it_may_not_read_is_an_error_too(users_home: Path) -> None:
    write(users_home / ".config" / "underlay" / "underlay.toml").chmod(0o600)

    ended = run(command_line(["list"], user=NEW_USER), env=environment(HOME=str(users_home)))

    assert 16 == ended.status
    assert "underlay.toml cannot be read: Permission denied" in ended.err


@pytest.mark.component("root")
@pytest.mark.parametrize("variable", ["HOME", "XDG_DATA_HOME"])
def test_a_user_without_a_configuration_has_all_in_its_data_directory(users_home: Path, variable: str) -> None:
    (users_home.parent / "image.raw").write_bytes(b"an image" * 512)
    data = users_home / ".local" / "share" / "underlay" if variable == "HOME" else users_home / "underlay"
    env = environment(**{variable: str(users_home)})

    before = run(command_line(["list"], user=NEW_USER), env=env)
    assert (0, "No images.\n") == (before.status, before.out)
    assert [] == list(users_home.iterdir())
    fetched = run(command_line(["fetch", f"file://{users_home.parent}/image.raw", "--json"], user=NEW_USER), env=env)
    listed = run(command_line(["list", "--json"], user=NEW_USER), env=env)

    assert 0 == fetched.status, fetched.err
    assert str(data / "base") == fetched.json["image"]["cache"]
    assert [fetched.json["image"]["path"]] == [image["path"] for image in listed.json["images"]]
    assert {"base", "instances", "masters"} == set(os.listdir(data))
    assert {NEW_USER} == {path.stat().st_uid for path in data.iterdir()}


@pytest.mark.component("root")
def test_a_user_without_a_home_is_told_what_to_set() -> None:
    ended = run(command_line(["list"], user=NEW_USER), env=environment())

    assert (16, 1) == (ended.status, ended.err.count("\n"))
    assert "HOME" in ended.err


# --------------------------------------------------------------------------------------------------------------- credentials


def with_credentials(tmp_path: Path, text: str, *, mode: int = 0o600) -> Config:
    file = tmp_path / "credentials.toml"
    file.write_text(text)
    file.chmod(mode)
    return parsed(CACHE + f'[sources.http]\ncredentials_file = "{file}"\n')


def test_credentials_are_by_host_and_port_in_any_case(tmp_path: Path) -> None:
    config = with_credentials(
        tmp_path, '["Images.example.org"]\nuser = "tux"\npassword = "s3cret"\n["[::1]:8443"]\ntoken = "t0ken"\n'
    )
    assert ["images.example.org", "[::1]:8443"] == list(config.web.credentials)
    tux, token = config.web.credentials.values()
    assert ("Basic dHV4OnMzY3JldA==", "Bearer t0ken") == (tux.header, token.header)
    assert f"for Images.example.org in {tmp_path}/credentials.toml" == tux.origin


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('["a"]\nuser = "tux"\ntoken = "s3cret"', "needs a user with a password, or a token"),
        ('["a"]\npassword = "s3cret"', "needs a user"),
        ('["a"]\ntoken = "t"\npassword = "s3cret"', "needs a user"),
        ('["a"]', "needs a user"),
        ('["a"]\nuser = "t:x"\npassword = "s3cret"', "has a colon"),
        ('["https://a/"]\ntoken = "s3cret"', "is no host"),
        ('["a"]\npasswort = "s3cret"', "unknown field"),
        ('["a"]\ntoken = 5', "Expected `str | null`"),
        ('a = "s3cret"', "Expected `object`"),
        ('["a"]\ntoken = s3cret', "is no TOML"),
    ],
)
def test_what_are_no_credentials_is_told_without_telling_them(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        with_credentials(tmp_path, text).web.check_usable()
    assert told in refused.value.message
    assert "credentials.toml" in refused.value.message
    assert "s3cret" not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_credentials_that_others_may_read_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="may be read by others") as refused:
        with_credentials(tmp_path, "", mode=mode).web.check_usable()
    assert f"chmod 600 {tmp_path}/credentials.toml" == refused.value.hint


def test_credentials_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        parsed(CACHE + f'[sources.http]\ncredentials_file = "{tmp_path}/absent"\n').web.check_usable()


def test_a_client_key_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sources\.http\.client_key"):
        parsed(CACHE + '[sources.http]\nclient_key = "/etc/key.pem"\n')


# ------------------------------------------------------------------------------------------------------------------- proxies


PROXY_VARIABLES = ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "HTTP_PROXY")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("environment", "proxies"),
    [
        ({}, {}),
        ({"http_proxy": "http://p:1"}, {"http": "http://p:1"}),
        ({"http_proxy": "p:1"}, {"http": "http://p:1"}),
        ({"HTTP_PROXY": "http://evil:1"}, {}),
        ({"HTTPS_PROXY": "http://p:1"}, {"https": "http://p:1"}),
        ({"https_proxy": "http://q:1", "HTTPS_PROXY": "http://p:1"}, {"https": "http://q:1"}),
        ({"all_proxy": "http://p:1", "http_proxy": "http://q:1"}, {"http": "http://q:1", "https": "http://p:1"}),
        ({"http_proxy": ""}, {}),
    ],
)
def test_the_proxies_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], proxies: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "localhost, .example.org,,")
    assert (proxies, ("localhost", ".example.org")) == (parsed(CACHE).web.proxies, parsed(CACHE).web.no_proxy)
    assert {} == parsed(CACHE + "[sources.http]\nuse_proxies = false").web.proxies


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("url", ["socks5://tux:s3cret@p:1", "http://tux:s3cret@p:x", "http://", "ftp://s3cret@p"])
def test_what_is_no_proxy_is_told_without_telling_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("https_proxy", url)
    web = parsed(CACHE).web  # which is no matter to a command that needs no network
    with pytest.raises(ConfigError, match="proxy for https") as refused:
        web.document("a thing", "https://host.invalid/", limit=1)
    assert "s3cret" not in f"{refused.value} {refused.value.hint}"


def test_how_often_a_transfer_is_tried_again_is_configured() -> None:
    assert Retries(attempts=4, first_wait=0.5, longest_wait=30.0) == parsed(CACHE).retries
    table = '[transfer]\nattempts = 9\nfirst_wait = "2s"\nlongest_wait = "1min"\n'
    assert Retries(attempts=9, first_wait=2.0, longest_wait=60.0) == parsed(CACHE + table).retries
    for wrong in ("attempts = 0", 'first_wait = "1h"', 'longest_wait = "soon"'):
        with pytest.raises(ConfigError):
            parsed(CACHE + f"[transfer]\n{wrong}\n")


# ------------------------------------------------------------------------------------------------------------- disk backends


def test_the_options_of_disks_reach_their_backends(tmp_path: Path) -> None:
    disks = """
        [disks]
        preallocate_images = "space"
        hw_disk_discard = "unmap"
        disk_cachemodes = ["file=none", "network=writeback"]
        [disks.flat]
        preallocation = "full"
        [disks.qcow2]
        cluster_size = "128KiB"
    """
    text = f'[caches.base]\nkind = "base"\npath = "{tmp_path}/base"\n{disks}'
    config = parse_config(text, origin=tmp_path / "underlay.toml")

    hints = {"cache_mode": "none", "discard": "unmap"}
    assert {"preallocation": "full", **hints} == config.disks["flat"]
    assert {"preallocation": "falloc", "cluster_bytes": 128 << 10, **hints} == config.disks["qcow2"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('disk_cachemodes = ["file"]', "is no cache mode"),
        ('disk_cachemodes = ["tape=none"]', "is no cache mode"),
        ('disk_cachemodes = ["file=sometimes"]', "is no cache mode"),
        ('preallocate_images = "full"', "preallocate_images"),
        ('hw_disk_discard = "yes"', "hw_disk_discard"),
        ('[disks.qcow2]\ncluster_size = "100KiB"', "no clusters of 102400 bytes"),
        ('[disks.qcow2]\ncluster_size = "4MiB"', "no clusters"),
        ("[disks.qcow2]\ncluster_size = 65536", "cluster_size"),
        ('[disks.qcow2]\ncluster_size = "4KiB"\npreallocation = "metadata"', "cannot be preallocated"),
        ('[disks.flat]\npreallocation = "metadata"', "metadata"),
        ("[disks.tape]\nreels = 2", "tape"),
    ],
)
def test_an_option_of_disks_that_cannot_be_is_told(tmp_path: Path, line: str, why: str) -> None:
    text = f'[caches.base]\nkind = "base"\npath = "{tmp_path}/base"\n[disks]\n{line}\n'

    with pytest.raises(ConfigError, match=why):
        parse_config(text, origin=tmp_path / "underlay.toml")
