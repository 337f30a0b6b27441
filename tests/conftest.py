"""Every test runs on the asyncio reactor, which has to be there before anything imports Twisted's default one."""

from indexify_dataplane.metrics import Metrics
from indexify_dataplane.reactor import install

install()
Metrics.strict = True  # a metric outside of the catalog is an error
