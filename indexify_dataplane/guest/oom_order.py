"""Whom the kernel kills first when the sandbox's memory is used up: what the user runs, not the daemon.

The kernel takes the largest process, and a crowd of small ones can each be smaller than the daemon, with which the
whole sandbox would end. So a child's ``oom_score_adj`` is raised, which anybody may do, and its own children get it
from it. It is done right after the start, from outside: raised for a moment in the daemon and inherited, it made the
kernel take the daemon, because memory often ends while one more program is started.
"""

from __future__ import annotations

import os

RAISED = 300
"""Thousandths of the sandbox's memory that a child counts for beside its own."""

HIGHEST = 1000


def prefer(pid: int) -> bool:
    """Let the kernel take ``pid`` before this process. False where it cannot be told, which changes nothing else."""
    try:
        file = os.open(f"/proc/{pid}/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        try:
            inherited = int(os.pread(file, 32, 0))
            os.pwrite(file, b"%d" % min(HIGHEST, max(0, inherited) + RAISED), 0)
        finally:
            os.close(file)
    except (OSError, ValueError):
        return False
    return True
