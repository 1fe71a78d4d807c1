"""A cache whose images, disks, leases and instances come and go, and prunes at any moment: what has a user is never gone.

The model knows who stands on what because it made everything; it knows nothing of how a prune finds out. Time is the plan's
`now`, which only goes forward.
"""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aging import DAY, HOUR, aged, assert_opens, original, overlay, put
from machine import MIB, Machine
from underlay.model import Ephemeral, InstanceRecord
from underlay.naming import CacheKind, kind_of_name
from underlay.plan import Plan

IMAGES = ["a", "b", "c"]
RAW = [original(image) for image in IMAGES]
GENERATED = ["swap_64", "swap_128", "ephemeral_1_0706d66"]
RESIZED = [f"{name}_20" for name in RAW]
UPPER = [f"{name}.qcow2" for name in RAW]  # images that stand on other images
LEFTOVERS = [f"{RAW[0]}.part", "swap_64.converted"]
INSTANCES = ["web-1", "web-2"]
LIMITS = {"original": DAY, "resized": HOUR, "swap": DAY, "ephemeral": DAY, "leftover": DAY}
KEEP_RECENT = 900.0
DIRECTORIES = st.sampled_from([*INSTANCES, "stranger"])
DISKS = st.sampled_from(["disk.local", "disk.eph0", "disk.swap", "disk.rescue", "snapshots/old", "volume-1"])
HOWS = st.sampled_from(["absolute", "relative", "json", "by a link", "a file url", "two levels"])
AGES = st.sampled_from([0.0, 1000.0, 2 * HOUR, DAY - 60, DAY + 60, 9 * DAY])
MOST_CHECKED = 3  # disks that qemu-img opens at an example's end


@dataclass(frozen=True, slots=True)
class Held:
    """A lease, by the model's own clock."""

    name: str
    holder: str
    until: datetime | None


