"""Requests and their function runs: who may run, what an outcome leads to, and where results go.

A run is retried by the reason of its failure: some count against the function's limit, some are free, some are final.
A final failure is the caller's to catch, as the SDK promises; it fails the request when no caller is left to tell.
"""

from __future__ import annotations

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .errors import Malformed
from .events import Story, failure_text
from .fleet import Fleet
from .line import Line
from .plans import Plan, check_payload, need, read_plan
from .state import Allocation, FunctionRun, Request, Route, World

F = pb.AllocationFailureReason
COUNTED = {
    F.ALLOCATION_FAILURE_REASON_INTERNAL_ERROR,
    F.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR,
    F.ALLOCATION_FAILURE_REASON_FUNCTION_TIMEOUT,
    F.ALLOCATION_FAILURE_REASON_OOM,
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_INTERNAL_ERROR,
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_ERROR,
    F.ALLOCATION_FAILURE_REASON_STARTUP_FAILED_FUNCTION_TIMEOUT,
}
FREE = {F.ALLOCATION_FAILURE_REASON_CONTAINER_TERMINATED, F.ALLOCATION_FAILURE_REASON_EXECUTOR_REMOVED}


def pool_key(run: FunctionRun) -> tuple[str, str]:
    """Namespace and pool of the containers that can take the run."""
    request = run.request
    return (request.namespace, f"{request.application}|{run.function}|{request.version}")


