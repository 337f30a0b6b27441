"""Listings as the tool prints them on real machines, and the tool as a child process."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from indexify_dataplane.host.gpus import ARGUMENTS, Gpu, GpuGroup, GpuModel, discover, group, model, parse


def one(name: str, memory_mib: int | None = None) -> GpuModel | None:
    return model(Gpu(name, "GPU-x", memory_mib))


class ModelTest(SynchronousTestCase):
    def test_products(self) -> None:
        for name, memory, expected in (
            ("NVIDIA A100-SXM4-40GB", 40960, GpuModel.A100_40GB),
            ("NVIDIA A100-PCIE-40GB", None, GpuModel.A100_40GB),
            ("A100-SXM4-40GB", 40536, GpuModel.A100_40GB),
            ("NVIDIA A100-SXM4-80GB", 81920, GpuModel.A100_80GB),
            ("NVIDIA A100 80GB PCIe", 81920, GpuModel.A100_80GB),
            ("NVIDIA A100-SXM-64GB", 65536, None),
            ("NVIDIA A100", 40536, GpuModel.A100_40GB),
            ("NVIDIA A100", None, None),
            ("NVIDIA H100 80GB HBM3", 81559, GpuModel.H100_80GB),
            ("NVIDIA H100 PCIe", 81559, GpuModel.H100_80GB),
            ("NVIDIA H100 NVL", 95830, None),
            ("NVIDIA GH200 480GB", 97871, None),
            ("NVIDIA H200", 143771, None),
            ("NVIDIA H800 80GB", 81559, None),
            ("Tesla T4", 15360, GpuModel.TESLA_T4),
            ("NVIDIA T4", 15360, GpuModel.TESLA_T4),
            ("NVIDIA T400 4GB", 4096, None),
            ("NVIDIA T4G", 15360, None),
            ("NVIDIA RTX A6000", 49140, GpuModel.A6000),
            ("NVIDIA RTX 6000 Ada Generation", 49140, None),
            ("NVIDIA A10", 23028, GpuModel.A10),
            ("NVIDIA A10G", 23028, GpuModel.A10),
            ("NVIDIA RTX A1000", 8188, None),
            ("NVIDIA L4", 23034, None),
            ("Quadro RTX 4000", 8192, None),
        ):
            self.assertEqual(one(name, memory), expected, name)

    @given(st.text(), st.none() | st.integers(0, 10**6))
    def test_any_name(self, name: str, memory: int | None) -> None:
        found = one(name, memory)
        self.assertTrue(found is None or found in GpuModel)


class GroupTest(SynchronousTestCase):
    def warnings(self) -> list[dict[str, object]]:
        seen: list[dict[str, object]] = []

        def observe(event: dict[str, object]) -> None:
            if getattr(event["log_level"], "name", "") == "warn":
                seen.append(event)

        globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return seen

    def test_listing(self) -> None:
        listing = (
            "0, Tesla T4, GPU-aaa, 15360\n1, Tesla T4, GPU-bbb, 15360 MiB\n\n1, Tesla T4, GPU-bbb\n"
            "No devices were found\n2, , GPU-c\n"
        )
        self.assertEqual(parse(listing), (Gpu("Tesla T4", "GPU-aaa", 15360), Gpu("Tesla T4", "GPU-bbb", 15360)))
        self.assertEqual(group(parse(listing)), GpuGroup(GpuModel.TESLA_T4, ("GPU-aaa", "GPU-bbb")))

    @given(st.text())
    def test_any_listing(self, listing: str) -> None:
        for gpu in parse(listing):
            self.assertTrue(gpu.uuid)

    def test_unknown_models_are_left_out_with_one_warning(self) -> None:
        seen = self.warnings()
        self.assertIsNone(group(parse("0, NVIDIA H200, GPU-a, 143771\n1, NVIDIA H200, GPU-b, 143771\n")))
        self.assertEqual([event["gpus"] for event in seen], [{"NVIDIA H200": 2}])

    def test_of_several_models_the_most_numerous_is_offered(self) -> None:
        seen = self.warnings()
        found = group(parse("0, NVIDIA A10, GPU-a\n1, Tesla T4, GPU-b\n2, Tesla T4, GPU-c\n3, NVIDIA L4, GPU-d\n"))
        self.assertEqual(found, GpuGroup(GpuModel.TESLA_T4, ("GPU-b", "GPU-c")))
        self.assertEqual(len(seen), 2)

    def test_nothing_is_not_a_group(self) -> None:
        self.assertIsNone(group(()))


class DiscoverTest(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor = reactor
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def tool(self, script: str) -> str:
        path = os.path.join(self.directory, "nvidia-smi")
        with open(path, "w") as file:
            file.write("#!/bin/sh\n" + script)
        os.chmod(path, 0o755)
        return path

    def discover(self, tool: str, timeout: float = 10) -> Deferred[GpuGroup | None]:
        return Deferred.fromCoroutine(discover(reactor=self.reactor, tool=tool, timeout=timeout))

    async def test_the_tool_is_asked(self) -> None:
        arguments = os.path.join(self.directory, "arguments")
        tool = self.tool(f"printf '%s\\n' \"$@\" > {arguments}\necho '0, Tesla T4, GPU-a, 15360'\n")
        self.assertEqual(await self.discover(tool), GpuGroup(GpuModel.TESLA_T4, ("GPU-a",)))
        self.assertEqual(tuple(Path(arguments).read_text().split("\n")[:-1]), ARGUMENTS)

    async def test_missing_and_failing_tools_mean_no_gpus(self) -> None:
        self.assertIsNone(await self.discover("no-such-tool-anywhere"))
        self.assertIsNone(await self.discover(self.tool("echo '0, Tesla T4, GPU-a'; echo no driver >&2; exit 9\n")))

    async def test_a_hung_tool_is_killed(self) -> None:
        pid = os.path.join(self.directory, "pid")
        began = time.monotonic()
        self.assertIsNone(await self.discover(self.tool(f"echo $$ > {pid}\nexec tail -f /dev/null\n"), timeout=0.3))
        self.assertLess(time.monotonic() - began, 5)
        number = int(Path(pid).read_text())
        ended: Deferred[None] = Deferred()

        def look(tries: int = 0) -> None:
            try:
                os.kill(number, 0)
            except ProcessLookupError:
                ended.callback(None)
            else:
                self.reactor.callLater(0.01, look)  # type: ignore[attr-defined]

        look()
        await ended.addTimeout(5, self.reactor)  # type: ignore[arg-type]
