"""What the log and the state routes tell of containers that wait for GPUs."""

from __future__ import annotations

from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane import node_view
from indexify_dataplane.core import events as ev
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.transitions import Transitions

from .core.build import Play, function, handle


class Observed(Play):
    """A play whose transitions are written to the log."""

    def __init__(self) -> None:
        super().__init__()
        self.transitions = Transitions(metrics=Metrics(), left_running=lambda container_id: None)
        self.lines: list[dict[str, Any]] = []

    def __call__(self, event: ev.Event) -> Any:
        before = self.node
        effects = super().__call__(event)
        with capturedLogs() as said:
            self.transitions(before, event, self.node, self.now)
        self.lines = list(said)
        return effects

    def said(self) -> list[tuple[str, str, str]]:
        return [(each["log_level"].name, each["log_format"], each["container_id"]) for each in self.lines]


class WaitingForGpus(SynchronousTestCase):
    def setUp(self) -> None:
        self.play = Observed()
        for id in ("one", "two"):
            self.play.running(function(id, gpus=1))
            self.play.command(ev.RemoveContainer(id))
        self.play.add(function("first", gpus=2))
        self.play.now = 3.0

    def test_one_line_says_what_it_waits_for(self) -> None:
        self.assertEqual(self.play.said(), [("info", "container waits for GPUs", "first")])
        [line] = self.play.lines
        shown = {name: line[name] for name in ("gpus_asked", "gpus_free", "waits_for", "behind", "gives_up_after_secs")}
        self.assertEqual(
            shown,
            {"gpus_asked": 2, "gpus_free": 0, "waits_for": "one, two", "behind": "", "gives_up_after_secs": 60.0},
        )

    def test_the_start_that_follows_is_told_beside_the_end_that_made_it_possible(self) -> None:
        self.play.killed("one")
        self.assertEqual(self.play.said(), [("info", "container terminated", "one")])
        self.play.killed("two")
        self.assertEqual(
            self.play.said(),
            [("info", "container terminated", "two"), ("info", "container starting", "first")],
        )
        self.assertEqual(self.play.lines[1]["from_state"], "queued")
        self.play.now = 5.0
        self.play.started("first")
        self.assertEqual(self.play.lines[0]["startup_duration_ms"], 2000.0, "its own start, not the wait before it")

    def test_an_end_of_one_is_not_told_as_the_error_of_the_other(self) -> None:
        play = Observed()
        play.add(function("old", gpus=2))
        play.command(ev.RemoveContainer("old"))
        play.add(function("new", gpus=2))
        play(ev.StartFailed("old", play.node.containers["old"].op, 1, "the start was cancelled"))
        self.assertEqual(play.said(), [("warn", "container terminated", "old"), ("info", "container starting", "new")])
        self.assertNotIn("error", play.lines[1])

    def test_who_is_given_up_is_told_why(self) -> None:
        self.play.killed("one")
        self.play.now = 60.0
        self.play(ev.Due("first"))
        self.assertEqual(self.play.said(), [("warn", "container terminated", "first")])
        self.assertEqual(self.play.lines[0]["error"], "1 GPUs are free after 60 s, others held by two")

    def test_a_refusal_says_what_is_missing(self) -> None:
        self.play.add(function("third", gpus=1))
        self.assertEqual(self.play.said()[0], ("warn", "container refused", "third"))
        self.assertIn("2 are promised to containers that wait", self.play.lines[0]["reason"])

    def test_the_state_routes(self) -> None:
        state = node_view.state(self.play.node, node_view.Moment(monotonic=3.0, wall=1_700_000_003.0))
        by_id = {each["id"]: each for each in state["containers"]}
        first = by_id["first"]
        self.assertEqual((first["state"], first["waits_for"]), ("queued", ["one", "two"]))
        self.assertEqual(
            (first["since"], first["gives_up_at"]), ("2023-11-14T22:13:20.000Z", "2023-11-14T22:14:20.000Z")
        )
        self.assertEqual((by_id["one"]["waits_for"], by_id["one"]["gpus"]), (None, ["g1"]))
        self.assertEqual(by_id["one"]["handle_id"], handle("one").id)
