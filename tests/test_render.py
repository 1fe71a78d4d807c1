"""What people and programs see: tables that fit, JSON that says all, lines of a log, bars and plain progress."""

import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace as replace_struct
from rich.console import Group, RenderableType

from underlay import render
from underlay.check import Finding
from underlay.errors import UnknownScheme
from underlay.model import BaseImage, Event, ImageRecord, InstanceDisk, Lease, Level, Problem, Progress, Reason
from underlay.plan import CachedFile, Plan, Report, Unknown, Verdict
from underlay.precache import Precached
from underlay.values import replace

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SHA1 = "5f0f93fd8cb9c3224a4bbadfdf81883162824bc0"
UUID = "6f1b3c0e-3f8e-4a41-9b1e-1c2d3e4f5a6b"
LONG_REF = "https://cloud.example.org/images/cloud/bookworm/20260101-1234/debian-12-generic-amd64.qcow2"

RECORD = ImageRecord(
    layout=1,
    version_id=f"{LONG_REF}#sha256:{64 * 'a'}",
    ref=LONG_REF,
    format="qcow2",
    size=5 << 20,
    virtual_size=20 << 30,
    min_disk=30 << 30,
    digests=(f"sha256:{64 * 'a'}", f"sha512:{128 * 'b'}"),
    stored=f"sha256:{64 * 'c'}",
    as_served=True,
    fetched_at=NOW - timedelta(days=3),
    underlay="0.1.0",
)
IMAGE = BaseImage(
    name=f"{SHA1}.qcow2",
    cache=Path("/var/lib/nova/instances/_base"),
    format="qcow2",
    size=5 << 20,
    virtual_size=20 << 30,
    allocated=999 << 20,
    last_used=NOW - timedelta(minutes=59),
    record=RECORD,
)
DISK = InstanceDisk(
    instance=UUID,
    name="disk",
    path=Path(f"/var/lib/nova/instances/{UUID}/disk"),
    backend="qcow2",
    format="qcow2",
    size=20 << 30,
    allocated=200 << 10,
    base=IMAGE.name,
    base_path=IMAGE.path,
)
ELSEWHERE = replace(DISK, name="root", path=Path("/srv/virtual machines/web/root-disk-of-the-web-server.img"), base="swap_512")


def shown(thing: RenderableType, *, width: int = 10_000) -> str:
    """What is printed on a terminal of this width, without colours."""
    console = render.console(io.StringIO())
    console.width = width
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


# ------------------------------------------------------------------------------------------------------------------------ JSON


def test_an_image_is_told_whole() -> None:
    told = json.loads(json.dumps(render.image_json(IMAGE, [DISK])))

    assert {
        "name": IMAGE.name,
        "path": f"/var/lib/nova/instances/_base/{IMAGE.name}",
        "cache": "/var/lib/nova/instances/_base",
        "recorded": True,
        "ref": LONG_REF,
        "version_id": RECORD.version_id,
        "format": "qcow2",
        "size": 5 << 20,
        "virtual_size": 20 << 30,
        "min_disk": 30 << 30,
        "allocated": 999 << 20,
        "digests": list(RECORD.digests),
        "stored_digest": RECORD.stored,
        "fetched_at": "2026-02-26T12:00:00+00:00",
        "last_used": "2026-03-01T11:01:00+00:00",
        "damage": None,
        "disks": [str(DISK.path)],
        "leases": [],
    } == told


def test_an_unrecorded_image_has_the_same_keys() -> None:
    told = render.image_json(replace(IMAGE, record=None), [])

    assert render.image_json(IMAGE, []).keys() == told.keys()
    assert (False, None, None, None, []) == tuple(
        told[key] for key in ("recorded", "ref", "version_id", "fetched_at", "digests")
    )


def test_a_disk_is_told_whole_and_an_unknown_one_with_the_same_keys() -> None:
    unknown = replace(DISK, format=None, size=None, base=None, base_path=None, backend="unknown")

    told = json.loads(json.dumps([render.disk_json(DISK), render.disk_json(unknown)]))

    assert told[0].keys() == told[1].keys()
    assert (str(DISK.path), 20 << 30, IMAGE.name, str(IMAGE.path)) == tuple(
        told[0][key] for key in ("path", "size", "base", "base_path")
    )
    assert {None} == {told[1][key] for key in ("format", "size", "base", "base_path")}


