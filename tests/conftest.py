"""Every test runs on the asyncio reactor, which has to be there before anything imports Twisted's default one."""

from indexify_dataplane.reactor import install

install()
