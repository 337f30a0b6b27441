"""Many seeds through the whole node. ``SIMULATION_SEED=n`` replays one; ``SIMULATION_SEEDS=n`` sets how many."""

from __future__ import annotations

import os
import subprocess
import sys

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from .planted import PLANTED
from .world import Broken, Simulation, calm

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "60"))


class Seeds(SynchronousTestCase):
    def test_calm_weather(self) -> None:
        for seed in range(5):
            Simulation(seed, dice=calm(), outages=False).run()

    def test_crashes_between_any_two_steps(self) -> None:
        crashes = 0
        for seed in range(1000, 1000 + SEEDS // 3):
            crashes += Simulation(seed, dice=calm(crash=0.03), outages=False, seconds=60).run().crashes
        self.assertGreater(crashes, SEEDS // 3, "a run without crashes shows nothing")

    def test_everything_at_once(self) -> None:
        chosen = os.environ.get("SIMULATION_SEED")
        for seed in [int(chosen)] if chosen else range(2000, 2000 + SEEDS):
            Simulation(seed).run()

    def test_a_seed_replays(self) -> None:
        """The same seed gives the same story, also in another process with other hash seeds."""
        program = (
            "import sys; from tests.simulation.world import Simulation\n"
            "one = Simulation(int(sys.argv[1]), seconds=40).run()\n"
            "print(len(one.events), one.random.random(), one.clock.seconds())"
        )
        outputs = set()
        for hash_seed in ("1", "2"):
            run = subprocess.run(
                [sys.executable, "-c", program, "2001"],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            )
            outputs.add(run.stdout)
        self.assertEqual(len(outputs), 1)


class Planted(SynchronousTestCase):
    """The simulation is worth its name only if it finds mistakes."""

    def found(self, name: str) -> str | None:
        parts, dice = PLANTED[name]
        for seed in range(3000, 3000 + 60):
            try:
                Simulation(seed, dice=evolve(dice), parts=parts).run()
            except Broken as error:
                return str(error)
        return None

    def test_every_planted_fault_is_found(self) -> None:
        self.assertGreaterEqual(len(PLANTED), 12)
        for name in PLANTED:
            self.assertIsNotNone(self.found(name), f"not found: {name}")
