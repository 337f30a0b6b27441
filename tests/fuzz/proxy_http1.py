"""The proxy's HTTP/1.1: heads, chunked bodies, answers, and whole exchanges; h11 and llhttp read everything again."""

from __future__ import annotations

from typing import Any

import h11
import httptools

from indexify_dataplane.http_proxy import forward
from indexify_dataplane.http_proxy.body import MAX_TRAILERS, BrokenChunks, ChunkedDecoder
from indexify_dataplane.http_proxy.head import (
    CHUNKED,
    MAX_FIELDS,
    MAX_HEAD,
    UNTIL_CLOSE,
    RequestHead,
    check_beginning,
    parse_request,
)
from indexify_dataplane.http_proxy.replies import HeadRefused
from indexify_dataplane.http_proxy.response import ResponseHead, parse_response
from indexify_dataplane.http_proxy.routes import TOKEN_HEADER
from indexify_dataplane.http_proxy.shared import READ_SIZE

from .h2_input import PREFACE
from .proxy_edge import TOKEN, client_of, close_edge, open_edge
from .wire import Loop, Wire, by_httptools, cuts, expect, in_loop, requests_by_h11, responses_by_h11, settle

TOKEN_FIELD = TOKEN_HEADER.lower().encode()
BOUNDARY = b"\n====\n"
"""In inputs of exchanges: what follows is the container's."""


def read_request(data: bytes) -> RequestHead | None:
    try:
        return parse_request(data)
    except HeadRefused as refused:
        expect(400 <= refused.reply.status < 600, "a refusal has a status of its own", refused.reply)
        return None


def head(data: bytes) -> None:
    """A head that is accepted is read alike by h11 and llhttp, and goes on as one request with the same framing."""
    end = data.find(b"\r\n\r\n")
    try:
        check_beginning(data if end < 0 else data[: end + 4])
    except HeadRefused:
        started = False
    else:
        started = True
    raw = data + b"\r\n\r\n" if end < 0 else data[: end + 4]
    raw = raw[: raw.index(b"\r\n\r\n") + 4]
    parsed = read_request(raw)
    if parsed is None:
        return
    expect(end < 0 or started, "what is accepted as a whole is not refused at its beginning", raw)
    _same_as_others(raw, parsed)
    _goes_on_as_one(parsed)


