"""Connection state, generations and cursors."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.session import GAPS_BEFORE_SYNC, Link, Session, Verdict


def registered() -> Session:
    session = Session()
    session.heartbeat_accepted(full_state=True)
    return session


class SessionTest(SynchronousTestCase):
    def test_l24_a_new_process_needs_the_full_state_before_anything_else(self) -> None:
        session = Session()
        self.assertTrue(session.needs_full_state)
        self.assertIs(session.link, Link.REGISTERING)
        session.heartbeat_accepted(full_state=True)
        self.assertIs(session.link, Link.READY)
        self.assertFalse(session.needs_full_state)

    def test_l2a_every_accepted_full_sync_resets_the_cursors_also_after_a_failure(self) -> None:
        session = registered()
        session.confirmed(session.commands, session.generation, 7)
        session.confirmed(session.results, session.generation, 3)
        session.state_requested()
        session.heartbeat_failed("cut")
        self.assertIs(session.link, Link.UNHEALTHY)
        session.heartbeat_accepted(full_state=True)
        self.assertEqual((session.commands.ack, session.results.ack), (None, None))
        self.assertIs(session.link, Link.READY)

    def test_a_heartbeat_without_state_after_a_cut_keeps_the_cursors(self) -> None:
        session = registered()
        session.confirmed(session.commands, session.generation, 7)
        session.heartbeat_failed("cut")
        session.heartbeat_accepted(full_state=False)
        self.assertEqual((session.commands.ack, session.link), (7, Link.READY))

    def test_l2b_a_confirmation_of_an_older_registration_moves_nothing(self) -> None:
        session = registered()
        old = session.poll_began()
        session.poll_ended()
        session.state_requested()
        session.heartbeat_accepted(full_state=True)
        self.assertFalse(session.confirmed(session.commands, old, 8))
        self.assertIsNone(session.commands.ack)

    def test_a_wish_for_state_that_came_while_a_plain_heartbeat_was_under_way_is_not_forgotten(self) -> None:
        session = registered()
        session.require_full_state("gaps")
        session.heartbeat_accepted(full_state=False)
        self.assertIs(session.link, Link.REGISTERING)
        self.assertTrue(session.needs_full_state)

    def test_verdicts(self) -> None:
        cursor = registered().commands
        cursor.applied = 4
        self.assertEqual(
            [cursor.judge(seq, 4) for seq in (3, 4, 5, 6)],
            [Verdict.REDELIVERED, Verdict.REDELIVERED, Verdict.APPLY, Verdict.GAP],
        )

    def test_l4_repeated_gaps_ask_for_a_sync_and_less_and_less_often(self) -> None:
        session = registered()
        needed = []
        for _ in range(3):
            count = 0
            while not session.needs_full_state:
                session.gap_seen(session.commands)
                count += 1
            needed.append(count)
            session.heartbeat_accepted(full_state=True)
        self.assertEqual(needed, [GAPS_BEFORE_SYNC, 2 * GAPS_BEFORE_SYNC, 4 * GAPS_BEFORE_SYNC])
        session.confirmed(session.commands, session.generation, 1)
        for _ in range(GAPS_BEFORE_SYNC):
            session.gap_seen(session.commands)
        self.assertTrue(session.needs_full_state)

    def test_closed_is_final(self) -> None:
        session = registered()
        session.close()
        session.heartbeat_accepted(full_state=False)
        session.state_requested()
        session.heartbeat_accepted(full_state=True)
        self.assertIs(session.link, Link.CLOSED)

    def test_changes_are_told_once_and_the_end_of_the_last_poll_too(self) -> None:
        session, heard = Session(), []
        session.subscribe(lambda old, new, why: heard.append((old, new)))
        session.heartbeat_accepted(full_state=True)
        session.heartbeat_accepted(full_state=False)
        session.poll_began()
        session.poll_began()
        session.poll_ended()
        self.assertEqual(heard, [(Link.REGISTERING, Link.READY)])
        session.poll_ended()
        self.assertEqual(heard[1:], [(Link.READY, Link.READY)])
        self.assertTrue(session.quiet)