def test_problems_and_findings_are_told_whole() -> None:
    problem = Problem("not-an-image", Path("/a"), "it is a directory")
    finding = Finding(code="space", level=Level.INFO, path=Path("/b"), detail="room", hint="none needed")

    assert {"code": "not-an-image", "path": "/a", "detail": "it is a directory"} == render.problem_json(problem)
    assert {"code": "space", "level": "info", "path": "/b", "detail": "room", "hint": "none needed"} == render.finding_json(
        finding
    )


# ---------------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (SHA1, "5f0f93fd8cb9"),
        (f"{SHA1}.qcow2", "5f0f93fd8cb9.qcow2"),
        (f"{SHA1}_20", "5f0f93fd8cb9_20"),
        (UUID, "6f1b3c0e-3f8"),
        (f"{UUID}.converted", "6f1b3c0e-3f8.converted"),
        ("swap_512", "swap_512"),
        ("ephemeral_20_0706d66", "ephemeral_20_0706d66"),
        ("-", "-"),
    ],
)
def test_a_name_is_shortened_to_its_beginning_and_what_tells_its_kind(name: str, short: str) -> None:
    assert short == render.short_name(name)


# ----------------------------------------------------------------------------------------------------------------------- tables


KIND = {"kind": "original", "count": 1234, "allocated": 999 << 30, "shared": 999 << 20}
OCCUPIED: list[dict[str, Any]] = [
    {"name": "base", "kind": "base", "path": "/var/lib/nova/instances/_base", "images": 1234, "allocated": 999 << 30}
    | {"shared": 999 << 20, "ingests": 999 << 20, "free": 999 << 30, "own_file_system": True, "kinds": [KIND], "files": None},
    {"name": "a-cache-with-a-long-name", "kind": "masters", "path": "/srv/" + 80 * "x", "images": 0, "allocated": 0}
    | {"shared": 0, "ingests": None, "free": 1, "own_file_system": None, "kinds": [KIND | {"count": 0}]}
    | {"files": [{"name": "a\nb", "kind": "other", "path": "/a", "allocated": 1, "own": None, "links": 1}]},
]
OCCUPIED_BY_DISKS = {"count": 100_000, "allocated": 999 << 40, "shared": 999 << 20, "path": "/var/lib/nova/instances"}
FILE = CachedFile(
    name=f"{SHA1}_20", kind="resized", device=1, inode=2, size=20 << 30, mtime_ns=0, ctime_ns=0, links=1,
    allocated=999 << 20, used_ns=int((NOW - timedelta(days=3)).timestamp()) * 10**9,
)  # fmt: skip
KEPT = Verdict(
    cache="base",
    root=IMAGE.cache,
    file=FILE,
    removes=False,
    refresh=True,
    reasons=(Reason("backing-file", f"backing-file of {DISK.path}"), Reason("young", "younger than 86400 s: 3 h left")),
)
GOING = replace_struct(
    KEPT,
    file=replace_struct(FILE, name="swap_512", kind="swap", allocated=5 << 20),
    removes=True,
    refresh=False,
    reasons=(Reason("unused", "nobody needs it: 3 d since its last use, over 3600 s"),),
)
WHERE = Path("/etc/underlay/underlay.toml")
PLAN = Plan(
    id="1",
    now=NOW,
    verdicts=[KEPT, GOING],
    problems=[Problem("disk-unreadable", Path("/i/a\nb"), "/i/a\nb: no \x1b[31mway")],
    directories={},
    unknowns=[Unknown("host-silent", "node2 has not said what it uses", root=IMAGE.cache), Unknown("disk-unreadable", "x")],
)
REPORT = Report(plan="1", verdicts=[KEPT, GOING], removed=[GOING.path], freed=4 << 20, shortfall=0, problems=PLAN.problems)
PIN = Lease(id="pin-0123456789abcdef", holder="golden images", names=(IMAGE.name,), refs=(), made_at=NOW, expires=None)
LEASES = [PIN, replace(PIN, id="lease-1", expires=NOW + timedelta(hours=2)), replace(PIN, id="lease-2", expires=NOW)]
HOSTS = [
    {"host": name, "cache": "/c", "this": name == "a", "declared": name != "d", "registered": True}
    | {"said_at": None if name == "c" else NOW.isoformat(), "images": None if name == "c" else 3, "complete": name != "e"}
    for name in "abcde"
]
PRECACHED = [
    Precached("https://h/a", "cached", image=IMAGE),
    Precached("gopher://b", "unsupported", error=UnknownScheme("no source", hint="known schemes: file")),
]
FINDINGS = [
    Finding(
        code="rival-active", level=Level.WARNING, path=Path("/" + 70 * "y"), detail="a manager passed 3 min ago", hint="stop it"
    ),
    Finding(code="not-an-image", level=Level.PROBLEM, path=Path("/a"), detail="/a is not a plain file"),
    Finding(code="nova-locks-not-writable", level=Level.INFO, path=Path("/b"), detail="words " * 30),
]
THINGS: dict[str, Callable[[], RenderableType]] = {
    "images": lambda: render.image_table([IMAGE, replace(IMAGE, record=None)], {str(IMAGE.path): 100_000}, now=NOW, wide=False),
    "images, wide": lambda: render.image_table([IMAGE], {}, now=NOW, wide=True),
    "an image": lambda: render.image_tree(IMAGE, [DISK, ELSEWHERE], now=NOW),
    "disks": lambda: render.disk_table([DISK, ELSEWHERE], wide=False),
    "disks, wide": lambda: render.disk_table([DISK, ELSEWHERE], wide=True),
    "bytes": lambda: render.footprint_table(OCCUPIED, OCCUPIED_BY_DISKS),
    "bytes of images": lambda: render.image_footprint_table(OCCUPIED, wide=False),
    "a plan": lambda: Group(*render.plan_tables(PLAN, None, where=WHERE, wide=False)),
    "a report": lambda: Group(*render.plan_tables(PLAN, REPORT, where=WHERE, wide=False)),
    "an explanation": lambda: render.explanation_tree(KEPT, now=NOW),
    "leases": lambda: render.lease_table([(IMAGE.cache, lease) for lease in LEASES], now=NOW, wide=False),
    "hosts": lambda: render.hosts_table(HOSTS, now=NOW),
    "pre-cached images": lambda: render.precached_table(PRECACHED),
    "findings": lambda: render.findings_table(FINDINGS),
}


