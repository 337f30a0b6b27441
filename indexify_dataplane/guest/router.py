"""Paths to endpoints, and what is the same for every request: the token, 404, 405, HEAD and cross-origin answers."""

from __future__ import annotations

from _operator import _compare_digest as compare_digest
from collections.abc import Iterable

from .messages import Answer, Endpoint, Reply, Request
from .refusal import Refusal

Route = tuple[str, str, Endpoint]
"""Method, path with ``{}`` for a captured segment, endpoint (called with the request and the captures)."""

TOKEN_HEADER = "x-indexify-sandbox-token"
OPEN_PATH = "/api/v1/health"

_CROSS_ORIGIN = (
    ("access-control-allow-origin", "*"),
    ("vary", "origin, access-control-request-method, access-control-request-headers"),
)
_PREFLIGHT = (("access-control-allow-methods", "*"), ("access-control-allow-headers", "*"))


class Router:
    """Answers requests of one port.

    With a token every request but GET of ``/api/v1/health`` must carry it. Cross-origin answers are given only then:
    without a token any web page that reaches the port could drive the sandbox through its reader's browser.
    """

    def __init__(self, *, routes: Iterable[Route], token: bytes | None) -> None:
        self._token = token
        self._routes: dict[tuple[str, ...], dict[str, Endpoint]] = {}
        for method, path, endpoint in routes:
            self._routes.setdefault(tuple(path.split("/")[1:]), {})[method] = endpoint
        self._lengths = {len(pattern) for pattern in self._routes}

    async def answer(self, request: Request) -> Answer:
        try:
            answer = await self._answer(request)
        except Refusal as refusal:
            if self._token is not None:
                refusal.headers += _CROSS_ORIGIN
            raise
        if self._token is not None:
            answer.headers += _CROSS_ORIGIN
        return answer

    async def _answer(self, request: Request) -> Answer:
        self._authorize(request)
        if request.method == "OPTIONS":
            return Reply(200, headers=_PREFLIGHT if self._token is not None else ())
        for pattern, methods in self._candidates(request.segments):
            endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
            if endpoint is None:
                allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
                raise Refusal(405, "Method not allowed", "METHOD_NOT_ALLOWED", (("allow", ", ".join(allowed)),))
            captured = [part for part, wanted in zip(request.segments, pattern, strict=True) if wanted == "{}"]
            return await endpoint(request, *captured)
        raise Refusal(404, "No such route", "NOT_FOUND")

    def _candidates(self, segments: tuple[str, ...]) -> list[tuple[tuple[str, ...], dict[str, Endpoint]]]:
        if len(segments) not in self._lengths:
            return []
        methods = self._routes.get(segments)
        if methods is not None:
            return [(segments, methods)]
        return [
            (pattern, methods)
            for pattern, methods in self._routes.items()
            if len(pattern) == len(segments)
            and all(wanted in ("{}", part) for part, wanted in zip(segments, pattern, strict=True))
        ]

    def _authorize(self, request: Request) -> None:
        if self._token is None or (request.path == OPEN_PATH and request.method in ("GET", "HEAD")):
            return
        given = request.header(TOKEN_HEADER)
        if given is None or not token_matches(given.encode("latin-1"), self._token):
            raise Refusal(401, "The sandbox token is missing or wrong", "UNAUTHORIZED")


def token_matches(given: bytes, wanted: bytes) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    return compare_digest(given, wanted)