class Pruning(RuleBasedStateMachine):
    """Everything that happens around one cache."""

    @initialize(ages=st.lists(AGES, min_size=12, max_size=12))
    def lay_out(self, ages: list[float]) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ul-model-"))
        self.machine = Machine.make(self.root)
        (self.root / "outside").mkdir()
        (self.root / "by another way").symlink_to(self.machine.base)
        self.host = self.machine.host()
        self.host.config.caches["base"].prepare()
        self.ahead = 0.0
        self.lower: dict[str, str] = {}  # of an image that stands on another
        self.disks: dict[tuple[str, str], str] = {}  # directory and name of a disk, and the file of the cache beneath it
        self.outside: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.held: set[Held] = set()
        self.open: dict[int, str] = {}
        self.plan: Plan | None = None
        self.number = 0
        for name, age in zip([*RAW, *RESIZED, *GENERATED, *LEFTOVERS], ages, strict=False):
            put(self.machine, name, age=age, content=bytes(MIB))

    def teardown(self) -> None:
        if not hasattr(self, "root"):
            return
        for fd in self.open:
            os.close(fd)
        paths = [self.machine.instances.joinpath(*place) for place in self.disks] + [Path(path) for path in self.outside]
        for path in paths[:MOST_CHECKED]:
            assert_opens(path)
        shutil.rmtree(self.root)

    # ----------------------------------------------------------------------------------------------------- what the model knows

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead)

    def present(self, *names: str) -> list[str]:
        return [name for name in names if (self.machine.base / name).exists()]

    def bases(self) -> list[str]:
        """What a disk may stand on: QEMU makes none on an image that it cannot open to its end."""
        there = self.present(*RAW, *GENERATED, *RESIZED, *UPPER)
        return [name for name in there if self.chain(name) <= set(there)]

    def chain(self, name: str) -> set[str]:
        found = {name}
        while name in self.lower:
            name = self.lower[name]
            found.add(name)
        return found

    def stood_on(self) -> set[str]:
        return {name for base in (*self.disks.values(), *self.outside.values()) for name in self.chain(base)}

    def users(self) -> set[str]:
        leased = {held.name for held in self.held if held.until is None or held.until > self.now}
        return self.stood_on() | leased | set(self.open.values()) | set(self.links.values())

    def kept(self, claimed: set[str]) -> set[str]:
        """What is in use, with what it stands on in the cache, however deep.

        Args:
            claimed: by instances.
        """
        kept = self.users() | claimed
        ahead = list(kept)
        while ahead:
            lower = self.lower.get(ahead.pop())
            if lower is not None and lower not in kept:
                kept.add(lower)
                ahead.append(lower)
        return kept

    def last_use(self, name: str) -> float:
        store = self.host.config.caches["base"]
        times = [path.stat().st_mtime for path in (store.root / name, store.paths.used_marker(name)) if path.exists()]
        return max(times)

    # --------------------------------------------------------------------------------------------------------------- files come

    @rule(name=st.sampled_from([*RAW, *RESIZED, *GENERATED, *LEFTOVERS]), age=AGES)
    def a_file_comes(self, name: str, age: float) -> None:
        if not self.present(name):
            put(self.machine, name, age=age - self.ahead, content=bytes(MIB))

    @rule(name=st.sampled_from(UPPER), beneath=st.sampled_from([*RAW, *UPPER]), age=AGES)
    def an_image_comes_that_stands_on_another(self, name: str, beneath: str, age: float) -> None:
        if self.present(name) or beneath not in self.bases() or name in self.chain(beneath):
            return
        made = overlay(self.root / "made", self.machine.base / beneath, backing_format=self.format_of(beneath))
        self.lower[name] = beneath
        aged(made, age - self.ahead).rename(self.machine.base / name)

    def format_of(self, name: str) -> str:
        return "qcow2" if name.endswith(".qcow2") else "raw"

    # -------------------------------------------------------------------------------------------------------- disks come and go

    @rule(instance=st.sampled_from(INSTANCES), name=st.sampled_from(RAW))
    def underlay_makes_a_disk(self, instance: str, name: str) -> None:
        if self.present(name) and (instance, "disk") not in self.disks:
            self.host.create_disk(instance, name, size=MIB)
            self.disks[instance, "disk"] = name

    @rule(name=st.sampled_from(RAW))
    def underlay_makes_a_disk_elsewhere(self, name: str) -> None:
        path = self.root / "outside" / f"disk-{self.number}"
        if self.present(name) and len(self.outside) < 3:
            self.number += 1
            self.host.create_disk("web-3", name, size=MIB, path=path, name=path.name)
            self.outside[os.fspath(path)] = name

    @rule(directory=DIRECTORIES, disk=DISKS, how=HOWS, data=st.data())
    def somebody_makes_a_disk(self, directory: str, disk: str, how: str, data: st.DataObject) -> None:
        bases = self.bases()
        if not bases or (directory, disk) in self.disks:
            return
        name = data.draw(st.sampled_from(bases))
        path = self.machine.instances / directory / disk
        base = self.machine.base / name
        names = {
            "absolute": os.fspath(base),
            "relative": f"{'../' * (2 + disk.count('/'))}base/{name}",
            "json": "json:" + json.dumps({"driver": self.format_of(name), "file.driver": "file", "file.filename": str(base)}),
            "by a link": os.fspath(self.root / "by another way" / name),
            "a file url": f"file:{base}",
        }
        if how == "two levels":
            lower = overlay(path.with_name(f"{path.name}.lower"), base, backing_format=self.format_of(name))
            overlay(path, lower.name, backing_format="qcow2")
        else:
            overlay(path, names[how], backing_format=self.format_of(name))
        self.disks[directory, disk] = name

    @rule(data=st.data())
    def a_disk_goes(self, data: st.DataObject) -> None:
        if not self.disks:
            return
        place = data.draw(st.sampled_from(sorted(self.disks)))
        path = self.machine.instances.joinpath(*place)
        path.unlink()
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}.lower").unlink()
        del self.disks[place]

    @rule(data=st.data())
    def a_disk_elsewhere_goes(self, data: st.DataObject) -> None:
        if not self.outside:
            return
        path = data.draw(st.sampled_from(sorted(self.outside)))
        self.host.remove_disk("web-3", name=Path(path).name, path=Path(path))
        del self.outside[path]

    @rule(instance=st.sampled_from(INSTANCES))
    def an_instance_is_resized_or_reverted(self, instance: str) -> None:
        here, aside = self.machine.instances / instance, self.machine.instances / f"{instance}_resize"
        before, after = (here, aside) if here.exists() else (aside, here)
        if before.exists() and not after.exists():
            before.rename(after)
            self.disks = {
                (after.name if directory == before.name else directory, disk): base
                for (directory, disk), base in self.disks.items()
            }

    # ------------------------------------------------------------------------------------------------ leases, links, open files

    @rule(holder=st.sampled_from(["me", "you"]), hours=st.sampled_from([None, 0.5, 30, 400]), data=st.data())
    def somebody_holds_an_image(self, holder: str, hours: float | None, data: st.DataObject) -> None:
        names = self.present(*RAW, *GENERATED, *RESIZED)
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        if hours is None:
            self.host.pin(name, holder=holder)
            self.held.add(Held(name, holder, None))
        else:
            seconds = self.ahead + hours * HOUR
            self.held.add(Held(name, holder, datetime.now(UTC) + timedelta(seconds=seconds)))
            self.host.lease(name, holder=holder, seconds=seconds)

    @rule(data=st.data())
    def a_holder_lets_go(self, data: st.DataObject) -> None:
        if not self.held:
            return
        one = data.draw(st.sampled_from(sorted(self.held, key=repr)))
        if one.until is None:
            self.host.unpin(one.name, holder=one.holder)
            self.held.discard(one)
            return
        leases = {held for held in self.held if (held.name, held.holder) == (one.name, one.holder) and held.until}
        if any(held.until > self.now for held in leases if held.until):  # one that has ended may be swept already
            self.host.release(one.name, holder=one.holder)
        self.held -= leases

    @rule(name=st.sampled_from([*RAW, *UPPER, "swap_64"]))
    def a_program_opens_an_image(self, name: str) -> None:
        if self.present(name) and len(self.open) < 3:
            self.open[os.open(self.machine.base / name, os.O_RDONLY)] = name

    @rule()
    def a_program_closes_an_image(self) -> None:
        for fd in list(self.open)[:1]:
            os.close(fd)
            del self.open[fd]

    @rule(name=st.sampled_from([*RAW, *UPPER, "swap_128"]))
    def an_image_is_delivered_as_a_link(self, name: str) -> None:
        if not self.present(name) or len(self.links) > 2:
            return
        self.number += 1
        link = self.root / "outside" / f"link-{self.number}"
        os.link(self.machine.base / name, link)
        self.links[os.fspath(link)] = name

    @rule()
    def a_link_goes(self) -> None:
        for link in list(self.links)[:1]:
            os.unlink(link)
            del self.links[link]

    # ---------------------------------------------------------------------------------------------------------- time and prunes

    @rule(hours=st.sampled_from([0.3, 2, 25, 100]))
    def time_passes(self, hours: float) -> None:
        self.ahead += hours * HOUR

    @rule(hours=st.sampled_from([0.3, 2, 25]))
    def the_timer_prunes(self, hours: float) -> None:
        self.time_passes(hours)
        self.a_prune_knows_the_instances(set(), set(), ephemeral=False, is_known=False)

    @rule(
        images=st.sets(st.sampled_from(IMAGES)), swaps=st.sets(st.sampled_from([64, 128])), ephemeral=st.booleans(),
        is_known=st.booleans(),
    )  # fmt: skip
    def a_prune_knows_the_instances(self, images: set[str], swaps: set[int], *, ephemeral: bool, is_known: bool) -> None:
        """What nobody needs and is old enough goes, and nothing else."""
        records = [
            InstanceRecord(uuid=f"u-{image}", name=f"n-{image}", image_ref=image, swap_mib=tuple(swaps)) for image in images
        ]
        if records and ephemeral:
            records.append(InstanceRecord(uuid="u-e", name="n-e", ephemerals=(Ephemeral(size_gib=1),)))
        claimed = {original(image) for image in images} if is_known else set()
        generated = {f"swap_{size}" for size in swaps} if is_known and images else set()
        if is_known and records and ephemeral:
            generated.add("ephemeral_1_0706d66")
        now = self.now
        before = sorted(name for name in os.listdir(self.machine.base) if name != ".underlay")
        images_claimed = {name for name in before if name[:40] in claimed and name not in LEFTOVERS}
        kept = self.kept((images_claimed | generated) & set(before))
        expected = {name for name in before if name not in kept and self.is_old(name, now)}

        report = self.host.apply(self.host.plan_prune(now=now, instances=records if is_known else None))

        assert expected == {path.name for path in report.removed}
        assert sorted(set(before) - expected) == sorted(name for name in os.listdir(self.machine.base) if name != ".underlay")
        self.forget(expected)

    def is_old(self, name: str, now: datetime) -> bool:
        kind = kind_of_name(name, kind=CacheKind.BASE)
        assert kind is not None
        return now.timestamp() - self.last_use(name) >= max(LIMITS[kind], KEEP_RECENT)

    @rule()
    def a_plan_is_made(self) -> None:
        self.plan = self.host.plan_prune(now=self.now)

    @rule()
    def the_plan_is_applied(self) -> None:
        """However old it is: what has a user by now stays, and what was to stay does."""
        if self.plan is None:
            return
        report = self.host.apply(self.plan)
        removed = {path.name for path in report.removed}
        assert removed <= {verdict.file.name for verdict in self.plan.verdicts if verdict.removes}
        still_held = {held.name for held in self.held if held.until is None or held.until > self.plan.now}
        assert set() == removed & (self.stood_on() | set(self.open.values()) | set(self.links.values()) | still_held)
        self.forget(removed)
        self.plan = None

    @rule(directory=DIRECTORIES, disk=DISKS, how=HOWS, renamed=st.booleans(), data=st.data())
    def a_disk_comes_after_the_plan(self, directory: str, disk: str, how: str, *, renamed: bool, data: st.DataObject) -> None:
        """The base that it stands on was to go, as a rule."""
        self.time_passes(25)
        self.a_plan_is_made()
        self.somebody_makes_a_disk(directory, disk, how, data)
        if renamed:
            self.an_instance_is_resized_or_reverted(directory)
        self.the_plan_is_applied()

    def forget(self, removed: set[str]) -> None:
        for name in removed:
            self.lower.pop(name, None)
        self.held = {held for held in self.held if held.name not in removed}

    # ------------------------------------------------------------------------------------------------------------------- always

    @invariant()
    def what_has_a_user_is_there(self) -> None:
        if hasattr(self, "root"):
            assert [] == [name for name in sorted(self.stood_on()) if not (self.machine.base / name).is_file()]
            assert [] == [name for name in sorted(self.users()) if not self.present(name)]
            assert [] == os.listdir(self.host.config.caches["base"].paths.trash)


TestPruning = pytest.mark.component("qemu-img", "leases")(Pruning.TestCase)
TestPruning.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