@pytest.mark.parametrize("width", [40, 80, 100, 132])
@pytest.mark.parametrize("thing", THINGS)
def test_nothing_is_wider_than_the_terminal(thing: str, width: int) -> None:
    assert max(map(len, shown(THINGS[thing](), width=width).splitlines())) <= width


def test_in_eighty_columns_only_the_ref_is_shortened_and_its_end_stays() -> None:
    lines = shown(THINGS["images"](), width=80).splitlines()

    assert ["NAME", "REF", "FORMAT", "ON DISK", "VIRTUAL", "USERS", "LAST USED"] == re.split(r" {2,}", lines[0].strip())
    expected = ["5f0f93fd8cb9.qcow2", "…-amd64.qcow2", "qcow2", "999 MiB", "20.0 GiB", "100000", "59 min ago"]
    assert expected == re.split(r" {2,}", lines[1].strip())
    assert "unrecorded" in lines[2]


def test_in_eighty_columns_a_disks_instance_and_sizes_are_whole() -> None:
    lines = shown(THINGS["disks"](), width=80).splitlines()

    assert lines[1].startswith(UUID)
    assert "20.0 GiB" in lines[1]
    assert "200 KiB" in lines[1]
    assert 3 == len(lines)


def test_in_a_pipe_each_image_and_each_disk_is_one_line_and_nothing_is_left_out() -> None:
    images, disks = shown(THINGS["images"]()).splitlines(), shown(THINGS["disks, wide"]()).splitlines()

    assert 3 == len(images)
    assert LONG_REF in images[1]
    assert 3 == len(disks)
    assert str(DISK.path) in disks[1]
    assert str(ELSEWHERE.path) in disks[2]
    assert IMAGE.name in disks[1]


def test_a_disk_outside_its_instances_directory_is_called_by_its_path() -> None:
    lines = shown(THINGS["disks"]()).splitlines()

    assert [UUID, "disk", "qcow2"] == lines[1].split()[:3]
    assert str(ELSEWHERE.path) in lines[2]


def test_wide_names_are_whole() -> None:
    assert IMAGE.name in shown(THINGS["images, wide"]())
    assert IMAGE.name not in shown(THINGS["images"]())


def test_wide_lines_are_as_long_as_they_are_on_any_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()

    render.console(terminal, wide=True).print(THINGS["images, wide"]())

    assert LONG_REF in terminal.getvalue()
    assert 2 == len(terminal.getvalue().splitlines())