class Runs:
    """The graph of calls of every request."""

    def __init__(self, world: World, fleet: Fleet, story: Story) -> None:
        self._world = world
        self._fleet = fleet
        self._story = story

    # Requests and calls

    def start(self, request: Request, function: str, body: pb.DataPayload) -> None:
        """Begin a request with its entry call, which has the request's id."""
        self._world.requests[(request.namespace, request.application, request.id)] = request
        self._story.tell(request, "RequestStarted")
        self.make_ready(self._add(request, request.id, function, (body,), b"", None, 0))

    def _add(
        self,
        request: Request,
        call_id: str,
        function: str,
        sources: tuple[pb.DataPayload | str, ...],
        metadata: bytes,
        parent: FunctionRun | None,
        depth: int,
    ) -> FunctionRun:
        known = request.runs.get(call_id)
        if known is not None:
            return known
        run = FunctionRun(
            call_id,
            request,
            function,
            list(sources),
            metadata,
            int(self._world.wall() * 1e9),
            parent.id if parent else None,
            depth,
        )
        request.runs[call_id] = run
        if parent is not None:
            parent.children.append(call_id)
        self._story.run("FunctionRunCreated", run)
        return run

    def _extend(self, request: Request, plan: Plan, parent: FunctionRun) -> list[FunctionRun]:
        """Create the calls of a plan; those that exist already are left as they are. A parent that is completed has
        ended with them: they take its place."""
        depth = parent.depth + (parent.status != "completed")
        return [self._add(request, c.id, c.function, c.sources, c.metadata, parent, depth) for c in plan.calls]

    def make_ready(self, run: FunctionRun) -> None:
        """Queue the run for a place if all its arguments have values; one that needs a failed run fails like it."""
        if run.status != "waiting":
            return
        if all(self._value(run, source) is not None for source in run.sources):
            run.status = "pending"
            self.queue(run)
            return
        for other in list(run.request.runs.values()):
            if other.outcome == "failure" and not self._names(other).isdisjoint(run.needs):
                self._gives_up(run, other.failure_reason, other.request_error)
                return

    def queue(self, run: FunctionRun) -> None:
        self._world.unplaced_runs.setdefault(pool_key(run), Line()).join(run)
        self._world.stirred = True

    def unqueue(self, run: FunctionRun) -> None:
        line = self._world.unplaced_runs.get(pool_key(run))
        if line is not None:
            line.leave(run)

    def _value(self, run: FunctionRun, source: pb.DataPayload | str) -> pb.DataPayload | None:
        if isinstance(source, pb.DataPayload):
            return source
        maker = run.request.runs.get(source)
        return maker.value if maker is not None else None

    def _arguments(self, run: FunctionRun) -> list[pb.DataPayload]:
        found = []
        for source in run.sources:
            argument = pb.DataPayload()
            argument.CopyFrom(self._value(run, source) or pb.DataPayload())
            argument.encoding_version = 0
            argument.offset = argument.offset
            argument.metadata_size = argument.metadata_size
            if not argument.id:
                argument.id = self._world.fresh_id()
            if isinstance(source, str):
                argument.source_function_call_id = source
            found.append(argument)
        return found

    def order(self, allocation: Allocation) -> pb.Allocation:
        """The allocation as RunAllocation carries it."""
        run = allocation.run
        request = run.request
        prefix = f"{self._world.blobs.base}/{request.namespace}/{request.application}/{request.id}"
        return pb.Allocation(
            function=pb.FunctionRef(
                namespace=request.namespace, application_name=request.application, function_name=run.function
            ),
            allocation_id=allocation.id,
            function_call_id=run.id,
            request_id=request.id,
            args=self._arguments(run),
            request_data_payload_uri_prefix=prefix,
            request_error_payload_uri_prefix=prefix,
            container_id=allocation.container_id,
            function_call_metadata=run.metadata,
        )

    # Reports

    def called(self, entry: pb.AllocationLogEntry, executor_id: str) -> None:
        """A running allocation made calls; their results go back to it."""
        call = entry.call_function
        need(call, "namespace", "application", "request_id", "source_function_call_id")
        if not call.HasField("updates"):
            raise Malformed("FunctionCallRequest: missing updates")
        plan = read_plan(call.updates, self._world.fresh_id)
        request = self._world.requests.get((call.namespace, call.application, call.request_id))
        if request is None or request.outcome == "failure":
            return
        parent = request.runs.get(call.source_function_call_id)
        if parent is None:
            raise Malformed(f"FunctionCallRequest: invalid source_function_call_id {call.source_function_call_id}")
        added = self._extend(request, plan, parent)
        routed = {update.function_call.id or update.reduce.id for update in call.updates.updates} | {plan.root}
        for call_id in sorted(routed & request.runs.keys()):
            self._route(request, call_id, Route(executor_id, entry.allocation_id, call_id))
        for run in added:
            self.make_ready(run)

    def _route(self, request: Request, call_id: str, route: Route) -> None:
        run = request.runs[call_id]
        while run.value is None and run.tail is not None and run.tail in request.runs:
            run = request.runs[run.tail]
        run.routes = [r for r in run.routes if r.call_id != route.call_id or r.allocation_id != route.allocation_id]
        run.routes.append(route)
        if run.value is not None or run.outcome == "failure":
            self._deliver(run)

    def completed(self, report: pb.AllocationCompleted) -> None:
        self._check_reference(report)
        self._fleet.ended(report.allocation_id)
        kind = report.WhichOneof("return_value")
        plan = None
        if kind == "updates":
            plan = read_plan(report.updates, self._world.fresh_id)
            if not plan.root:
                raise Malformed("AllocationCompleted: missing updates.root_function_call_id")
        elif kind == "value":
            check_payload(report.value)
        allocation = self._open(report)
        if allocation is None:
            return
        self._close(allocation, "success", 0, report)
        run = allocation.run
        if run.allocations[-1] is not allocation or run.status == "completed":
            return
        if plan is not None:
            run.status, run.outcome, run.tail = "completed", "success", plan.root
            self._story.run("FunctionRunCompleted", run, outcome="success")
            added = self._extend(run.request, plan, run)
            routes, run.routes = run.routes, []
            for route in routes:
                self._route(run.request, run.id, route)
            for other in added:
                self.make_ready(other)
            root = run.request.runs.get(plan.root)
            if root is not None and root.value is not None:
                self._has_value(run, root.value)
        else:
            run.status, run.outcome = "completed", "success"
            self._story.run("FunctionRunCompleted", run, outcome="success")
            self._has_value(run, report.value if kind == "value" else pb.DataPayload())

    def failed(self, report: pb.AllocationFailed) -> None:
        self._check_reference(report)
        self._fleet.ended(report.allocation_id)
        if report.HasField("request_error"):
            check_payload(report.request_error)
        allocation = self._open(report)
        if allocation is not None:
            error = report.request_error if report.HasField("request_error") else None
            self.fail(allocation, report.reason, error, report)

    def fail(
        self,
        allocation: Allocation,
        reason: int,
        error: pb.DataPayload | None = None,
        report: pb.AllocationFailed | None = None,
    ) -> None:
        """An allocation ended without a result: try again or give the run up. One that was called off just ends."""
        if allocation.outcome is not None:
            self._fleet.ended(allocation.id)
            return
        self._close(allocation, "failure", reason, report)
        run = allocation.run
        if run.allocations[-1] is not allocation or run.status == "completed":
            return
        application = self._world.applications.get((run.request.namespace, run.request.application))
        version = application.versions.get(run.request.version) if application is not None else None
        function = version.manifest["functions"].get(run.function) if version is not None else None
        if function is not None:
            run.counted_failures += reason in COUNTED
            limit = function["retry_policy"]["max_retries"]
            if reason in FREE or (reason in COUNTED and run.counted_failures <= limit):
                run.status = "pending"
                self.queue(run)
                return
        self._gives_up(run, reason, error)

    def _gives_up(self, run: FunctionRun, reason: int, error: pb.DataPayload | None) -> None:
        """The run has failed for good, and what needs its value with it. Callers that still run are told and may catch
        it; when there are none the request has failed."""
        lost, heard = [run], False
        while lost:
            one = lost.pop()
            if one.outcome == "failure":
                continue
            one.status, one.outcome, one.failure_reason, one.request_error = "completed", "failure", reason, error
            self._story.run("FunctionRunCompleted", one, outcome={"failure": failure_text(reason)})
            heard = heard or any(self._listens(one.request, route) for route in one.routes)
            self._deliver(one)
            names = self._names(one)
            lost += [r for r in run.request.runs.values() if r.status == "waiting" and not names.isdisjoint(r.needs)]
        if not heard:
            cause = self._cause(run)
            run.request.failed_run = cause
            self.finish(run.request, "failure", cause.failure_reason)

    def _names(self, run: FunctionRun) -> set[str]:
        """The run's id and those of the runs that ended with it as their tail call."""
        names = {run.id}
        while more := {r.id for r in run.request.runs.values() if r.tail in names} - names:
            names |= more
        return names

    def _listens(self, request: Request, route: Route) -> bool:
        allocation = request.allocations.get(route.allocation_id)
        return allocation is not None and allocation.outcome is None

    def _cause(self, run: FunctionRun) -> FunctionRun:
        """What the request failed of: a function error of a caller is that of the call that it did not catch."""
        if run.failure_reason != F.ALLOCATION_FAILURE_REASON_FUNCTION_ERROR:
            return run
        for child_id in run.children:
            child = run.request.runs[child_id]
            if child.outcome == "failure" and child.request_error is None:
                return self._cause(child)
        return run

    def _check_reference(self, report: pb.AllocationCompleted | pb.AllocationFailed) -> None:
        need(report, "allocation_id", "function_call_id", "request_id")
        if not report.HasField("function"):
            raise Malformed(f"{type(report).__name__}: missing function")
        need(report.function, "namespace", "application_name", "function_name")

    def _open(self, report: pb.AllocationCompleted | pb.AllocationFailed) -> Allocation | None:
        key = (report.function.namespace, report.function.application_name, report.request_id)
        request = self._world.requests.get(key)
        allocation = request.allocations.get(report.allocation_id) if request is not None else None
        return allocation if allocation is not None and allocation.outcome is None else None

    def _close(
        self,
        allocation: Allocation,
        outcome: str,
        reason: int,
        report: pb.AllocationCompleted | pb.AllocationFailed | None,
        *,
        is_called_off: bool = False,
    ) -> None:
        allocation.outcome, allocation.failure_reason = outcome, reason
        if report is not None and report.HasField("execution_duration_ms"):
            allocation.duration_ms = report.execution_duration_ms
        if not is_called_off:
            self._fleet.vacate(allocation)
        self._story.allocation(
            "AllocationCompleted", allocation, outcome="success" if outcome == "success" else failure_text(reason)
        )

    # Values and results

    def _has_value(self, run: FunctionRun, value: pb.DataPayload) -> None:
        settled = [(run, value)]
        request = run.request
        while settled:
            run, value = settled.pop()
            if run.value is not None:
                continue
            run.value = value
            self._deliver(run)
            for other in list(request.runs.values()):
                if other.tail == run.id:
                    settled.append((other, value))
                elif other.status == "waiting" and run.id in other.sources:
                    self.make_ready(other)
        if request.runs[request.id].value is not None:
            self.finish(request, "success", 0)

    def _deliver(self, run: FunctionRun) -> None:
        """Send the run's result to every allocation that waits for it."""
        routes, run.routes = run.routes, []
        for route in routes:
            executor = self._fleet.known(route.executor_id)
            if executor is None:
                continue
            result = pb.FunctionCallResult(
                namespace=run.request.namespace, request_id=run.request.id, function_call_id=route.call_id
            )
            if run.value is not None:
                result.outcome_code = pb.ALLOCATION_OUTCOME_CODE_SUCCESS
                if run.value.uri:
                    result.return_value.CopyFrom(run.value)
                    result.return_value.encoding_version = 0
                    result.return_value.source_function_call_id = route.call_id
            else:
                result.outcome_code = pb.ALLOCATION_OUTCOME_CODE_FAILURE
                result.failure_reason = run.failure_reason  # type: ignore[assignment]
                if run.request_error is not None:
                    result.request_error.CopyFrom(run.request_error)
            entry = pb.AllocationLogEntry(allocation_id=route.allocation_id, clock=0, function_call_result=result)
            executor.results.put(pb.SequencedAllocationResult(entry=entry))
            executor.results.wake()

    def finish(self, request: Request, outcome: str, reason: int) -> None:
        """The request is over. After a failure nothing more is started for it, what runs is ended, and late outcomes
        are accepted and ignored; after a success, calls that nobody waited for go on."""
        if request.outcome is not None:
            return
        request.outcome, request.failure_reason = outcome, reason
        if outcome == "failure":
            self._abandon(request)
        self._story.finished(request)

    def discard(self, request: Request) -> None:
        """Forget the request; what it still runs is ended, also after a success."""
        self._world.requests.pop((request.namespace, request.application, request.id), None)
        self.finish(request, "failure", F.ALLOCATION_FAILURE_REASON_ALLOCATION_CANCELLED)
        self._abandon(request)

    def _abandon(self, request: Request) -> None:
        for run in request.runs.values():
            if run.status != "completed":
                run.status = "completed"
                self.unqueue(run)
        for allocation in request.allocations.values():
            if allocation.outcome is None:
                order = self.order(allocation)
                reason = F.ALLOCATION_FAILURE_REASON_ALLOCATION_CANCELLED
                self._close(allocation, "failure", reason, None, is_called_off=True)
                self._fleet.call_off(allocation, order)