def _same_as_others(raw: bytes, parsed: RequestHead) -> None:
    try:
        message = requests_by_h11(raw)[0][0]
    except h11.RemoteProtocolError as error:
        expect(False, "h11 reads what is accepted", raw, error)
        return
    expect(message.head.method == parsed.method, "h11 sees the same method", raw, message.head.method)
    target = bytes(message.head.target)
    authority_alone = b"/" + target[len(target.partition(b"?")[0]) :]
    same = target.endswith(parsed.target) or parsed.target == authority_alone
    expect(same, "h11 sees the same target", raw, target, parsed.target)
    expect(message.framing == _framing(parsed), "h11 decides alike on the framing", raw, message.framing)
    fields = [(name, value.strip(b" \t")) for name, value in message.head.headers]
    for line in parsed.lines:
        name, _, value = line.partition(b":")
        expect((name.lower(), value.strip(b" \t")) in fields, "no field is made up", raw, line)
    if parsed.sandbox_id is not None and not parsed.id_conflict:
        ids = {value for name, value in fields if name in (b"tensorlake-sandbox-id", b"x-tensorlake-sandbox-id")}
        expect(ids == {parsed.sandbox_id}, "the sandbox is the one that is named", raw, ids)
    if parsed.minor:
        tokens = b",".join(value for name, value in fields if name == b"connection").lower().split(b",")
        closes = b"close" in [token.strip(b" \t") for token in tokens]
        expect(parsed.keep_alive is not closes, "Connection: close is heard", raw)
    other = by_httptools(raw)
    if parsed.method in (b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"):
        assert other is not None and other.head_complete, f"llhttp reads what is accepted: {raw!r}"
        seen = [(name.lower(), value.strip(b" \t")) for name, value in other.fields]
        expect(seen == fields, "h11 and llhttp see the same fields", raw, seen, fields)


def _framing(parsed: RequestHead) -> tuple[str, int]:
    if parsed.length == CHUNKED:
        return "chunked", 0
    given = any(line.startswith(b"Content-Length:") for line in parsed.lines)
    return ("length", parsed.length) if given else ("none", 0)


def _goes_on_as_one(parsed: RequestHead) -> None:
    lines = forward.request_lines(
        parsed, peer=b"10.0.0.1", address=b"10.0.0.2:80", token=TOKEN.encode(), strip_credentials=False
    )
    sent = forward.request_head(parsed, lines)
    expect(sent.count(b"\r\n\r\n") == 1 and sent.endswith(b"\r\n\r\n"), "one head goes on", sent)
    expect(sent.count(b"\n") == sent.count(b"\r\n") == sent.count(b"\r"), "lines end as lines do", sent)
    requests, rest = requests_by_h11(sent)
    expect(len(requests) == 1 and not rest, "one request goes on", sent)
    message = requests[0]
    expect(message.framing == _framing(parsed), "the framing stays", sent)
    expect((message.head.method, bytes(message.head.target)) == (parsed.method, parsed.target), "the line stays", sent)
    expect(message.values(TOKEN_FIELD) == [TOKEN.encode()], "the token is ours alone", sent)
    for name in (b"host", b"content-length", b"transfer-encoding"):
        expect(len(message.values(name)) <= 1, "fields that must be alone are", sent, name)
    expect(message.values(b"host"), "a Host goes on", sent)
    for name in (b"keep-alive", b"proxy-connection", b"proxy-authorization", b"tensorlake-sandbox-id"):
        expect(not message.values(name), "what concerns this hop alone stays here", sent, name)
    again = read_request(sent)
    room = len(lines) < MAX_FIELDS - 10 and len(sent) < MAX_HEAD
    expect(not room or (again is not None and again.length == parsed.length), "it would be accepted again", sent)


# -- chunked bodies


def _decoded(pieces: list[bytes]) -> tuple[str, bytes, bytes, list[bytes]]:
    decoder = ChunkedDecoder()
    payload, rest = b"", b""
    try:
        for piece in pieces:
            if decoder.done:
                rest += piece
                continue
            got, over = decoder.feed(piece)
            payload += got
            rest += over
            expect(len(decoder._kept) <= MAX_TRAILERS + len(piece), "what is kept is bounded", len(decoder._kept))
    except BrokenChunks:
        return "broken", b"", b"", []
    return ("done" if decoder.done else "open"), payload, rest, decoder.trailers


def chunked(data: bytes) -> None:
    """Read alike however it is cut; where h11 or llhttp read the body too, they read the same bytes and end there."""
    whole = _decoded([data])
    for pieces in (cuts(data), [data[at : at + 1] for at in range(len(data))] if len(data) < 600 else []):
        if pieces:
            found = _decoded(pieces)
            expect(found == whole, "pieces change nothing", data, whole, found)
    if whole[0] == "broken":
        return
    sent = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    reader.receive_data(sent)
    reader.next_event()
    body, ended = b"", False
    try:
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                ended = True
            else:
                break
    except h11.RemoteProtocolError:
        body, ended = whole[1], whole[0] == "done"
    if whole[0] == "done":
        expect((ended, body) == (True, whole[1]), "h11 reads the same body", data, whole, body)
    else:
        expect(not ended and whole[1].startswith(body[: len(whole[1])]), "h11 has not seen the end", data, whole, body)
    if whole[0] == "done":
        _same_as_llhttp(sent[: len(sent) - len(whole[2])], whole[1])


def _same_as_llhttp(sent: bytes, payload: bytes) -> None:
    seen = by_httptools(sent)
    if seen is not None:
        expect(seen.body == payload, "llhttp reads the same body", sent, seen.body, payload)
        expect(seen.complete, "llhttp sees the end where it is", sent)


# -- answers


def response(data: bytes) -> None:
    """A head of an answer that is accepted is read alike by h11, and goes on as one answer."""
    end = data.find(b"\r\n\r\n")
    raw = data + b"\r\n\r\n" if end < 0 else data[: end + 4]
    raw = raw[: raw.index(b"\r\n\r\n") + 4]
    try:
        parsed = parse_response(raw)
    except ValueError:
        return
    expect(100 <= parsed.status < 600, "a status is one", raw)
    other: Any = None
    try:
        reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        fields = [("Host", "h"), ("Connection", "upgrade"), ("Upgrade", "x")]
        reader.send(h11.Request(method="GET", target="/", headers=fields))
        reader.send(h11.EndOfMessage())
        reader.receive_data(raw)
        other = reader.next_event()
    except h11.RemoteProtocolError as error:
        # Two lengths or other codings: h11 is free to refuse what is read here one way only.
        expect("ontent-" in str(error) or "ransfer-" in str(error), "h11 reads what is accepted", raw, error)
    if other is not None and other is not h11.NEED_DATA:
        expect(other.status_code == parsed.status, "h11 sees the same status", raw)
        names = [name for name, _ in other.headers]
        if parsed.length == CHUNKED:
            expect(b"transfer-encoding" in names, "h11 sees chunks too", raw)
        elif parsed.length != UNTIL_CLOSE:
            lengths = [int(value) for name, value in other.headers if name == b"content-length"]
            expect(lengths == [parsed.length], "h11 sees the same length", raw)
        else:
            expect(not {b"content-length", b"transfer-encoding"} & set(names), "h11 sees no framing either", raw)
    _answer_goes_on(raw, parsed)


def _answer_goes_on(raw: bytes, parsed: ResponseHead) -> None:
    if parsed.status < 200:
        return
    hop = b"Transfer-Encoding: chunked\r\n" if parsed.length < 0 and parsed.status not in (204, 304) else b""
    for origin in (None, b"http://page"):
        sent = forward.response_head(parsed, forward.response_lines(parsed, origin), hop)
        expect(sent.count(b"\r\n\r\n") == 1 and sent.endswith(b"\r\n\r\n"), "one head goes on", raw, sent)
        expect(sent.count(b"\n") == sent.count(b"\r\n") == sent.count(b"\r"), "lines end as lines do", sent)
        answers = responses_by_h11(sent + (b"0\r\n\r\n" if hop else b""), [b"GET"], closed=False)
        expect(len(answers) == 1, "one answer goes on", raw, sent)
        answer = answers[0]
        for name in (b"content-length", b"transfer-encoding"):
            expect(len(answer.values(name)) <= 1, "fields that must be alone are", sent, name)
        expect(not (answer.values(b"content-length") and answer.values(b"transfer-encoding")), "one framing", sent)
        for name in (b"connection", b"keep-alive", b"proxy-connection", b"upgrade"):
            expect(not answer.values(name), "what concerns that hop alone stays there", sent, name)


# -- exchanges


class _Outcome:
    def __init__(self, client: Wire, containers: list[Wire]) -> None:
        self.to_client = bytes(client.written)
        self.to_containers = [bytes(wire.written) for wire in containers]
        self.client_closed = client.closing
        self.refused = client.closing or client.ended
        self.protocol = type(client.protocol).__name__


async def _exchange(loop: Loop, request: list[bytes], answer: list[bytes]) -> _Outcome:
    """All of the request arrives, then all of the answer at every connection to a container; the same again for what
    was asked next. Then both sides close."""
    shared = open_edge(loop)
    client = client_of(shared)
    for piece in request:
        client.feed(piece)
        await settle(client)
        protocol: Any = client.protocol
        bound = MAX_HEAD + 2 * max(READ_SIZE, len(piece))
        expect(len(getattr(protocol, "_buffer", b"")) <= bound, "what is kept of a client is bounded")
    fed: dict[Wire, int] = {}
    for _ in range(8):
        for wire in loop.made:
            # A new request on it, as far as the answers before went.
            if fed.get(wire, -1) < len(wire.written) and not wire.closing:
                fed[wire] = len(wire.written)
                for piece in answer:
                    wire.feed(piece)
                    await settle(client, *loop.made)
                    upstream: Any = wire.protocol
                    expect(
                        len(getattr(upstream, "_buffer", b"")) <= MAX_HEAD + READ_SIZE,
                        "what is kept of a container is bounded",
                    )
        await settle(client, *loop.made)
    outcome = _Outcome(client, loop.made)
    for wire in loop.made:
        wire.lose(None)
    await settle(client, *loop.made)
    outcome.to_client = bytes(client.written)
    outcome.client_closed = client.closing
    client.end()
    await settle(client, *loop.made)
    await close_edge(shared, loop, client)
    return outcome


def exchange(data: bytes) -> None:
    """A client's bytes and, after ``BOUNDARY``, a container's. What reaches either side is well-formed, is a prefix of
    the same whole whatever the pieces, and nothing of what was refused goes on."""
    request, _, answer = data.partition(BOUNDARY)
    if not request or request.startswith(b"PRI "):
        return
    outcomes: list[_Outcome] = []

    async def work(loop: Loop, asked: list[bytes], told: list[bytes]) -> None:
        outcomes.append(await _exchange(loop, asked, told))

    in_loop(lambda loop: work(loop, [request], [answer] if answer else []))
    in_loop(lambda loop: work(loop, cuts(request), cuts(answer) if answer else []))
    in_loop(lambda loop: work(loop, [request[:-3], request[-3:]], [answer] if answer else []))
    for outcome in outcomes:
        _check_requests(outcome)
        _check_answers(outcome)
    firsts = [(outcome.to_containers or [b""])[0].partition(b"\r\n\r\n")[0] for outcome in outcomes]
    expect(len({first for first in firsts if first}) <= 1, "pieces change nothing of the first request", data, firsts)
    for outcome, first in zip(outcomes, firsts, strict=True):
        # A refused request whose body is not there yet ends the connection; one whose body came with it does not.
        expect(first or outcome.refused or not any(firsts), "a request is not forgotten", data, outcome.to_client)


def _check_requests(outcome: _Outcome) -> None:
    for sent in outcome.to_containers:
        if not sent or sent.startswith(PREFACE):
            continue
        try:
            requests, rest = requests_by_h11(sent)
        except h11.RemoteProtocolError as error:
            expect(False, "a container gets requests", sent, error)
            return
        expect(requests, "a container gets whole heads", sent)
        for message in requests:
            expect(len(message.values(TOKEN_FIELD)) <= 1, "one token at most", sent)
            expect(set(message.values(TOKEN_FIELD)) <= {TOKEN.encode()}, "the token is ours", sent)
        upgraded = requests[-1].values(b"upgrade")
        expect(not rest or upgraded, "a container gets nothing but requests", sent, rest)


def _check_answers(outcome: _Outcome) -> None:
    sent = outcome.to_client
    if not sent or outcome.protocol != "Http1Client":
        return
    expect(sent.startswith(b"HTTP/1.1 "), "a client gets answers", sent)
    plain = [each for each in outcome.to_containers if not each.startswith(PREFACE)]
    methods = [message.head.method for each in plain for message in requests_by_h11(each)[0]]
    if len(outcome.to_containers) > 1 or not methods:
        methods = [b"GET"]
    # The proxy's own answers may come first, in between and last, so only the first is certain.
    try:
        responses_by_h11(sent, methods[:1], closed=outcome.client_closed)
    except h11.RemoteProtocolError as error:
        expect(False, "a client gets an answer", sent, error)


__all__ = ["chunked", "exchange", "head", "httptools", "response"]