def test_where_there_is_nothing_that_is_said() -> None:
    assert "No images.\n" == shown(render.image_table([], {}, now=NOW, wide=False))
    assert "No disks.\n" == shown(render.disk_table([], wide=False))


@pytest.mark.parametrize(
    ("disks", "told"), [([], "by no disk that"), ([DISK], "by 1 disk\n"), ([DISK, ELSEWHERE], "by 2 disks\n")]
)
def test_an_image_tells_who_uses_it(disks: list[InstanceDisk], told: str) -> None:
    assert f"used {told}" in shown(render.image_tree(IMAGE, disks, now=NOW))


def test_an_image_tells_all_that_is_known_of_it() -> None:
    text = shown(render.image_tree(IMAGE, [], now=NOW))

    assert "2026-02-26 12:00:00 UTC (3 d ago)" in text
    for value in (str(IMAGE.path), LONG_REF, RECORD.version_id, *RECORD.digests, "999 MiB on disk, 20.0 GiB virtual"):
        assert value in text


def test_an_unrecorded_image_says_so() -> None:
    assert "unrecorded" in shown(render.image_tree(replace(IMAGE, record=None), [], now=NOW))


def test_the_weightiest_finding_is_the_last() -> None:
    lines = shown(render.findings_table(FINDINGS)).splitlines()

    assert ["LEVEL", "info", "warning", "problem"] == [line.split()[0] for line in lines]
    assert "(stop it)" in lines[2]
    assert 1 == lines[3].count("/a")


def test_what_cannot_be_told_is_a_question_mark() -> None:
    unknown = replace(DISK, format=None, size=None, base=None, base_path=None, backend="unknown")

    assert " ? " in shown(render.disk_table([unknown], wide=False))
    assert "unrecorded, an unknown size" in shown(render.disk_line(unknown))
    assert re.search(r"ingests .*\?", shown(THINGS["bytes"]()))


@pytest.mark.parametrize(
    "ref", ["https://[fe80::1]/a.img", "https://h/[red]a[/red].img", "https://h/[/b].img", "https://h/:smile:"]
)
def test_brackets_and_colons_in_a_ref_are_no_markup(ref: str) -> None:
    odd = replace(IMAGE, record=replace(RECORD, ref=ref))

    assert ref in shown(render.image_table([odd], {}, now=NOW, wide=False))
    assert ref in shown(render.image_tree(odd, [], now=NOW))


# ------------------------------------------------------------------------------------------------------------- who needs what


def test_a_plan_is_told_as_it_was_decided_with_all_that_could_not_be_told() -> None:
    told = json.loads(render.json_text(render.plan_json(PLAN, None, where=WHERE)))

    assert {
        "cache": "base",
        "name": FILE.name,
        "path": str(IMAGE.cache / FILE.name),
        "kind": "resized",
        "action": "keep",
        "refresh": True,
        "reasons": [{"code": reason.code, "detail": reason.detail} for reason in KEPT.reasons],
        "allocated": 999 << 20,
    } == told["plan"][0]
    assert ["keep", "remove"] == [one["action"] for one in told["plan"]]
    assert ([], 0, 0) == (told["removed"], told["freed"], told["shortfall"])
    assert [
        ("disk-unreadable", "/i/a\nb"),
        ("host-silent", str(IMAGE.cache)),
        ("disk-unreadable", str(WHERE)),
    ] == [(one["code"], one["path"]) for one in told["problems"]]


def test_a_report_is_told_as_it_turned_out() -> None:
    kept = replace_struct(GOING, removes=False, reasons=(Reason("open", "open: a program reads it now"),))
    report = replace(REPORT, verdicts=[KEPT, kept], removed=[], freed=0)

    told = render.plan_json(PLAN, report, where=WHERE)
    text = shown(Group(*render.plan_tables(PLAN, report, where=WHERE, wide=False)))

    assert ("keep", [{"code": "open", "detail": "open: a program reads it now"}]) == (
        told["plan"][1]["action"],
        told["plan"][1]["reasons"],
    )
    assert "REMOVED" not in text
    assert text.splitlines()[-1].startswith("kept 2 files of 1.0 GiB; removed 0 files, freed 0 B")


def test_what_would_go_and_what_stays_can_be_seen_at_a_glance() -> None:
    text = shown(THINGS["a plan"]())

    lines = text.splitlines()
    assert ["WOULD", "GO", "KIND", "ON", "DISK", "WHY"] == lines[0].split()
    assert lines[1].split()[:4] == ["swap_512", "swap", "5.0", "MiB"]
    assert re.search(r"^backing-file +1 +999 MiB +backing-file of /var/lib/nova", text, flags=re.MULTILINE)
    assert re.search(r"^young +1 ", text, flags=re.MULTILINE)
    assert "problem host-silent: node2 has not said" in text
    assert "kept 1 file of 999 MiB; would remove 1 file of 5.0 MiB" == lines[-1]


