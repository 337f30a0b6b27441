"""The proxy alone in a process, for ``proxy``: listens on a port and sends all to one upstream. Ends at SIGTERM."""

from __future__ import annotations

import sys

from indexify_dataplane.reactor import install


def main() -> None:
    install()
    from attrs import evolve
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from indexify_dataplane import logs
    from indexify_dataplane.config_model import HttpProxy, Upstream
    from indexify_dataplane.http_proxy.edge import Edge
    from indexify_dataplane.http_proxy.routes import NotRunning, Target
    from indexify_dataplane.metrics import Metrics

    port, upstream, log_path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    class OneSandbox:
        def find(self, sandbox_id: str) -> Target | NotRunning | None:
            return Target(container_id="c-bench", sandbox_id="sb-bench", daemon=("127.0.0.1", upstream))

        async def connect_address(self, target: Target, port: int) -> tuple[str, int]:
            return ("127.0.0.1", upstream)

    with open(log_path, "a") as stream:
        pipe = logs.start("production", {"RUST_LOG": "info"}, stream)
        edge = Edge(
            config=evolve(HttpProxy(upstream=Upstream()), port=port, listen_addr="127.0.0.1"),
            routes=OneSandbox(),
            metrics=Metrics(),
            request_log=pipe.request_log(reactor),
            reactor=reactor,
        )
        starting = Deferred.fromCoroutine(edge.start())
        starting.addErrback(lambda failure: (failure.printTraceback(), reactor.stop()))
        reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(edge.stop(0)))
        reactor.run()
        pipe.stop()


if __name__ == "__main__":
    main()
