"""Every REST route of applications and requests."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.devserver.multipart import read_multipart

from .peer import completed, failed, payload
from .test_functions import call, manifest, plan
from .web import Body, RestCase, multipart

NS = "/v1/namespaces/default"
APP = NS + "/applications/app"


class MultipartTests(SynchronousTestCase):
    @given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.binary(), min_size=1))
    def test_parts_come_back_byte_for_byte(self, parts: dict[str, bytes]) -> None:
        body, content_type = multipart(**parts)
        self.assertEqual(read_multipart(content_type, body), parts)

    @given(st.binary())
    def test_rubbish_is_refused_with_a_sentence(self, body: bytes) -> None:
        self.assertRaises(ValueError, read_multipart, "multipart/form-data; boundary=b", body)

    def test_other_content_types(self) -> None:
        for content_type in ("", "application/json", "multipart/form-data"):
            self.assertRaises(ValueError, read_multipart, content_type, b"")


class ApplicationCase(RestCase):
    async def deploy(self, of: dict[str, Any], code: bytes | None = b"PK\r\n\x00", **parts: bytes) -> Any:
        parts = {"application": json.dumps(of).encode(), **parts}
        if code is not None:
            parts |= {"code": code, "code_content_type": b"application/zip"}
        body, content_type = multipart(**parts)
        return await self.ask("POST", NS + "/applications", body, content_type=content_type)

    def run_of(self) -> Any:
        [allocation] = [c.run_allocation.allocation for c in self.peer.take() if c.HasField("run_allocation")]
        return allocation

    def value(self, data: bytes, *, prefix: bytes = b"", content_type: str = "application/json") -> Any:
        uri = self.engine.world.blobs.write("value", b"xx" + prefix + data)
        return payload(
            uri,
            size=len(prefix + data),
            offset=2,
            metadata_size=len(prefix),
            content_type=content_type,
        )


class ApplicationTests(ApplicationCase):
    def test_deploying(self) -> Deferred[None]:
        async def body() -> None:
            # As in the README: no version, no functions, no code.
            readme = await self.deploy({"name": "test-app", "functions": {}}, code=None)
            self.assertEqual((readme.status, readme.body), (200, b""))
            self.assertEqual((await self.deploy(manifest("f"))).status, 200)
            stored = self.engine.applications.get("default", "app").versions["v1"].code
            self.assertEqual(self.engine.story.read(stored), b"PK\r\n\x00")
            told = (await self.ask("GET", APP)).json()
            self.assertEqual(
                (told["namespace"], told["version"], told["state"], told["functions"]["f"]["timeout_sec"]),
                ("default", "v1", "active", 300),
            )
            listed = (await self.ask("GET", NS + "/applications")).json()
            self.assertEqual([a["name"] for a in listed["applications"]], ["test-app", "app"])
            self.assertIsNone(listed["cursor"])
            page = (await self.ask("GET", NS + "/applications?limit=1")).json()
            rest = (await self.ask("GET", f"{NS}/applications?limit=1&cursor={page['cursor']}")).json()
            self.assertEqual([a["name"] for a in page["applications"] + rest["applications"]], ["test-app", "app"])
            await self.table(
                ("GET", NS + "/applications/none", None, 404, b"Application not found"),
                ("GET", NS + "/applications?limit=many", None, 400, None),
                ("GET", NS + "/applications/none/containers", None, 200, {"containers": []}),
                ("DELETE", APP, None, 200, b""),
                ("GET", APP, None, 404, b"Application not found"),
            )

        return Deferred.fromCoroutine(body())

    def test_without_a_namespace_it_is_the_default_one(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.register()
            await self.deploy(manifest("f"))
            made = await self.ask("POST", "/applications/app", b'["x"]', content_type="application/json")
            request = f"/applications/app/requests/{made.json()['request_id']}"
            self.assertEqual((await self.ask("GET", request)).json(), (await self.ask("GET", f"{NS}{request}")).json())

        return Deferred.fromCoroutine(body())

    def test_what_is_refused(self) -> Deferred[None]:
        async def body() -> None:
            for response, message in (
                (await self.deploy(manifest("f"), code=None), b"code is required"),
                (await self.deploy({"functions": {}}), None),
                (await self.deploy({**manifest("f"), "entrypoint": None}), b"entrypoint is required"),
                (await self.deploy(manifest("f"), code_content_type=b"x", code=None), None),
                (await self.deploy(manifest("f"), upgrade_requests_to_latest_code=b"maybe"), None),
                (await self.ask("POST", NS + "/applications", b"{}", content_type="application/json"), None),
                (await self.ask("POST", NS + "/applications", b"{}"), None),
            ):
                self.assertEqual(response.status, 400, response.body)
                if message is not None:
                    self.assertEqual(response.body, message)
            form, content_type = multipart(code=b"x")
            missing = await self.ask("POST", NS + "/applications", form, content_type=content_type)
            self.assertEqual((missing.status, missing.body), (400, b"application manifest is required"))
            self.assertEqual((await self.deploy(manifest("f"), code=b"x" * (7 << 20))).status, 413)

        return Deferred.fromCoroutine(body())

    def test_containers(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.register()
            await self.deploy(manifest("f", min_containers=1))
            [container] = (await self.ask("GET", APP + "/containers")).json()["containers"]
            self.assertEqual(
                {name: container[name] for name in ("application_name", "version", "function_name", "executor_id")},
                {"application_name": "app", "version": "v1", "function_name": "f", "executor_id": "executor-1"},
            )
            self.assertEqual((container["desired_state"], container["current_state"]), ("running", "pending"))

        return Deferred.fromCoroutine(body())


class RequestTests(ApplicationCase):
    def test_invoking(self) -> Deferred[None]:
        async def body() -> None:
            await self.deploy({"name": "empty"}, code=None)
            await self.deploy(manifest("f"))
            json_type = {"content_type": "application/json"}
            first = await self.ask("POST", APP, b"[1]", **json_type, idempotency_key="key-1")
            self.assertEqual((first.status, first.json()), (200, {"request_id": "key-1"}))
            again = await self.ask("POST", APP, b"[1]", **json_type, idempotency_key="key-1")
            self.assertEqual(again.status, 409)
            fresh = (await self.ask("POST", APP, b"[1]", accept="application/json")).json()["request_id"]
            self.assertRegex(fresh, "^[0-9a-z]{21}$")
            for bad in ({"idempotency_key": "x" * 37}, {"accept": "*/*"}):
                self.assertEqual((await self.ask("POST", APP, b"", **bad)).status, 400)
            # The one with a bad Accept was created all the same.
            self.assertEqual(len(self.engine.applications.list_requests("default", "app")), 3)
            await self.table(
                ("POST", NS + "/applications/none", b"", 404, b"application not found"),
                ("POST", NS + "/applications/empty", b"", 400, None),
            )

        return Deferred.fromCoroutine(body())

    def test_a_request_from_start_to_output(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.register()
            await self.deploy(manifest("f", "g"))
            await self.ask("POST", APP, b"[1]", content_type="application/json", idempotency_key="r")
            path = APP + "/requests/r"
            entry = self.run_of()
            told = (await self.ask("GET", path)).json()
            self.assertEqual((told["outcome"], told["failure_reason"], told["request_error"]), (None, None, None))
            [run] = told["function_runs"]
            self.assertEqual((run["id"], run["name"], run["status"]), ("r", "f", "running"))
            self.assertEqual(run["allocations"][0]["id"], entry.allocation_id)
            await self.table(
                ("GET", path + "/output", None, 204, b""),
                ("GET", path + "/output/r", None, 404, None),
                ("GET", APP + "/requests/none", None, 404, b"request not found"),
                ("GET", APP + "/requests/none/output", None, 404, None),
            )
            self.peer.beat(allocation_outcomes=[completed(entry, updates=plan("t", call("t", "g")))])
            value = self.value(b'{"a":1}', prefix=b"metadata")
            self.peer.beat(allocation_outcomes=[completed(self.run_of(), value=value, execution_duration_ms=3)])
            for where in ("/output", "/output/t", "/output/r"):
                output = await self.ask("GET", path + where)
                self.assertEqual(
                    (output.status, output.body, output.headers["content-type"]), (200, b'{"a":1}', "application/json")
                )
            head = await self.ask("HEAD", path + "/output")
            self.assertEqual((head.status, head.headers["content-length"], head.body), (200, "15", b""))
            done = (await self.ask("GET", path)).json()
            self.assertEqual(done["outcome"], "success")
            self.assertEqual([r["child_function_run_ids"] for r in done["function_runs"]], [["t"], []])
            self.assertEqual(done["function_runs"][1]["allocations"][0]["execution_duration_ms"], 3)
            await self.table(
                ("DELETE", path, None, 200, b""),
                ("DELETE", path, None, 200, b""),
                ("GET", path, None, 404, b"request not found"),
            )

        return Deferred.fromCoroutine(body())

    def test_a_failure_is_told_with_its_text(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.register()
            await self.deploy(manifest("f"))
            await self.ask("POST", APP, b"[1]", idempotency_key="r")
            error = self.value("größer".encode(), content_type="text/plain")
            self.peer.beat(allocation_outcomes=[failed(self.run_of(), "REQUEST_ERROR", request_error=error)])
            told = (await self.ask("GET", APP + "/requests/r")).json()
            self.assertEqual(told["outcome"], {"failure": "request_error"})
            self.assertEqual(told["request_error"], {"function_name": "f", "message": "größer"})

        return Deferred.fromCoroutine(body())

    def test_a_large_output_is_streamed(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.register()
            await self.deploy(manifest("f"))
            await self.ask("POST", APP, b"", idempotency_key="r")
            data = bytes(range(256)) * (20 << 12)
            value = self.value(data, content_type="application/octet-stream")
            self.peer.beat(allocation_outcomes=[completed(self.run_of(), value=value)])
            output = await self.ask("GET", APP + "/requests/r/output")
            self.assertTrue(output.body == data)

        return Deferred.fromCoroutine(body())

    def test_paging_through_requests(self) -> Deferred[None]:
        async def body() -> None:
            await self.deploy(manifest("f"))
            for number in range(5):
                await self.ask("POST", APP, b"", idempotency_key=f"r{number}")
            seen, cursor = [], ""
            while True:
                page = (await self.ask("GET", f"{APP}/requests?limit=2{cursor}")).json()
                seen.append([r["id"] for r in page["requests"]])
                if page["next_cursor"] is None:
                    break
                cursor = f"&cursor={page['next_cursor']}"
            self.assertEqual(seen, [["r4", "r3"], ["r2", "r1"], ["r0"]])
            back = f"{APP}/requests?limit=2&direction=backward&cursor={page['prev_cursor']}"
            self.assertEqual([r["id"] for r in (await self.ask("GET", back)).json()["requests"]], ["r2", "r1"])
            self.assertEqual((await self.ask("GET", APP + "/requests?cursor=%ff")).status, 400)

        return Deferred.fromCoroutine(body())


class StreamTests(ApplicationCase):
    def test_events_of_a_request(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.register()
            await self.deploy(manifest("f"))
            response = await self.send("POST", APP, b"[1]", accept="text/event-stream", idempotency_key="r")
            self.assertEqual(response.headers.getRawHeaders("content-type"), ["text/event-stream"])
            live = Body()
            response.deliverBody(live)
            self.clock.advance(1)
            value = self.value(b'{"a":1}', prefix=b"m")
            self.peer.beat(allocation_outcomes=[completed(self.run_of(), value=value)])
            await live.ended
            tags = [next(iter(event)) for event in live.events()]
            self.assertEqual(
                tags,
                [
                    "RequestStarted",
                    "FunctionRunCreated",
                    "AllocationCreated",
                    "AllocationCompleted",
                    "FunctionRunCompleted",
                    "RequestFinished",
                ],
            )
            self.assertIn(b":\n\n", live.data)
            finished = live.events()[-1]["RequestFinished"]
            self.assertEqual(
                (finished["outcome"], finished["output"]["body"], finished["output"]["path"]),
                ("success", {"a": 1}, APP + "/requests/r/output"),
            )
            for event in live.events():
                [fields] = event.values()
                self.assertLessEqual(
                    {"namespace", "application_name", "application_version", "request_id", "created_at"}, set(fields)
                )
            # A finished request is told from its beginning.
            replay = await self.ask("GET", APP + "/requests/r/progress")
            self.assertEqual(replay.body.count(b"data: "), 6)
            self.assertEqual((await self.ask("GET", APP + "/requests/none/progress")).status, 404)

        return Deferred.fromCoroutine(body())

    def test_a_listener_that_leaves_is_forgotten(self) -> Deferred[None]:
        async def body() -> None:
            await self.deploy(manifest("f"))
            await self.ask("POST", APP, b"", idempotency_key="r")
            response = await self.send("GET", APP + "/requests/r/progress")
            lines = Body()
            response.deliverBody(lines)
            request = self.engine.applications.get_request("default", "app", "r")
            self.assertEqual(len(request.listeners), 1)
            lines.transport.loseConnection()
            await lines.ended
            while request.listeners:
                await self.ask("GET", "/healthz")
            self.assertEqual(self.clock.getDelayedCalls(), [])

        return Deferred.fromCoroutine(body())