def test_what_went_is_what_the_report_says_is_gone() -> None:
    assert "removed 1 file of 5.0 MiB, freed 4.0 MiB" in shown(THINGS["a report"]())
    assert "REMOVED" in shown(THINGS["a report"]())


def test_files_of_several_caches_are_told_with_their_cache() -> None:
    plan = replace(PLAN, verdicts=[GOING, replace_struct(GOING, cache="second")])

    lines = shown(Group(*render.plan_tables(plan, None, where=WHERE, wide=False))).splitlines()

    assert ["base", "second"] == [line.split()[1] for line in lines[1:3]]


def test_no_name_breaks_a_line_or_commands_a_terminal() -> None:
    odd = replace_struct(GOING, root=Path("/c\n\x1b[31m"))
    text = shown(Group(render.explanation_tree(odd, now=NOW), THINGS["a plan"](), THINGS["bytes of images"]()))

    assert "\x1b" not in text
    assert r"/c\n\x1b[31m/swap_512" in text
    assert r"/i/a\nb: no" in text
    assert r"a\nb  other" in text


def test_an_explanation_says_when_it_goes() -> None:
    never, with_next = render.explanation_tree(KEPT, now=NOW), render.explanation_tree(GOING, now=NOW)
    later = replace_struct(KEPT, stays=3 * 86400.0 + 3 * 3600)

    assert "not while this is so" in shown(never)
    assert "with the next prune" in shown(with_next)
    assert "2026-03-01 15:00 UTC (in 3 h), unless somebody comes to need it" in shown(render.explanation_tree(later, now=NOW))
    assert "2026-02-26 12:00 UTC (3 d ago)" in shown(never)
    told = render.explanation_json(later)
    assert ("2026-02-26T12:00:00+00:00", "2026-03-01T15:00:00+00:00") == (told["last_used"], told["goes_at"])
    assert render.verdict_json(later).items() <= told.items()


def test_a_last_use_that_no_calendar_has_is_told_as_such() -> None:
    odd = replace_struct(KEPT, file=replace_struct(FILE, used_ns=1 << 90))

    assert render.explanation_json(odd)["last_used"] is None
    assert "no calendar" in shown(render.explanation_tree(odd, now=NOW))


def test_leases_say_when_they_end() -> None:
    lines = shown(THINGS["leases"]()).splitlines()

    assert ["never: a pin", "in 2 h", "has ended"] == [re.split(r" {2,}", line)[3] for line in lines[1:]]
    assert "pinned by golden images" in shown(render.image_tree(IMAGE, [DISK], LEASES, now=NOW))
    assert "used by 1 disk and 3 leases" in shown(render.image_tree(IMAGE, [DISK], LEASES, now=NOW))
    told = render.lease_json(PIN, IMAGE.cache)
    assert (None, "golden images", [IMAGE.name], str(IMAGE.cache)) == tuple(
        told[key] for key in ("expires", "holder", "names", "cache")
    )


def test_hosts_say_what_keeps_a_cache_from_being_pruned() -> None:
    lines = shown(THINGS["hosts"]()).splitlines()

    assert ["this host", "declared", "silent: nothing goes", "not in instances.hosts", "could not tell all"] == [
        re.split(r" {2,}", line.strip())[3] for line in lines[1:]
    ]


def test_a_cache_on_a_file_system_of_its_own_says_so() -> None:
    assert 1 == shown(THINGS["bytes"]()).count("own file system")


@pytest.mark.parametrize("text", ["a\udcff", "\udcc3\udcbc", "new\nline", 'quote"\\udcff', "umlaut ü", "😀"])
def test_json_is_sound_whatever_bytes_a_name_has(text: str) -> None:
    written = render.json_text({"names": [text], text: ("in a tuple", text)})

    assert 1 == len(written.splitlines())
    read = msgspec.json.decode(written.encode())
    assert text.encode(errors="surrogateescape").decode(errors="backslashreplace") == read["names"][0]


# ----------------------------------------------------------------------------------------------------------------------- events


