"""Followed refs: when the holds move, what is held when a new version cannot be had, and what a fetch of one costs."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machine import MIB, Machine
from underlay.errors import SourceUnavailable, UnknownCache
from underlay.following import Refreshed, holder_of
from underlay.host import Host
from underlay.model import Digest, Level
from underlay.store import images, leases
from underlay.testing.fakes import FakeImage, FakeSource, Recorder
from underlay.values import replace

REF = "fake:stream"
DOWN = SourceUnavailable("the line is dead")
MASTERS = '[caches.masters]\nkind = "masters"\npath = "{root}/masters"\n'


def content(number: int) -> bytes:
    """A raw image that says which version it is."""
    return f"version {number}".encode().ljust(MIB, b".")


HOST = "this-host"


def version_id(number: int, ref: str = REF) -> str:
    return f"{ref}#sha256:{hashlib.sha256(content(number)).hexdigest()}"


class Scene:
    """A host that follows `REF`, and the source that it comes from."""

    def __init__(self, root: Path, *, follow: str = 'refs = ["fake:stream"]', cache: str | None = None) -> None:
        (root / "masters").mkdir()
        self.machine = Machine.make(root, extra=f"{MASTERS.format(root=root)}[follow]\n{follow}\n")
        self.machine.config.write_text(f'host = "{HOST}"\n{self.machine.config.read_text()}')
        self.source = FakeSource({REF: FakeImage(content(1))}, revalidate_after=3600)
        self.recorder = Recorder()
        self.cache = cache
        self.host = self.opened()

    def opened(self) -> Host:
        return Host.open(self.machine.config, observer=self.recorder, sources={"fake": self.source})

    def publishes(self, number: int) -> None:
        self.source.put(REF, FakeImage(content(number)))

    def refreshed(self, **options: int) -> Refreshed:
        [one] = self.host.refresh([REF], cache=self.cache, **options)
        return one

    def moves(self, *numbers: int, **options: int) -> Refreshed:
        """Versions that are published one after the other, each with a refresh; what came of the last."""
        *_, last = [self._moves(number, options) for number in numbers]
        return last

    def _moves(self, number: int, options: Mapping[str, int]) -> Refreshed:
        self.publishes(number)
        return self.refreshed(**options)

    def pinned(self) -> set[str | None]:
        """The versions that pins hold."""
        images = {image.name: image for image in self.host.images()[0]}
        names = [name for _, lease in self.host.leases() for name in lease.names]
        records = [image.record for name in names if (image := images.get(name))]
        return {record.version_id if record else None for record in records}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def outcome(one: Refreshed) -> tuple[str, str | None, str | None]:
    return one.outcome, one.before, one.after


def actions(one: Refreshed) -> list[tuple[str | None, bool, str]]:
    return [(verdict.version.id, verdict.holds, verdict.reason.code) for verdict in one.versions]


# ----------------------------------------------------------------------------------------------------------------- moving


def test_the_first_refresh_brings_the_image_and_holds_it(scene: Scene) -> None:
    one = scene.refreshed()

    assert ("moved", None, version_id(1)) == outcome(one)
    assert [(version_id(1), True, "newest")] == actions(one)
    assert one.image is not None
    assert content(1) == one.image.path.read_bytes()
    [(_, lease)] = scene.host.leases()
    assert (holder_of(REF, host=HOST), (REF,), None) == (lease.holder, lease.refs, lease.expires)


def test_the_source_is_asked_however_young_its_last_answer_is(scene: Scene) -> None:
    scene.refreshed()
    assert ("current", version_id(1), version_id(1)) == outcome(scene.refreshed())
    assert 2 == scene.source.described(REF)

    scene.publishes(2)

    assert ("moved", version_id(1), version_id(2)) == outcome(scene.refreshed())
    assert 2 == scene.source.opened(REF)


def test_what_was_brought_ahead_of_need_is_a_hit_without_a_question(scene: Scene) -> None:
    scene.publishes(2)
    scene.refreshed()
    asked = scene.source.described(REF)

    ensured = scene.host.fetch(REF)

    assert "hit" == ensured.reason.code
    assert asked == scene.source.described(REF)
    assert content(2) == ensured.image.path.read_bytes()


def test_the_newest_and_one_older_are_held_and_what_is_older_is_let_go(scene: Scene) -> None:
    last = scene.moves(1, 2, 3)

    expected = [(version_id(3), True, "newest"), (version_id(2), True, "kept-old"), (version_id(1), False, "superseded")]
    assert expected == actions(last)
    assert {version_id(2), version_id(3)} == scene.pinned()
    assert 3 == len(scene.host.images()[0])  # nothing is removed by a refresh
    assert [(version_id(3), True, "newest"), (version_id(2), True, "kept-old")] == actions(scene.refreshed())


@pytest.mark.component("leases")
def test_a_prune_takes_what_was_let_go_and_nothing_else(tmp_path: Path) -> None:
    scene = Scene(tmp_path, follow='refs = ["fake:stream"]\nkeep = 0')
    scene.host.refresh()
    scene.publishes(2)
    scene.host.refresh()
    later = scene.host.images()[0][0].last_used + timedelta(days=30)

    report = scene.host.apply(scene.host.plan_prune(now=later))

    assert 1 == len(report.removed)
    [image] = scene.host.images()[0]
    assert image.record is not None
    assert version_id(2) == image.record.version_id


def test_keep_holds_so_many_older_ones_and_can_be_given(scene: Scene) -> None:
    scene.moves(1, 2, 3, 4, keep=2)
    assert {version_id(number) for number in (2, 3, 4)} == scene.pinned()

    scene.refreshed(keep=0)

    assert {version_id(4)} == scene.pinned()


def test_a_stream_that_goes_back_holds_what_it_means_now(scene: Scene) -> None:
    last = scene.moves(1, 2, 1, keep=1)

    assert ("moved", version_id(2), version_id(1)) == outcome(last)
    assert [(version_id(1), True, "newest"), (version_id(2), True, "kept-old")] == actions(last)


def test_versions_that_were_fetched_before_they_were_followed_are_held_as_older_ones(scene: Scene) -> None:
    scene.host.ensure(REF)
    assert set() == scene.pinned()
    scene.publishes(2)

    assert [(version_id(2), True, "newest"), (version_id(1), True, "kept-old")] == actions(scene.refreshed())


def test_a_version_that_was_removed_by_hand_keeps_no_older_one_out(scene: Scene) -> None:
    second = scene.moves(1, 2).image
    assert second is not None
    second.path.unlink()

    last = scene.moves(3)

    expected = [(version_id(3), True, "newest"), (version_id(2), False, "evicted"), (version_id(1), True, "kept-old")]
    assert expected == actions(last)
    assert {version_id(1), version_id(3)} == scene.pinned()


def test_the_newest_that_was_removed_by_hand_is_brought_again(scene: Scene) -> None:
    image = scene.refreshed().image
    assert image is not None
    image.path.unlink()

    assert ("moved", None, version_id(1)) == outcome(scene.refreshed())
    assert {version_id(1)} == scene.pinned()


def test_more_versions_than_a_ref_remembers_are_let_go_of(scene: Scene) -> None:
    scene.refreshed()
    for number in range(2, 20):
        scene.publishes(number)
        scene.host.fetch(REF, checksum=f"sha256:{hashlib.sha256(content(number)).hexdigest()}")

    last = scene.refreshed()

    assert (version_id(1), False, "superseded") == actions(last)[-1]
    assert {version_id(18), version_id(19)} == scene.pinned()


def test_a_pin_that_a_killed_refresh_left_is_let_go_by_the_next(scene: Scene) -> None:
    first = scene.moves(1).image
    scene.moves(2, keep=0)
    assert first is not None
    store = scene.host.parts.store_of(first)
    with images.held(store, first.name) as hold:
        leases.take(hold, holder=holder_of(REF, host=HOST), ref=REF, now=datetime.now(UTC), expires=None)

    assert [(version_id(2), True, "newest"), (version_id(1), False, "superseded")] == actions(scene.refreshed(keep=0))
    assert {version_id(2)} == scene.pinned()


def test_refreshes_at_the_same_time_transfer_a_version_once(scene: Scene) -> None:
    scene.refreshed()
    scene.source.put(REF, FakeImage(content(2), delay=0.01, piece=64 << 10))

    with ThreadPoolExecutor(max_workers=8) as pool:
        done = [future.result() for future in [pool.submit(scene.refreshed) for _ in range(8)]]

    assert {version_id(2)} == {one.after for one in done}
    assert {None} == {one.error for one in done}
    assert 2 == scene.source.opened(REF)
    assert {version_id(1), version_id(2)} == scene.pinned()


# ------------------------------------------------------------------------------------------------- what cannot be had


@pytest.mark.parametrize(
    "image",
    [
        FakeImage(content(2), describe_error=DOWN),
        FakeImage(content(2), open_error=DOWN),
        FakeImage(content(2), read_error=DOWN, read_error_after=1000),
        FakeImage(content(2), digests=(Digest("sha256", "0" * 64),)),
        FakeImage(b"KDMV" + content(2)),
        FakeImage(content(2), no_store=True),
    ],
    ids=["down", "closed", "breaks", "bad-digest", "unsafe", "no-store"],
)
def test_the_last_good_version_stays_held_and_is_served(scene: Scene, image: FakeImage) -> None:
    before = scene.refreshed(keep=0).image
    assert before is not None
    scene.source.put(REF, image)

    one = scene.refreshed(keep=0)

    assert ("last-good", version_id(1), version_id(1)) == outcome(one)
    assert one.error is not None
    assert {version_id(1)} == scene.pinned()
    assert one.image == replace(before, last_used=one.image.last_used if one.image else before.last_used)
    if not image.no_store:
        assert content(1) == scene.host.ensure(REF).path.read_bytes()


def test_a_source_that_is_down_is_an_error_though_a_fetch_would_be_served(scene: Scene) -> None:
    scene.refreshed()
    scene.source.put(REF, FakeImage(content(2), describe_error=DOWN))

    assert DOWN is scene.refreshed().error


def test_nothing_held_and_nothing_to_be_had_is_an_error(scene: Scene) -> None:
    scene.source.put(REF, FakeImage(describe_error=DOWN))

    one = scene.refreshed()

    assert ("error", None, None) == outcome(one)
    assert () == one.versions
    assert [] == scene.host.leases()


def test_one_that_fails_does_not_keep_the_others(scene: Scene) -> None:
    done = scene.host.refresh(["nonsense", "gopher://host/a", "fake:none", REF, REF])

    told = [(one.outcome, one.error and one.error.code) for one in done]
    assert [("error", "invalid-ref"), ("error", "unknown-scheme"), ("error", "image-not-found"), ("moved", None)] == told


def test_a_ref_that_fixes_its_version_is_current_for_ever_and_never_asked(scene: Scene) -> None:
    scene.source.put(REF, FakeImage(content(1), id="7"))
    assert ("moved", None, "7") == outcome(scene.refreshed())
    scene.source.put(REF, FakeImage(describe_error=DOWN, id="7"))

    assert ("current", "7", "7") == outcome(scene.refreshed())
    assert ("current", "7", "7") == outcome(scene.host.plan_refresh([REF])[0])
    assert 1 == scene.source.described(REF)


def test_a_cache_that_there_is_not_is_refused(scene: Scene) -> None:
    with pytest.raises(UnknownCache):
        scene.host.refresh([REF], cache="none")


# ---------------------------------------------------------------------------------------------------------- masters


def test_a_master_is_replaced_and_what_was_delivered_keeps_its_bytes(tmp_path: Path) -> None:
    scene = Scene(tmp_path, cache="masters")
    delivered = tmp_path / "delivered"
    scene.host.deliver(REF, delivered, cache="masters")
    scene.refreshed()
    scene.publishes(2)

    one = scene.refreshed(keep=5)

    assert ("moved", version_id(1), version_id(2)) == outcome(one)
    assert [(version_id(2), True, "newest")] == actions(one)
    assert {version_id(2)} == scene.pinned()
    assert content(1) == delivered.read_bytes()
    scene.publishes(3)
    assert [(None, True, "newest")] == actions(scene.host.plan_refresh([REF], cache="masters", keep=5)[0])


def test_a_refused_version_leaves_the_master_as_it_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path, cache="masters")
    scene.refreshed()
    scene.source.put(REF, FakeImage(b"KDMV" + content(2)))

    one = scene.refreshed()

    assert ("last-good", version_id(1), version_id(1)) == outcome(one)
    assert one.image is not None
    assert content(1) == one.image.path.read_bytes()


# ----------------------------------------------------------------------------------------------------- the configuration


def test_those_of_the_configuration_are_refreshed_and_others_let_go(scene: Scene) -> None:
    scene.source.put("fake:other", FakeImage(content(7)))
    scene.host.refresh(["fake:other", REF])
    scene.host.pin(REF, holder="somebody else")

    first, second = scene.host.refresh()

    assert ("current", "unfollowed") == (first.outcome, second.outcome)
    assert ("fake:other", [(None, False, "unfollowed")]) == (second.ref, actions(second))
    assert {holder_of(REF, host=HOST), "somebody else"} == {lease.holder for _, lease in scene.host.leases()}
    assert 1 == len(scene.host.refresh())


def test_what_another_host_follows_in_a_cache_that_is_shared_is_its_own(scene: Scene) -> None:
    scene.host.refresh()
    other = scene.machine.root / "other.toml"
    text = scene.machine.config.read_text().replace(f'host = "{HOST}"', 'host = "another"')
    other.write_text(text.replace('refs = ["fake:stream"]', "refs = []"))
    neighbour = Host.open(other, sources={"fake": scene.source})
    assert [] == neighbour.refresh()
    neighbour.refresh([REF])
    assert {holder_of(REF, host=HOST), holder_of(REF, host="another")} == {one.holder for _, one in scene.host.leases()}


def test_what_is_followed_in_another_cache_now_is_let_go_in_the_first(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.host.refresh()
    text = scene.machine.config.read_text()
    scene.machine.config.write_text(f'{text}cache = "masters"\n')
    scene.host = scene.opened()

    done = scene.host.refresh()

    assert [("moved", tmp_path / "masters"), ("unfollowed", tmp_path / "base")] == [(one.outcome, one.cache) for one in done]
    assert [tmp_path / "masters"] == [cache for cache, _ in scene.host.leases()]


def test_a_fetch_takes_what_the_last_refresh_found(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.source.revalidate_after = 0
    scene.host.refresh()
    scene.publishes(2)

    assert "hit" == scene.host.fetch(REF).reason.code
    assert 1 == scene.source.described(REF)
    scene.host.refresh()
    assert content(2) == scene.host.ensure(REF).path.read_bytes()
    assert 2 == scene.source.described(REF)
    assert "fetched" == scene.host.fetch(REF, cache="masters").reason.code  # it is not followed there


def test_a_refresh_that_is_too_long_ago_is_no_answer(tmp_path: Path) -> None:
    scene = Scene(tmp_path, follow='refs = ["fake:stream"]\nmax_age = "0s"')
    scene.source.revalidate_after = 0
    scene.host.refresh()
    scene.publishes(2)

    assert "fetched" == scene.host.fetch(REF).reason.code


# ------------------------------------------------------------------------------------------------------------- dry runs


def everything(root: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.lstat()) for path in root.rglob("*"))
    return {os.fspath(path): (status.st_mtime_ns, status.st_size) for path, status in found}


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(scene: Scene) -> None:
    assert [("moved", None, None)] == [outcome(one) for one in scene.host.plan_refresh()]
    assert [] == list(scene.machine.base.iterdir())
    scene.host.refresh()
    scene.publishes(2)
    scene.host.refresh(["fake:stream"], keep=0)
    scene.source.put("fake:other", FakeImage(content(7)))
    scene.host.refresh(["fake:other"])
    before = everything(scene.machine.root)

    current, other = scene.host.plan_refresh()
    scene.publishes(3)
    [moved] = scene.host.plan_refresh([REF], keep=0)

    assert ("current", version_id(2), version_id(2)) == outcome(current)
    assert ("unfollowed", [(None, False, "unfollowed")]) == (other.outcome, actions(other))
    assert ("moved", version_id(2), None) == outcome(moved)
    assert [(None, True, "newest"), (version_id(2), False, "superseded")] == actions(moved)
    assert before == everything(scene.machine.root)


def test_a_dry_run_knows_a_version_that_its_ref_has_forgotten(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.source.put(REF, FakeImage(content(1), id="7"))
    scene.refreshed()
    for record in (scene.machine.base / ".underlay" / "refs").iterdir():
        record.unlink()

    assert ("current", "7", "7") == outcome(scene.host.plan_refresh([REF])[0])


@pytest.mark.parametrize("image", [FakeImage(describe_error=DOWN), FakeImage(content(2), no_store=True)])
def test_a_dry_run_says_that_a_version_cannot_be_had(scene: Scene, image: FakeImage) -> None:
    scene.refreshed()
    scene.source.put(REF, image)

    [one] = scene.host.plan_refresh([REF])

    assert ("last-good", version_id(1), version_id(1)) == outcome(one)
    assert one.error is not None


# --------------------------------------------------------------------------------------------------------------- words


def test_each_outcome_is_told(scene: Scene) -> None:
    scene.host.refresh()
    scene.host.refresh()
    scene.source.put(REF, FakeImage(describe_error=DOWN))
    scene.host.refresh()
    scene.host.refresh(["fake:none"])

    levels = {"moved": Level.INFO, "current": Level.DEBUG, "last-good": Level.WARNING, "error": Level.WARNING}
    told = [event for event in scene.recorder.events if event.code in levels]
    assert list(levels.items()) == [(event.code, event.level) for event in told]
    assert [version_id(1)] * 3 + [None] == [event.fields["version"] for event in told]
    assert DOWN.message == told[2].detail


@pytest.mark.parametrize(
    "ref", ["https://example.org/" + "a" * 900, "https://example.org/\N{ZERO WIDTH SPACE}"], ids=["long", "unprintable"]
)
def test_a_ref_that_is_no_name_for_a_holder_has_its_digest_instead(ref: str) -> None:
    assert f"follow:{HOST}:sha256:{hashlib.sha256(ref.encode()).hexdigest()}" == holder_of(ref, host=HOST)


def test_refs_with_one_image_have_holds_of_their_own(scene: Scene) -> None:
    scene.source.put("fake:tag", FakeImage(content(1), id="one"))
    scene.source.put("fake:other-tag", FakeImage(content(1), id="one"))
    scene.host.refresh(["fake:tag", "fake:other-tag"])
    names: Sequence[str] = [name for _, lease in scene.host.leases() for name in lease.names]
    assert (2, 1) == (len(names), len(set(names)))
