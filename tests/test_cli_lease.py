"""``underlay pin``, ``unpin``, ``lease``, ``release``, ``leases`` and ``hosts``."""

import getpass
import json
import re
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from machine import Machine, on_terminal, plain
from pruning import DAY, GLANCE, ORIGINAL, OTHER, nova_host, old_file, verdicts

LEASE_KEYS = {"id", "cache", "holder", "names", "refs", "made_at", "expires"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return nova_host(tmp_path)


def the(answer: Any, key: str = "leases") -> dict[str, Any]:
    (one,) = answer[key]
    assert LEASE_KEYS == one.keys()
    return dict(one)


@pytest.mark.parametrize("text", [ORIGINAL, ORIGINAL[:12], GLANCE, f"glance:{GLANCE}"])
def test_an_image_is_pinned_by_all_that_means_it(machine: Machine, text: str) -> None:
    old_file(machine, ORIGINAL)

    pinned = the(machine.call("pin", text, "--holder", "golden images", "--json").json)

    assert (str(machine.base), "golden images", [ORIGINAL], None) == tuple(
        pinned[key] for key in ("cache", "holder", "names", "expires")
    )
    assert pinned == the(machine.call("leases", "--json").json)


@pytest.mark.parametrize("command", [("pin",), ("lease", "--for", "24h")], ids=["pin", "lease"])
def test_the_name_of_a_followed_refs_holder_is_nobody_elses(machine: Machine, command: tuple[str, ...]) -> None:
    old_file(machine, ORIGINAL)

    refused = machine.call(*command, ORIGINAL, "--holder", "follow:web-1:file:///x", "--json")

    assert "invalid-name" == refused.json["error"]["code"]
    assert "follow:" in refused.json["error"]["message"]
    assert [] == machine.call("leases", "--json").json["leases"]


def test_a_pin_keeps_an_image_until_it_is_unpinned(machine: Machine) -> None:
    path = old_file(machine, ORIGINAL)
    machine.call("pin", ORIGINAL, "--holder", "me")

    for now in (time.time(), time.time() + 1000 * DAY):
        kept = machine.call("prune", "--now", f"{now:.0f}", "--dry-run", "--json").json
        assert ("keep", ["pin"]) == verdicts(kept)[ORIGINAL]
    assert ["me"] == [one["holder"] for one in machine.call("unpin", ORIGINAL, "--holder", "me", "--json").json["released"]]

    assert [] == machine.call("leases", "--json").json["leases"]
    assert (
        "remove"
        == verdicts(machine.call("prune", "--dry-run", "--now", f"{time.time() + 2 * DAY:.0f}", "--json").json)[path.name][0]
    )


@pytest.mark.component("leases")
def test_a_lease_keeps_an_image_for_as_long_as_it_says(machine: Machine) -> None:
    path = old_file(machine, ORIGINAL)

    leased = the(machine.call("lease", ORIGINAL, "--for", "24h", "--json").json)

    expires = datetime.fromisoformat(leased["expires"])
    assert abs(expires - datetime.now(UTC) - timedelta(days=1)) < timedelta(minutes=1)
    assert f"{getpass.getuser()}@{socket.gethostname()}" == leased["holder"]
    assert ("keep", ["lease"]) == verdicts(machine.call("prune", "--json").json)[ORIGINAL]
    after = f"{time.time() + 3 * DAY:.0f}"
    assert [str(path)] == machine.call("prune", "--now", after, "--json").json["removed"]
    assert [leased["id"]] == [one["id"] for one in machine.call("leases", "--json").json["leases"]]  # it has not ended yet


def test_a_lease_is_renewed_and_never_made_shorter(machine: Machine) -> None:
    old_file(machine, ORIGINAL)
    ends = [the(machine.call("lease", ORIGINAL, "--for", length, "--json").json)["expires"] for length in ("2h", "1h", "3h")]

    assert ends[0] == ends[1] < ends[2]


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["pin", ORIGINAL], 2, "usage"),
        (["lease", ORIGINAL], 2, "usage"),
        (["lease", ORIGINAL, "--for", "24"], 13, "invalid-size"),
        (["lease", ORIGINAL, "--for", "0s"], 13, "invalid-size"),
        (["lease", ORIGINAL, "--for", "99999999999d"], 13, "invalid-size"),
        (["pin", ORIGINAL, "--holder", " "], 14, "invalid-name"),
        (["pin", ORIGINAL, "--holder", "a\nb"], 14, "invalid-name"),
        (["pin", OTHER, "--holder", "me"], 40, "not-cached"),
        (["lease", "notes.txt", "--for", "1h"], 40, "not-cached"),
        (["unpin", ORIGINAL, "--holder", "me"], 81, "lease-not-found"),
        (["release", ORIGINAL, "--holder", "me"], 81, "lease-not-found"),
        (["release", "lease-0123456789abcdef"], 81, "lease-not-found"),
        (["hosts", "retire", "node9"], 82, "unknown-host"),
        (["hosts", "retire", "../node9"], 14, "invalid-name"),
    ],
)
def test_what_cannot_be_kept_or_let_go_is_refused(machine: Machine, arguments: list[str], status: int, code: str) -> None:
    old_file(machine, ORIGINAL)

    ended = machine.call(*arguments, "--json")

    assert (status, code) == (ended.status, ended.error["code"])
    assert [] == machine.call("leases", "--json").json["leases"]


