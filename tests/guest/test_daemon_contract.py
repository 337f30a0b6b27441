"""The daemon's contract as the fork-exec driver runs it: a child of the node's interpreter."""

from twisted.trial.unittest import SynchronousTestCase

from tests.contracts.daemon_child import ChildDaemons
from tests.contracts.daemon_files import DaemonFiles
from tests.contracts.daemon_output import DaemonOutput
from tests.contracts.daemon_processes import DaemonProcesses


class ChildProcesses(DaemonProcesses, SynchronousTestCase):
    place_type = ChildDaemons


class ChildOutput(DaemonOutput, SynchronousTestCase):
    place_type = ChildDaemons


class ChildFiles(DaemonFiles, SynchronousTestCase):
    place_type = ChildDaemons
