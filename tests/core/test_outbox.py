"""The outbox: nothing is lost, order is kept, and one bad item does not block the others."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.outbox import ALONE, BATCH_ITEMS, HARD_BYTES, MIB, Batch, Outbox, ReportKind

R, O, L = ReportKind.RESPONSE, ReportKind.OUTCOME, ReportKind.LOG  # noqa: E741


def filled(*items: tuple[int, ReportKind, int]) -> Outbox:
    outbox = Outbox()
    for id, kind, size in items:
        outbox.add(id, kind, b"x" * size)
    return outbox


class Taking(SynchronousTestCase):
    def test_taking_removes_nothing_and_accepting_removes_exactly_what_was_taken(self) -> None:
        outbox = filled((1, R, 3), (2, O, 5))
        batch = outbox.take()
        outbox.add(3, R, b"late")
        self.assertEqual((batch.ids, len(outbox), outbox.bytes), ((1, 2), 3, 12))
        outbox.accepted(batch)
        self.assertEqual((outbox.take().ids, len(outbox), outbox.bytes), ((3,), 1, 4))

    def test_sizes_add_up_over_the_kinds_and_the_first_of_each_goes_along(self) -> None:
        outbox = filled((1, R, 6), (2, R, 6), (3, O, 20), (4, O, 1), (5, L, 20), (6, L, 1))
        batch = outbox.take(limit=10)
        self.assertEqual((batch.ids, batch.more), ((1, 3, 5), True))
        outbox.accepted(batch)
        batch = outbox.take(limit=10)
        self.assertEqual((batch.ids, batch.more), ((2, 4, 6), False))

    def test_an_outcome_never_goes_before_a_log_entry_that_was_made_before_it(self) -> None:
        outbox = filled(*((n, L, MIB) for n in range(1, 13)), (13, O, 1), (14, R, 1))
        self.assertEqual(outbox.take().ids, (14, *range(1, 10)))
        outbox.accepted(outbox.take())
        self.assertEqual(outbox.take().ids, (10, 11, 12, 13))
        crowded = filled((1, L, 1), *((n, O, 1) for n in range(2, BATCH_ITEMS + 2)))
        self.assertEqual(crowded.take().ids[:3], (1, 2, 3))
        acknowledged = filled((1, L, 1), (2, O, 1), *((n, R, 1) for n in range(3, BATCH_ITEMS + 3)))
        acknowledged.accepted(acknowledged.take())
        self.assertEqual(acknowledged.take().ids, (1, 2))

    def test_while_a_refused_item_is_searched_for_no_outcome_overtakes_its_log_entries(self) -> None:
        outbox = filled((1, L, 1), (2, O, 1), (3, L, 1), (4, O, 1))
        outbox.refused(outbox.take())
        outbox.refused(outbox.take())
        self.assertEqual(outbox.take().ids, (1, 2))
        outbox.refused(outbox.take())
        self.assertEqual(outbox.take().ids, (1,))

    def test_an_item_above_the_limit_goes_alone_rather_than_never(self) -> None:
        outbox = filled((1, R, 11 * MIB), (2, O, 14 * MIB), (3, O, 1))
        batches = []
        while len(outbox):
            batches.append(outbox.take())
            outbox.accepted(batches[-1])
        self.assertEqual([batch.ids for batch in batches], [(1,), (2,), (3,)])
        self.assertLess(max(sum(len(i.encoded) for i in b.items) for b in batches), HARD_BYTES)

    def test_25_mib_leave_in_order_in_several_batches(self) -> None:
        outbox = filled(*((n, O if n % 2 else R, MIB // 4) for n in range(100)))
        seen: list[int] = []
        count = 0
        while len(outbox):
            batch = outbox.take()
            self.assertLessEqual(sum(len(item.encoded) for item in batch.items), 10 * MIB + MIB // 4)
            seen += batch.ids
            outbox.accepted(batch)
            count += 1
        self.assertEqual(count, 3)
        self.assertEqual([n for n in seen if n % 2], list(range(1, 100, 2)))
        self.assertEqual([n for n in seen if not n % 2], list(range(0, 100, 2)))

    def test_many_small_items_are_spread_over_heartbeats(self) -> None:
        outbox = filled(*((n, L, 10) for n in range(BATCH_ITEMS + 5)))
        batch = outbox.take()
        self.assertEqual((len(batch.items), batch.more), (BATCH_ITEMS, True))

    def test_l18_nothing_is_dropped_and_commands_are_held_back_instead(self) -> None:
        outbox = Outbox(max_items=10)
        for n in range(7):
            outbox.add(n, R, b"x")
        self.assertFalse(outbox.nearly_full)
        for n in range(7, 100):
            outbox.add(n, R, b"x")
        self.assertTrue(outbox.nearly_full)
        self.assertEqual(outbox.take().ids, tuple(range(100)))
        big = Outbox(max_bytes=100)
        big.add(1, O, b"x" * 80)
        self.assertTrue(big.nearly_full)

    def test_additions_are_told_until_unsubscribed(self) -> None:
        outbox, heard = Outbox(), []
        end = outbox.subscribe(lambda kind: heard.append(len(outbox)))
        outbox.add(1, R, b"")
        end()
        outbox.add(2, R, b"")
        self.assertEqual(heard, [1])


class Server:
    """Refuses every batch that holds a bad item; what it keeps is what it accepted."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.got: list[int] = []

    def takes(self, batch: Batch) -> bool:
        if any(item.id in self.bad and item.encoded != b"good" for item in batch.items):
            return False
        self.got += batch.ids
        return True


