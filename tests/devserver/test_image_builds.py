"""Image builds as newer SDKs ask for them: noted and answered, nothing is run."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred

from indexify_dataplane.devserver.image_builds import BUILDER_SECS
from indexify_dataplane.devserver.rest import BODY_BYTES

from .web import RestCase

BUILDS = "/platform/v1/sandbox-template-builds"
SANDBOXES = "/v1/namespaces/default/sandboxes"
DIRECTORY = "/var/lib/builder"


class ImageBuildTests(RestCase):
    async def prepare(self) -> Any:
        wanted = {"name": "applications/app/default", "dockerfile": "FROM base\n", "baseImage": "base", "public": False}
        return (await self.ask("POST", BUILDS, wanted)).json()

    async def open(self, prepared: Any) -> str:
        """The path of a builder."""
        wish = {"image": prepared["builder"]["image"], "resources": {"cpus": 2, "memory_mb": 4096, "disk_mb": 10240}}
        created = (await self.ask("POST", SANDBOXES, wish)).json()
        info = (await self.ask("GET", f"{SANDBOXES}/{created['sandbox_id']}")).json()
        self.assertEqual((info["status"], info["sandbox_url"]), ("running", created["sandbox_url"]))
        self.assertTrue(info["sandbox_url"].startswith(self.base + "/"), info)
        return str(info["sandbox_url"]).removeprefix(self.base)

    async def run_in(self, builder: str, command: str, *args: str) -> Any:
        """What a process said and how it ended, the way SDKs ask for it."""
        host = f"{builder.rpartition('/')[2]}.local"
        order = {"command": command, "args": list(args), "user": "root"}
        started = await self.ask("POST", f"{builder}/api/v1/processes", order, host=host)
        self.assertEqual(started.status, 201)
        process = f"{builder}/api/v1/processes/{started.json()['pid']}"
        followed = await self.ask("GET", f"{process}/output/follow", host=host)
        lines = [json.loads(line[6:]) for line in followed.body.decode().splitlines() if line.startswith("data: ")]
        self.assertEqual(lines[-1], {})
        ended = (await self.ask("GET", process, host=host)).json()
        self.assertEqual(ended["status"], "exited")
        return ended["exit_code"], [(line["stream"], line["line"]) for line in lines[:-1]]

    async def write(self, builder: str, name: str, content: bytes) -> int:
        found = await self.ask("PUT", f"{builder}/api/v1/files?path={quote(f'{DIRECTORY}/{name}', safe='')}", content)
        return int(found.status)

    async def whole(self) -> None:
        prepared = await self.prepare()
        builder = await self.open(prepared)
        for command in ("/bin/true", "mkdir", "chmod", "tar"):
            self.assertEqual(await self.run_in(builder, command, "-p", DIRECTORY), (0, []))
        self.assertEqual(await self.write(builder, "context.tar.gz", b"x" * (BODY_BYTES + 1)), 204)
        spec = json.dumps({**prepared, "dockerfile": "FROM base\n"}).encode()
        self.assertEqual(await self.write(builder, "spec.json", spec), 204)
        command = prepared["builder"]["command"]
        options = ("--spec", f"{DIRECTORY}/spec.json", "--metadata-out", f"{DIRECTORY}/metadata.json")
        code, [(stream, line)] = await self.run_in(builder, command, *options)
        self.assertEqual((code, stream), (0, "stdout"))
        self.assertIn("not built", line)
        read = await self.ask("GET", f"{builder}/api/v1/files?path={DIRECTORY}/metadata.json")
        metadata = read.json()
        self.assertEqual(metadata["snapshot_uri"], prepared["snapshotUri"])
        done = f"{BUILDS}/{prepared['buildId']}/complete"
        image = (await self.ask("POST", done, {"snapshotUri": metadata["snapshot_uri"]})).json()
        self.assertEqual(image["name"], "applications/app/default")
        self.assertEqual((await self.ask("POST", done, {})).status, 404)
        identity = builder.rpartition("/")[2]
        self.assertEqual((await self.ask("DELETE", f"{SANDBOXES}/{identity}")).status, 200)
        self.assertEqual((await self.ask("GET", f"{builder}/api/v1/health")).status, 404)

    def test_a_build_from_its_beginning_to_its_end(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.whole())

    def test_nothing_is_run(self) -> Deferred[None]:
        async def run() -> None:
            builder = await self.open(await self.prepare())
            code, [(stream, line)] = await self.run_in(builder, "/bin/sh", "-c", "id")
            self.assertEqual((code, stream), (127, "stderr"))
            self.assertIn("runs no programs", line)
            self.assertEqual((await self.run_in(builder, "note-image", "--spec", "nowhere"))[0], 2)
            told = await self.ask("POST", f"{builder}/api/v1/processes/run", {"command": "dmesg"})
            self.assertIn(b'"exit_code": 127', told.body)

        return Deferred.fromCoroutine(run())

    def test_other_sandboxes_are_sandboxes(self) -> Deferred[None]:
        async def run() -> None:
            created = (await self.ask("POST", SANDBOXES, {"image": "busybox"})).json()
            self.assertEqual(created["status"], "pending")
            path = f"{SANDBOXES}/{created['sandbox_id']}"
            self.assertEqual((await self.ask("GET", path)).json()["image"], "busybox")
            self.assertEqual((await self.ask("DELETE", path)).status, 200)
            self.assertEqual((await self.ask("POST", SANDBOXES, b"{", content_type="application/json")).status, 400)

        return Deferred.fromCoroutine(run())

    def test_host_names_of_builders_are_served_as_long_as_they_are_there(self) -> Deferred[None]:
        async def run() -> None:
            builder = await self.open(await self.prepare())
            identity = builder.rpartition("/")[2]
            health = f"{builder}/api/v1/health"
            self.assertEqual((await self.ask("GET", health, host=f"{identity}.local")).status, 200)
            self.assertEqual((await self.ask("GET", health, host="other.local")).status, 403)
            self.assertEqual((await self.ask("GET", health, host=f"{identity}.example")).status, 403)
            self.clock.advance(BUILDER_SECS + 1)
            await self.open(await self.prepare())
            self.assertEqual((await self.ask("GET", health, host=f"{identity}.local")).status, 403)

        return Deferred.fromCoroutine(run())
