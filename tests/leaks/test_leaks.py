"""What counts as a leak, and what is found on a real engine and in real directories."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from attrs import asdict
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.model import Kind
from indexify_dataplane.ctl import leaks_as_table, no_leaks
from indexify_dataplane.drivers.base import StartOrder
from indexify_dataplane.drivers.docker import names
from indexify_dataplane.drivers.fork_exec.run_directory import Manifest, RunDirectory, new_run_id
from indexify_dataplane.leaks import chains, engine, files
from indexify_dataplane.leaks.found import Found, Listing, sort
from indexify_dataplane.network.chains import Dump, containers_chain, node_chain
from indexify_dataplane.web_site import readable
from tests.engine import require


class Sorting(SynchronousTestCase):
    def sort(self, *found: Found) -> Listing:
        return sort(found, (), mine={"me", "me-before"}, recorded={"c1"})

    def test_recorded_is_no_leak(self) -> None:
        self.assertEqual(self.sort(Found("container", "a", "c1", "me")), Listing())

    def test_mine_without_record_is_one_and_so_is_nobodys(self) -> None:
        gone, before, nobodys = (
            Found("container", "a", "c2", "me"), Found("container", "b", "c3", "me-before"), Found("volume", "v"),
        )  # fmt: skip
        found = self.sort(gone, before, nobodys)
        self.assertEqual(found.leaks, (gone, before, nobodys))
        self.assertFalse(found.clean)

    def test_others_are_told_and_no_leak(self) -> None:
        other = Found("container", "a", "c9", "you")
        found = self.sort(other, Found("volume", "v", needed=True))
        self.assertEqual((found.leaks, found.others, found.clean), ((), (other,), True))

    def test_what_could_not_be_looked_at_is_not_clean(self) -> None:
        self.assertFalse(sort((), ["away"], mine={"me"}, recorded=()).clean)


class Chains(SynchronousTestCase):
    def test_whose_they_are(self) -> None:
        def jump(executor: str, container: str, chain: str) -> str:
            return f'-A {node_chain(executor)} -s 10.0.0.2 -m comment --comment "{container} 0123" -j {chain}'

        dump = Dump.parse(
            "\n".join(
                [
                    *(
                        f":{name} - [0:0]"
                        for name in ("INPUT", node_chain("me"), containers_chain("me"), node_chain("me-before"))
                    ),
                    *(f":INDEXIFY-SB-{name} - [0:0]" for name in ("alive", "gone", "theirs", "killed", "stray")),
                    jump("me", "alive", "INDEXIFY-SB-alive"),
                    jump("me", "gone", "INDEXIFY-SB-gone"),
                    jump("you", "theirs", "INDEXIFY-SB-theirs"),
                    jump("dead", "killed", "INDEXIFY-SB-killed"),
                ]
            )
        )
        there = {node_chain("me"), node_chain("you")}
        mine = ("me", "me-before")
        found = sort(chains.of(dump, "IPV4", mine, ["alive"], there), (), mine=mine, recorded={"alive"})
        self.assertEqual(
            [each.name for each in found.leaks],
            sorted([node_chain("me-before"), "INDEXIFY-SB-gone", "INDEXIFY-SB-stray"]),
        )
        self.assertEqual(
            {each.name: each.executor_id for each in found.others},
            {
                node_chain("you"): chains.THERE,
                "INDEXIFY-SB-theirs": chains.THERE,
                node_chain("dead"): chains.GONE,
                "INDEXIFY-SB-killed": chains.GONE,
            },
        )

    def test_both_filters_of_this_host_are_searched(self) -> None:
        if os.geteuid() != 0 or shutil.which("iptables") is None:
            self.skipTest("the packet filter cannot be used")
        found, problems = chains.things(["nobody"], [])
        self.assertEqual(problems, [])
        self.assertEqual({each.kind for each in found} - {chains.CHAIN}, set())


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ix-leaks-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def run_of(self, container: str) -> Manifest:
        root = self.directory / "fork_exec"
        root.mkdir(exist_ok=True)
        manifest = Manifest.new("me", container, Kind.SANDBOX, (), new_run_id())
        _, lock = RunDirectory.create(str(root), manifest)
        os.close(lock)
        return manifest

    def cgroups(self) -> Path:
        """The files of the kernel below a directory of our own, version 2."""
        cgroup = self.directory / "cgroup" / "node"
        (cgroup / "indexify-node").mkdir(parents=True)
        proc = self.directory / "proc"
        proc.mkdir()
        mounted = self.directory / "cgroup"
        (proc / "mountinfo").write_text(f"1 1 0:1 / {mounted} rw - cgroup2 cgroup2 rw\n")
        (proc / "cgroup").write_text("0::/node/indexify-node\n")
        return cgroup

    def test_run_directories(self) -> None:
        self.run_of("c1")
        self.run_of("c2")
        (self.directory / "fork_exec" / "empty").mkdir()
        (self.directory / "fork_exec" / ".gone-1").mkdir()
        (self.directory / "fork_exec" / "torn").mkdir()
        (self.directory / "fork_exec" / "torn" / "manifest.json").write_text("{")
        self.cgroups()
        found, problems = files.things(str(self.directory), proc=str(self.directory / "proc"))
        self.assertEqual(
            [(each.name, each.container_id) for each in found], [("c1", "c1"), ("c2", "c2"), ("empty", None)]
        )
        self.assertEqual(len(problems), 1)
        self.assertIn("torn/manifest.json", problems[0])

    def test_cgroups_of_runs_that_are_gone(self) -> None:
        manifest = self.run_of("c1")
        cgroup, left, busy = self.cgroups(), new_run_id(), new_run_id()
        for run in (manifest.run_id, left, busy):
            (cgroup / f"indexify-{run}").mkdir()
        (cgroup / f"indexify-{busy}" / "cgroup.procs").write_text("1\n")
        proc = str(self.directory / "proc")
        young, _ = files.things(str(self.directory), proc=proc)
        self.assertEqual(sort(young, (), mine={"me"}, recorded={"c1"}).leaks, (), "another node may be about to use it")
        found, _ = files.things(str(self.directory), proc=proc, now=lambda: time.time() + files.YOUNG_SECS + 1)
        listed = sort(found, (), mine={"me"}, recorded={"c1"})
        self.assertEqual([each.name for each in listed.leaks], [str(cgroup / f"indexify-{left}")])
        self.assertIsNone(files.remove_cgroup(listed.leaks[0]))
        self.assertFalse((cgroup / f"indexify-{left}").exists())


class Engine(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = require(self)
        self.client: Any = self.engine.client.api
        self.me = uuid.uuid4().hex

    def container(self, **labels: str) -> str:
        image = self.engine.image("empty")
        made = str(self.client.create_container(image, command=["/never"], labels=labels)["Id"])
        self.addCleanup(self.client.remove_container, made, force=True, v=True)
        return made

    def found(self) -> list[Found]:
        return engine.things(self.client, "here", bundle=None)

    def test_containers(self) -> None:
        order = StartOrder(f"c-{self.me}", self.me, Kind.SANDBOX)
        self.container(**names.labels(order, run="r", bundle=None))
        self.container(other="labels")
        mine = [each for each in self.found() if each.executor_id == self.me]
        self.assertEqual([(each.kind, each.container_id) for each in mine], [("container", f"c-{self.me}")])

    def test_images_of_restores(self) -> None:
        tag = f"c-{self.me}"
        self.client.tag(self.engine.image("empty"), "indexify-restore", tag)
        [left] = [each for each in self.found() if each.container_id == tag]
        self.assertEqual((left.kind, left.name), ("image", f"indexify-restore:{tag}"))
        self.assertIsNone(engine.remove(self.client, left))
        self.assertEqual([each for each in self.found() if each.container_id == tag], [])
        self.assertIsNone(engine.remove(self.client, left))

    def test_volumes_of_bundles(self) -> None:
        name = f"indexify-guest-{self.me[:16]}"
        self.client.create_volume(name, labels={names.MANAGED: "true", names.BUNDLE: self.me})
        needed = {each.name: each.needed for each in engine.things(self.client, "here", bundle=self.me)}
        self.assertIs(needed[name], True)
        [left] = [each for each in self.found() if each.name == name]
        self.assertFalse(left.needed)
        self.assertIsNone(engine.remove(self.client, left))
        self.assertNotIn(name, [each.name for each in self.found()])

    def test_what_is_in_use_stays(self) -> None:
        name = f"indexify-guest-{self.me[:16]}"
        self.client.create_volume(name, labels={names.MANAGED: "true", names.BUNDLE: self.me})
        self.addCleanup(self.client.remove_volume, name)
        host = self.client.create_host_config(binds=[f"{name}:/x"])
        made = self.client.create_container(self.engine.image("empty"), command=["/never"], host_config=host)["Id"]
        self.addCleanup(self.client.remove_container, made, force=True)
        [there] = [each for each in self.found() if each.name == name]
        self.assertTrue(there.needed)
        self.assertIn("in use", engine.remove(self.client, there) or "")


class Table(SynchronousTestCase):
    def test_for_people(self) -> None:
        listing = Listing((Found("image", "a:b", "c1", "me", "here"),), (Found("chain", "d", None, "you"),), ("away",))
        text = readable(asdict(listing))
        table = leaks_as_table(text)
        self.assertRegex(table, r"leak +image +a:b  container c1 executor me  here\n")
        self.assertRegex(table, r"other's +chain +d  executor you\n")
        self.assertIn("problem  away\n1 leaks\n", table)
        self.assertFalse(no_leaks(text))
        self.assertTrue(no_leaks(readable(asdict(Listing()))))
