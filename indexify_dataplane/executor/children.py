"""Who waits for which child call, and results that nobody waits for yet. Pure bookkeeping.

Interleaving: a result may come before user code waits for it, while it waits, after its wait timed out, and several
waits may be for the same call. So results are kept until the run ends, and a watcher is answered at most once.
"""

from __future__ import annotations

from attrs import define

from ..wireproto import executor_api_pb2 as pb


@define
class _Watcher:
    call_id: str
    answered: bool = False


class Children:
    """Watchers of one run by their id, results by the id of the call as the parent created it."""

    def __init__(self) -> None:
        self._watchers: dict[str, _Watcher] = {}
        self._results: dict[str, pb.FunctionCallResult] = {}

    def watch(self, watcher_id: str, call_id: str) -> bool:
        """A watcher was seen; whether it is new."""
        if watcher_id in self._watchers:
            return False
        self._watchers[watcher_id] = _Watcher(call_id)
        return True

    def forget_others(self, watcher_ids: set[str]) -> list[str]:
        """Only these watchers are left; the ids of those that are gone."""
        gone = [each for each in self._watchers if each not in watcher_ids]
        for each in gone:
            del self._watchers[each]
        return gone

    def keep(self, result: pb.FunctionCallResult) -> list[str]:
        """A result came; who is to be told. A repeat changes nothing."""
        self._results.setdefault(result.function_call_id, result)
        return [
            watcher_id
            for watcher_id, watcher in self._watchers.items()
            if watcher.call_id == result.function_call_id and not watcher.answered
        ]

    def call_of(self, watcher_id: str) -> str:
        return self._watchers[watcher_id].call_id

    def result_for(self, watcher_id: str) -> pb.FunctionCallResult | None:
        return self._results.get(self._watchers[watcher_id].call_id)

    def answer(self, watcher_id: str) -> bool:
        """Take the right to answer; False when it has been answered or is gone."""
        watcher = self._watchers.get(watcher_id)
        if watcher is None or watcher.answered:
            return False
        watcher.answered = True
        return True

    def open(self) -> list[str]:
        """Watchers without an answer: as long as there is one, user code waits."""
        return [watcher_id for watcher_id, watcher in self._watchers.items() if not watcher.answered]
