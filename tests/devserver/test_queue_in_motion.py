"""Functions that call each other, played by dice over containers that have runs at hand and may die."""

from __future__ import annotations

from random import Random
from typing import Any

from indexify_dataplane.devserver.crowding import is_awaited
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .peer import completed, failed, payload, terminated
from .test_functions import call, plan
from .test_queue import QueueCase


class Node:
    """Runs what it is ordered, as a node does: per container those first that are ready first, as far as slots go."""

    def __init__(self, case: QueueCase, dice: Random, slots: int) -> None:
        self.case, self.dice, self.slots = case, dice, slots
        self.ready: dict[str, list[pb.Allocation]] = {}
        self.running: dict[str, list[pb.Allocation]] = {}
        self.wishes: dict[str, list[list[str]]] = {}
        """What is left to call, by run: a list of functions for each time it calls."""
        self.waits_for: dict[str, set[str]] = {}

    def look(self) -> None:
        for allocation in self.case.allocations():
            line = self.ready.setdefault(allocation.container_id, [])
            line.insert(self.dice.randint(max(0, len(line) - 2), len(line)), allocation)  # almost in order
        for result in self.case.peer.results():
            for calls in self.waits_for.values():
                calls.discard(result.function_call_id)
        for container_id, line in self.ready.items():
            active = self.running.setdefault(container_id, [])
            while line and len(active) < self.slots:
                active.append(line.pop(0))

    def step(self) -> bool:
        """Whether anything could go on."""
        able = [one for active in self.running.values() for one in active if not self.waits_for.get(one.allocation_id)]
        if not able:
            return False
        one = self.dice.choice(able)
        if self.dice.random() < 0.03:
            self.end(one.container_id)
            return True
        depth = one.function_call_id.count("/")
        wishes = self.wishes.setdefault(
            one.function_call_id,
            [self.dice.choices("fg", k=self.dice.randint(1, 2)) for _ in range(self.dice.randint(0, 2) * (depth < 3))],
        )
        if wishes:
            number = len(wishes)
            names = {f"{one.function_call_id}/{number}{at}": each for at, each in enumerate(wishes[-1])}
            if depth == 0 and number == 1 and self.dice.random() < 0.3:
                self.over(one, updates=plan(next(iter(names)), *(call(name, each) for name, each in names.items())))
                return True
            self.case.log(one, plan(next(iter(names)), *(call(name, each) for name, each in names.items())))
            # One that is tried again makes its calls anew; values of those that are over come at once.
            self.waits_for.setdefault(one.allocation_id, set()).update(names)
            wishes.pop()
        else:
            self.over(one, value=payload())
        return True

    def over(self, one: pb.Allocation, **outcome: Any) -> None:
        self.running[one.container_id].remove(one)
        self.case.finish(completed(one, **outcome))

    def end(self, container_id: str) -> None:
        """The container dies, through no fault of what ran in it. What ran begins anew, without what it had called."""
        lost = [*self.running.pop(container_id), *self.ready.pop(container_id)]
        for each in lost:
            self.waits_for.pop(each.allocation_id, None)
        self.case.peer.beat(
            terminated(container_id, "UNKNOWN"),
            allocation_outcomes=[failed(each, "CONTAINER_TERMINATED", container_id=container_id) for each in lost],
        )


class GoesOnTests(QueueCase):
    """Whatever calls itself and whatever waits in containers: everything comes to its end."""

    def settings(self, dice: Random) -> tuple[int, int, int | None]:
        size, slots, limit = dice.randint(1, 3), dice.randint(1, 2), dice.choice((None, 1, 2))
        self.begin(cpus=dice.randint(1, 4), queue_size=size)
        self.deploy("f", "g", max_containers=limit, max_concurrency=slots, retry_policy={"max_retries": 0})
        return size, slots, limit

    def test_functions_that_call_themselves_and_each_other_come_to_their_end(self) -> None:
        ahead = 0
        for seed in range(120):
            dice = Random(seed)
            size, slots, limit = self.settings(dice)
            requests = [self.invoke() for _ in range(dice.randint(2, 8))]
            node = Node(self, dice, slots)
            for _ in range(3000):
                node.look()
                ahead += self.check(size, slots)
                if not node.step():
                    break
            story = f"seed {seed}: queue_size {size}, slots {slots}, limit {limit}"
            self.assertEqual([each.outcome for each in requests], ["success"] * len(requests), story)
            self.assertEqual(self.engine.world.unplaced_runs, {}, story)
            self.engine.close()
        self.assertGreater(ahead, 100, "without runs that wait in containers this shows nothing")

    def check(self, size: int, slots: int) -> int:
        """The promises of the moment; how many runs wait in containers."""
        beyond = 0
        for container in self.engine.world.containers.values():
            most = container.description.max_concurrency
            self.assertLessEqual(len(container.allocations), size * most)
            waiting = list(container.allocations.values())[most:]
            self.assertEqual([each.run.id for each in waiting if is_awaited(each.run)], [])
            beyond += len(waiting)
        return beyond
