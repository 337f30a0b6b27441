"""The daemon's contract as the fork-exec driver runs it: a child of the node's interpreter."""

from twisted.trial.unittest import SynchronousTestCase

from tests.contracts.daemon_child import ChildDaemons
from tests.contracts.daemon_files import DaemonFiles
from tests.contracts.daemon_grpc import DaemonGrpc
from tests.contracts.daemon_http import DaemonHttp
from tests.contracts.daemon_life import DaemonLife
from tests.contracts.daemon_managed import DaemonManaged
from tests.contracts.daemon_output import DaemonOutput
from tests.contracts.daemon_processes import DaemonProcesses
from tests.contracts.daemon_pty import DaemonPty, DaemonTunnels


class ChildProcesses(DaemonProcesses, SynchronousTestCase):
    place_type = ChildDaemons


class ChildOutput(DaemonOutput, SynchronousTestCase):
    place_type = ChildDaemons


class ChildFiles(DaemonFiles, SynchronousTestCase):
    place_type = ChildDaemons


class ChildPty(DaemonPty, SynchronousTestCase):
    place_type = ChildDaemons


class ChildTunnels(DaemonTunnels, SynchronousTestCase):
    place_type = ChildDaemons


class ChildHttp(DaemonHttp, SynchronousTestCase):
    place_type = ChildDaemons


class ChildGrpc(DaemonGrpc, SynchronousTestCase):
    place_type = ChildDaemons


class ChildManaged(DaemonManaged, SynchronousTestCase):
    place_type = ChildDaemons


class ChildLife(DaemonLife, SynchronousTestCase):
    place_type = ChildDaemons