def test_an_event_is_one_line_of_words() -> None:
    event = Event(code="published", level=Level.INFO, detail="", fields={"ref": "file:///a", "size": 5, "none": None})

    assert "2026-03-01T12:00:00Z info published ref=file:///a size=5" == render.event_line(event, now=NOW)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a=b", '"a=b"'),
        ("", '""'),
        ("a\nINFO forged", '"a\\nINFO forged"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("größe", "größe"),
    ],
)
def test_a_value_that_is_no_word_is_quoted_and_stays_on_its_line(value: str, told: str) -> None:
    event = Event(code="x", level=Level.WARNING, detail=value or "d", fields={"a": value})

    line = render.event_line(event, now=NOW)

    assert line.endswith(f"a={told}")
    assert line.isprintable()


@given(st.text(), st.text())
def test_any_event_is_one_printable_line(detail: str, value: str) -> None:
    line = render.event_line(Event(code="x", level=Level.INFO, detail=detail, fields={"a": value}), now=NOW)

    assert 1 == len(line.splitlines())
    assert "\x1b" not in line


def test_an_event_for_programs_has_its_fields_beside_its_name() -> None:
    event = Event(code="published", level=Level.INFO, detail="d", fields={"ref": "file:///a", "size": 5})

    told = json.loads(json.dumps(render.event_json(event, now=NOW)))

    assert {
        "time": "2026-03-01T12:00:00.000+00:00",
        "level": "info",
        "event": "published",
        "detail": "d",
        "ref": "file:///a",
        "size": 5,
    } == told


# --------------------------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize(
    ("done", "total", "rate", "line"),
    [
        (0, None, 0.0, "fetch file:///a: 0 B"),
        (5 << 20, None, 5 << 20, "fetch file:///a: 5.0 MiB at 5.0 MiB/s"),
        (5 << 20, 20 << 20, 5 << 20, "fetch file:///a: 5.0 MiB of 20.0 MiB (25 %) at 5.0 MiB/s 3 s left"),
        (20 << 20, 20 << 20, 10 << 20, "fetch file:///a: 20.0 MiB of 20.0 MiB (100 %) at 10.0 MiB/s 0 s left"),
        (25 << 20, 20 << 20, 10 << 20, "fetch file:///a: 25.0 MiB of 20.0 MiB (125 %) at 10.0 MiB/s 0 s left"),
        (0, 20 << 20, 0.0, "fetch file:///a: 0 B of 20.0 MiB (0 %)"),
    ],
)
def test_a_line_of_progress_tells_stage_amount_rate_and_time_left(done: int, total: int | None, rate: float, line: str) -> None:
    assert line == render.progress_line(Progress(ref="file:///a", stage="fetch", done=done, total=total), rate)


def test_progress_for_programs_is_an_event() -> None:
    told = json.loads(render.progress_event(Progress(ref="file:///a", stage="fetch", done=5, total=None), 12.6))

    assert ("progress", "info", "file:///a", "fetch", 5, None, 12) == tuple(
        told[key] for key in ("event", "level", "ref", "stage", "done", "total", "rate")
    )


def test_work_that_is_soon_over_says_nothing() -> None:
    stream = io.StringIO()
    display = render.LineProgress(stream, render.progress_line)

    for done in range(10):
        display.show(Progress(ref="file:///a", stage="fetch", done=done, total=10))
    display.close()

    assert "" == stream.getvalue()


def test_bars_tell_stage_amount_rate_and_time_left() -> None:
    console = render.console(io.StringIO())
    console.width = 80
    bars = render.TerminalProgress(console)
    for done in range(4):
        bars.show(Progress(ref="file:///a", stage="fetch", done=done << 20, total=10 << 20))
    bars.close()

    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert re.match(r"fetch    \S+ +3\.0 MiB of 10\.0 MiB \S+ \S+/s \d+ \S+ left", line), line
    assert len(line) <= 80


def test_work_of_unknown_length_has_no_end_to_tell() -> None:
    console = render.console(io.StringIO())
    bars = render.TerminalProgress(console)
    bars.show(Progress(ref="file:///a", stage="wait", done=0, total=None))
    bars.close()

    assert isinstance(console.file, io.StringIO)
    assert "wait" in console.file.getvalue()
    assert "left" not in console.file.getvalue()


def test_nothing_is_drawn_before_there_is_something_to_draw() -> None:
    console = render.console(io.StringIO())

    render.TerminalProgress(console).close()

    assert isinstance(console.file, io.StringIO)
    assert "" == console.file.getvalue()
