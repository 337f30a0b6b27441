"""Secrets of containers: asked of the provider, put behind the fixed variables, never missing in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.effects import Adopt, Start
from indexify_dataplane.core.events import Event, Started, StartFailed
from indexify_dataplane.core.model import ContainerSpec, Kind, TerminationReason
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.perform.containers import ContainerWork
from indexify_dataplane.perform.readiness import Timing
from indexify_dataplane.testing.memory_driver import MemoryDriver, MemoryHost
from indexify_dataplane.testing.memory_executors import ExecutorWorld, MemoryExecutors
from tests.core.build import function, sandbox

VALUE = "correct horse"


class Vault:
    """Answers with what the test gives it."""

    def __init__(self, answer: Deferred[Mapping[str, str]]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []

    def fetch(self, executor_id: str, namespace: str, names: tuple[str, ...]) -> Deferred[Mapping[str, str]]:
        self.asked.append((executor_id, namespace, names))
        return self.answer


class Secrets(SynchronousTestCase):
    def setUp(self) -> None:
        self.host = MemoryHost()

    def work(self, vault: Vault | None) -> ContainerWork:
        clock = Clock()
        driver = MemoryDriver(reactor=clock, host=self.host)
        return ContainerWork(
            clock=clock,
            drivers={Kind.FUNCTION: driver, Kind.SANDBOX: driver},
            daemons=None,  # type: ignore[arg-type]  # functions have none
            executors=MemoryExecutors(clock=clock, world=ExecutorWorld()),
            executor_id="node-1",
            timing=Timing(),
            metrics=Metrics(),
            secrets=vault,
        )

    def start(self, vault: Vault | None, spec: ContainerSpec) -> tuple[Event, list[Mapping[str, Any]]]:
        with capturedLogs() as events:
            event = self.successResultOf(self.work(vault).start(Start(spec.id, 1, spec, ())))
        self.assertNotIn(VALUE, repr(events))
        return event, [each for each in events if each["log_level"] is LogLevel.warn]

    def env(self) -> Mapping[str, str]:
        (container,) = self.host.containers.values()
        return container.order.env

    def test_without_a_provider_one_warning_names_function_and_secrets(self) -> None:
        event, warnings = self.start(None, evolve(function(), secret_names=("API_KEY", "DB_PASSWORD")))
        self.assertIsInstance(event, Started)
        (warning,) = warnings
        self.assertEqual(warning["function"], "ns:app:f:v1")
        self.assertEqual(warning["secrets"], "API_KEY, DB_PASSWORD")
        self.assertIn("no secrets provider", warning["reason"])

    def test_nothing_is_said_where_nothing_is_asked_for(self) -> None:
        self.assertEqual(self.start(None, function())[1], [])

    def test_values_come_after_the_fixed_variables(self) -> None:
        vault = Vault(succeed({"API_KEY": VALUE, "INDEXIFY_FE_ID": "mine"}))
        event, warnings = self.start(vault, evolve(function(), secret_names=("API_KEY", "INDEXIFY_FE_ID")))
        self.assertIsInstance(event, Started)
        self.assertEqual(warnings, [])
        self.assertEqual(list(self.env())[-1], "API_KEY")
        self.assertEqual(
            self.env(),
            {"INDEXIFY_EXECUTOR_ID": "node-1", "INDEXIFY_FE_ID": "mine", "PYTHONFAULTHANDLER": "1", "API_KEY": VALUE},
        )

    def test_the_provider_is_asked_once_a_start_also_without_names(self) -> None:
        vault = Vault(succeed({}))
        event, warnings = self.start(vault, function())
        self.assertIsInstance(event, Started)
        self.assertEqual((vault.asked, warnings), ([("node-1", "ns", ())], []))

    def test_a_container_that_is_taken_over_has_its_secrets_already(self) -> None:
        vault = Vault(succeed({}))
        work, spec = self.work(vault), function()
        started = self.successResultOf(work.start(Start(spec.id, 1, spec, ())))
        assert isinstance(started, Started)
        self.successResultOf(work.start(Adopt(spec.id, 2, spec, started.handle)))
        self.assertEqual(len(vault.asked), 1)

    def test_what_the_provider_does_not_know_is_told(self) -> None:
        vault = Vault(succeed({"API_KEY": VALUE}))
        _, warnings = self.start(vault, evolve(function(), secret_names=("API_KEY", "OTHER")))
        self.assertEqual([each["secrets"] for each in warnings], ["OTHER"])

    def test_a_provider_that_fails_fails_the_start(self) -> None:
        event, _ = self.start(Vault(fail(OSError("the vault is sealed"))), evolve(function(), secret_names=("A",)))
        assert isinstance(event, StartFailed)
        self.assertEqual(event.reason, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR)
        self.assertIn("the vault is sealed", event.message)
        self.assertEqual(self.host.containers, {})

    def test_a_value_that_no_environment_can_hold_fails_the_start_by_name(self) -> None:
        event, _ = self.start(Vault(succeed({"A": f"{VALUE}\0"})), evolve(function(), secret_names=("A",)))
        assert isinstance(event, StartFailed)
        self.assertIn("'A'", event.message)
        self.assertNotIn(VALUE, event.message)

    def test_a_start_that_is_cancelled_does_not_wait_for_the_provider(self) -> None:
        asked: Deferred[Mapping[str, str]] = Deferred()
        work, spec = self.work(Vault(asked)), sandbox()
        starting = work.start(Start(spec.id, 1, spec, ()))
        self.assertNoResult(starting)
        work.cancel_start(1)
        self.assertIsInstance(self.successResultOf(starting), StartFailed)
        self.assertEqual(self.host.containers, {})