def test_a_lease_is_released_by_its_id_or_by_its_image_and_holder(machine: Machine) -> None:
    old_file(machine, ORIGINAL)
    ids = [the(machine.call("lease", ORIGINAL, "--for", "1h", "--holder", who, "--json").json)["id"] for who in ("a", "b", "c")]

    assert ids[0] == the(machine.call("release", ids[0], "--json").json, "released")["id"]
    assert ids[1] == the(machine.call("release", ORIGINAL[:12], "--holder", "b", "--json").json, "released")["id"]
    without_holder = machine.call("release", ORIGINAL, "--json")

    assert (81, "lease-not-found") == (without_holder.status, without_holder.error["code"])
    assert ids[2] == the(machine.call("leases", "--json").json)["id"]


def test_a_lease_and_a_pin_of_one_holder_are_let_go_each_by_itself(machine: Machine) -> None:
    old_file(machine, ORIGINAL)
    machine.call("lease", ORIGINAL, "--for", "1h", "--holder", "me")
    machine.call("pin", ORIGINAL, "--holder", "me")

    assert the(machine.call("release", ORIGINAL, "--holder", "me", "--json").json, "released")["expires"] is not None
    assert the(machine.call("leases", "--json").json)["expires"] is None
    machine.call("lease", ORIGINAL, "--for", "1h", "--holder", "me")
    assert the(machine.call("unpin", ORIGINAL, "--holder", "me", "--json").json, "released")["expires"] is None
    assert the(machine.call("leases", "--json").json)["expires"] is not None


def test_leases_are_listed_for_people(machine: Machine) -> None:
    assert "No leases and no pins.\n" == machine.call("leases").out
    old_file(machine, ORIGINAL)
    taken = machine.call("lease", ORIGINAL, "--for", "3d", "--holder", "nightly tests").out

    lines = machine.call("leases").out.splitlines()

    assert taken.splitlines() == lines
    assert ["ID", "HOLDER", "IMAGES", "ENDS", "CACHE"] == lines[0].split()
    assert ["nightly tests", ORIGINAL[:12], "in 2 d", str(machine.base)] == re.split(r" {2,}", lines[1].strip())[1:]
    status, sent = on_terminal(machine.argv("leases"))
    assert (0, True) == (status, max(map(len, plain(sent).splitlines())) <= 80)
    assert ORIGINAL in machine.call("leases", "--wide").out
    assert re.match(
        r"released lease-\w+ of nightly tests: ", machine.call("release", ORIGINAL, "--holder", "nightly tests").out
    )


def test_images_are_listed_and_shown_with_who_keeps_them(machine: Machine) -> None:
    old_file(machine, ORIGINAL)
    machine.call("pin", ORIGINAL, "--holder", "me")
    machine.call("lease", ORIGINAL, "--for", "1h", "--holder", "you")

    (image,) = machine.call("list", "--json").json["images"]

    assert ["me", "you"] == [lease["holder"] for lease in image["leases"]]
    assert "2" == machine.call("list").out.splitlines()[1].split()[7]
    shown = machine.call("show", ORIGINAL).out
    assert "used by 2 leases" in shown
    assert "pinned by me" in shown
    assert "by you" in shown


def test_a_fetch_says_what_it_leases(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, options='force_raw_images = false\nlease_on_fetch = "7d"')

    fetched = machine.call("fetch", machine.raw_image(), "--json")

    (lease,) = fetched.json["image"]["leases"]
    assert [fetched.json["image"]["name"]] == lease["names"]
    assert "leased" in fetched.err
    again = machine.call("fetch", f"file://{tmp_path}/image.raw").out
    assert re.search(rf"^kept until 20..-..-.. ..:.. UTC by {lease['id']}$", again, re.MULTILINE)


# ----------------------------------------------------------------------------------------------------------------------- hosts


@pytest.fixture
def shared(tmp_path: Path) -> Machine:
    """A host that shares its storage with node2, which said nothing yet, and with node3, which is in Nova's registry only."""
    machine = nova_host(tmp_path)
    machine.config.write_text(machine.config.read_text().replace("[instances]\n", '[instances]\nhosts = ["node1", "node2"]\n'))
    (machine.instances / "compute_nodes").write_text(json.dumps({"node3": 1.0}))
    old_file(machine, ORIGINAL)
    return machine


def test_the_hosts_that_share_a_cache_are_listed(shared: Machine) -> None:
    shared.call("prune")

    hosts = {one["host"]: one for one in shared.call("hosts", "--json").json["hosts"]}
    text = shared.call("hosts").out

    assert ["node1", "node2", "node3"] == list(hosts)
    assert [(True, True, True), (False, True, False), (False, False, True)] == [
        (one["this"], one["declared"], one["registered"]) for one in hosts.values()
    ]
    assert [True, False, False] == [one["said_at"] is not None for one in hosts.values()]
    assert [0, None, None] == [one["images"] for one in hosts.values()]
    for told in ("this host", "silent: nothing goes", "not in instances.hosts"):
        assert told in text


def test_a_host_is_retired(shared: Machine) -> None:
    assert ("keep", ["host-silent"]) == verdicts(shared.call("prune", "--json").json)[ORIGINAL]

    retired = shared.call("hosts", "retire", "node3", "--json")

    assert (0, {"retired": "node3"}) == (retired.status, retired.json)
    assert ["node1", "node2"] == [one["host"] for one in shared.call("hosts", "--json").json["hosts"]]
    assert "no host 'node3'" in shared.call("hosts", "retire", "node3").err


def test_where_nothing_is_shared_there_are_no_hosts(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)

    assert {"hosts": []} == machine.call("hosts", "--json").json
    assert "No other host" in machine.call("hosts").out