def deliver(outbox: Outbox, server: Server, rounds: int, replaceable: bool) -> tuple[int, list[int]]:
    given_up: list[int] = []
    for used in range(rounds):
        if not len(outbox):
            return used, given_up
        batch = outbox.take()
        if server.takes(batch):
            outbox.accepted(batch)
            continue
        guilty = outbox.refused(batch)
        if guilty is not None and replaceable:
            outbox.replace(guilty, b"good")
        elif guilty is not None:
            outbox.remove(guilty)
            given_up.append(guilty.id)
    raise AssertionError(f"{len(outbox)} items left after {rounds} heartbeats")


class Poison(SynchronousTestCase):
    def test_l3_one_bad_item_is_found_in_a_handful_of_heartbeats(self) -> None:
        for guilty in (0, 1, 500, 998, 999):
            outbox = filled(*((n, O, 2) for n in range(1000)))
            used, given_up = deliver(outbox, Server({guilty}), 60, replaceable=False)
            self.assertEqual(given_up, [guilty])
            self.assertLess(used, 25 + ALONE)

    def test_l3_a_passing_refusal_accuses_nobody(self) -> None:
        outbox = filled((1, O, 1), (2, O, 1))
        self.assertIsNone(outbox.refused(outbox.take()))
        self.assertFalse(outbox.isolating)
        outbox.accepted(outbox.take())
        outbox.add(3, O, b"x")
        self.assertIsNone(outbox.refused(outbox.take()))
        self.assertFalse(outbox.isolating)

    def test_l3_an_item_that_is_accepted_at_last_was_innocent(self) -> None:
        outbox = filled((1, O, 1))
        for _ in range(3):
            for _ in range(ALONE + 1):
                self.assertIsNone(outbox.refused(outbox.take()))
            outbox.accepted(outbox.take())
            outbox.add(1, O, b"x")

    def test_l3_reports_made_during_the_search_are_not_suspected(self) -> None:
        outbox = filled((1, O, 1), (2, O, 1))
        outbox.refused(outbox.take())
        outbox.refused(outbox.take())
        outbox.add(3, O, b"x")
        self.assertTrue(outbox.isolating)
        self.assertEqual((outbox.take().ids, outbox.take().more), ((1,), True))

    @settings(max_examples=150, deadline=None)
    @given(
        kinds=st.lists(st.sampled_from(list(ReportKind)), min_size=1, max_size=60),
        bad=st.sets(st.integers(0, 59), max_size=5),
        replaceable=st.booleans(),
    )
    def test_every_good_item_arrives_once_and_in_order(
        self, kinds: list[ReportKind], bad: set[int], replaceable: bool
    ) -> None:
        outbox = filled(*((n, kind, 3) for n, kind in enumerate(kinds)))
        bad = {n for n in bad if n < len(kinds)}
        server = Server(bad)
        _, given_up = deliver(outbox, server, 800, replaceable)
        expected = set(range(len(kinds))) - (set() if replaceable else bad)
        self.assertEqual(set(given_up), set() if replaceable else bad)
        self.assertEqual(sorted(server.got), sorted(expected))
        for kind in ReportKind:
            mine = [n for n in server.got if kinds[n] is kind]
            self.assertEqual(mine, sorted(mine))
        self.assertEqual((len(outbox), outbox.bytes), (0, 0))
