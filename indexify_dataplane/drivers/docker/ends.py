"""Whether a container's life is over, and how it ended, from all that the engine can tell.

A container of this node is started once. So its life ends with its first death, also if somebody (``docker restart``)
starts it anew: the processes, the daemon's memory and the network are other ones then.

The engine's OOM flag stays for ever once any process was killed for memory. Whether that was the end's cause is told
by time: the stream's events, or for what happened while nobody listened the engine's memory of its last few hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...core.model import ExitStatus
from .exit_status import KILLED, SIGNALLED, finished_at, is_running, status_of_code
from .failures import OTHER, engine_call
from .lives import OOM_SECONDS, Death, Lives


class Ends:
    """``client`` is docker-py's low-level one. Blocking."""

    def __init__(self, *, client: Any, lives: Lives) -> None:
        self._client = client
        self._lives = lives

    def over(self, identity: str, state: Mapping[str, Any]) -> bool:
        """Whether its life is, whatever runs now."""
        if not is_running(state) or self._lives.death(identity) is not None or finished_at(state) is not None:
            return True
        self._lives.alive(identity)
        return False

    def status(self, identity: str, state: Mapping[str, Any], *, ends_when_told: bool) -> ExitStatus | None:
        """None while it lives. ``ends_when_told``: with 0 only then. Raises DriverError."""
        if not self.over(identity, state):
            return None
        death, past = self._lives.death(identity), None
        if death is None and state.get("Status") == "created":
            return ExitStatus()
        if death is None:
            at = finished_at(state)
            if not is_running(state):
                death = Death(int(state.get("ExitCode") or 0), at or 0.0)
            else:
                past = self._past(identity, at or 0.0)
                death = Death(_code(past), at or 0.0)
        if death.code is None:
            return ExitStatus()
        told_by_others = ends_when_told and not self._lives.was_told(identity)
        oom = death.code == SIGNALLED + KILLED and self._by_oom(identity, state, death.at, past)
        return status_of_code(death.code, oom=oom, told_by_others=told_by_others)

    def _by_oom(self, identity: str, state: Mapping[str, Any], at: float, past: list[Any] | None) -> bool:
        last = self._lives.last_oom(identity)
        if last is not None:
            return abs(at - last) <= OOM_SECONDS
        if not state.get("OOMKilled"):
            return False
        if past is None and at:
            past = self._past(identity, at)
        # An engine that remembers neither (it was started anew since) leaves only the flag.
        return not past or any(each.get("Action") == "oom" for each in past)

    def _past(self, identity: str, at: float) -> list[Any]:
        """What the engine remembers of the container from around that time."""
        wanted = {"type": "container", "container": identity, "event": ["die", "oom"]}
        since, until = f"{at - OOM_SECONDS:.6f}", f"{at + OOM_SECONDS:.6f}"
        with engine_call(OTHER, f"the events of container {identity[:12]} cannot be read"):
            return list(self._client.events(since=since, until=until, filters=wanted, decode=True))


def _code(past: Iterable[Mapping[str, Any]]) -> int | None:
    for each in past:
        if each.get("Action") == "die":
            return exit_code(each)
    return None


def exit_code(event: Mapping[str, Any]) -> int | None:
    """The one that a ``die`` tells."""
    try:
        return int(((event.get("Actor") or {}).get("Attributes") or {})["exitCode"])
    except (KeyError, ValueError):
        return None
