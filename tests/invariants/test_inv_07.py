"""INV-7: injected wins; our own headers and tokens never go upstream; nothing is followed or sent twice.

What counts is what the upstream received, over real TLS.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from broker_core.adapters import upstream_pool
from broker_core.dev.upstream import RawResponse, Received, Response
from broker_core.errors import UpstreamError
from broker_core.inject.call import Call
from tests.live import AGENT, Live
from tests.web import Web

VALUE = "ghp_0123456789abcdefABCDEF"


@pytest.fixture
def live(live: Live) -> Live:
    """A bearer, a header and a parameter with one value, each under its kind's name. No customer's key is needed: what
    is applied does not depend on who decrypted it."""
    live.store("bearer", value=VALUE)
    fields = {"targetHost": live.target, "agentId": AGENT, "value": VALUE}
    live.store("http_header", injectionKind="http_header", bindingKey="X-Api-Key", **fields)
    live.store("query", injectionKind="query", bindingKey="api_key", **fields)
    return live


def _received(live: Live) -> Received:
    (received,) = live.upstream.requests
    return received


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION", "aUTHORIZATION"])
def test_the_callers_authorization_never_goes_with_a_bearer(live: Live, name: str) -> None:
    """In whatever case it comes, and more than once: the upstream sees one, and it is the injected one."""
    live.send("bearer", headers=[(name, "Bearer mine"), ("X-Other", "kept"), (name, "Basic bWluZQ==")])

    assert _received(live).headers_named("authorization") == [f"Bearer {VALUE}"]
    assert _received(live).header("x-other") == "kept"


@pytest.mark.parametrize("name", ["X-Api-Key", "x-api-key", "X-API-KEY", "X_Api_Key", "x_api-key"])
def test_the_callers_header_of_the_same_name_is_removed(live: Live, name: str) -> None:
    """Also where it is spelt as some servers read it."""
    live.send("http_header", headers=[(name, "mine"), (name, "mine too")])

    received = _received(live)
    assert [text for key, text in received.headers if key.lower().replace("_", "-") == "x-api-key"] == [VALUE]


@pytest.mark.parametrize(
    "query",
    [
        "api_key=mine",
        "API_KEY=mine",
        "api%5Fkey=mine",
        "%61pi_key=mine",
        "a=1&api_key=mine&api_key=2",
        "api_key",
        ";api_key=1",
    ],
)
def test_the_callers_parameter_of_the_same_name_is_removed(live: Live, query: str) -> None:
    """In whatever case or encoding, however often."""
    live.send("query", path=f"/echo?{query}&b=2")

    received = _received(live)
    assert [text for key, text in received.parameters if key.lower() == "api_key"] == [VALUE]
    assert ("b", "2") in received.parameters


OURS = """Axiorank-Authorization axiorank-agent-id AXIORANK-Mcp-Server-Id Axiorank-Upstream-Url Axiorank-Secret
    Axiorank-Anything Proxy-Authorization""".split()


@pytest.mark.parametrize("secret", ["bearer", "http_header", "query"])
def test_headers_of_ours_never_go_upstream(live: Live, secret: str) -> None:
    """Whatever our surface uses to speak with its caller stays between the two."""
    live.send(secret, headers=[(name, "axr_tok_mine") for name in OURS])

    names = [name.lower() for name, _ in _received(live).headers]
    assert [name for name in names if name.startswith(("axiorank", "proxy"))] == []
    assert "axr_tok_mine" not in str(_received(live).headers)


def test_a_header_that_the_connection_header_names_does_not_take_the_injected_one_along(live: Live) -> None:
    """A caller cannot make a proxy on the way drop the injected header as hop-by-hop."""
    live.send("bearer", headers=[("Connection", "authorization, close"), ("Keep-Alive", "1")])

    received = _received(live)
    assert received.header("authorization") == f"Bearer {VALUE}"
    assert received.headers_named("connection") == []
    assert received.header("keep-alive") is None


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding", "Accept-Encoding"])
def test_the_framing_is_ours(live: Live, name: str) -> None:
    """A caller's framing is not passed on beside ours."""
    live.send("bearer", headers=[(name, "7")], method="POST", body=b"hello")

    received = _received(live)
    ours = {"Host": [live.target], "Content-Length": ["5"], "Accept-Encoding": ["identity"], "Transfer-Encoding": []}
    assert (received.headers_named(name), received.body) == (ours[name], b"hello")


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("secret", ["bearer", "http_header", "query"])
def test_a_redirect_is_handed_back(live: Live, secret: str, status: int) -> None:
    """It is the caller's to follow, without the value: one request, and the 3xx as it came."""
    there = f"https://localhost:{live.upstream.port}/elsewhere"
    head = f"HTTP/1.1 {status} Go\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
    live.upstream.route("/go", lambda _: RawResponse([head]))

    answer = live.send(secret, path="/go")

    assert (answer.status, dict(answer.headers)["Location"]) == (status, there)
    assert [request.path for request in live.upstream.requests] == ["/go"]


BROKEN = {
    "reset": RawResponse(reset=True),
    "closed": RawResponse(),
    "cut off in the head": RawResponse([b"HTTP/1.1 200 OK\r\nContent-"]),
    "cut off in the body": RawResponse([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf"]),
    "no HTTP": RawResponse([b"nonsense\r\n\r\n"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_exchange_is_not_tried_again(live: Live, name: str) -> None:
    """The value may have arrived: the upstream saw exactly one request on one connection, though it was a GET."""
    live.upstream.route("/broken", lambda _: BROKEN[name])

    with pytest.raises(UpstreamError):
        live.send("bearer", path="/broken")

    assert (len(live.upstream.requests), live.upstream.connections_accepted) == (1, 1)


def test_an_answer_that_invites_another_try_is_handed_back(live: Live) -> None:
    """No status makes us send the value again: not one that asks for credentials, not one that says later."""
    inviting = [401, 403, 407, 408, 425, 429, 500, 502, 503, 504]

    assert [live.send("bearer", path=f"/status/{status}").status for status in inviting] == inviting

    assert [request.path for request in live.upstream.requests] == [f"/status/{status}" for status in inviting]


def test_a_connection_is_never_anothers(
    live: Live, live_with: Callable[..., Live], way_out: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workspaces that use the same upstream by the same way out, each has a connection of its own; and on what
    carried one use's value, the next use's request holds its own value only."""
    monkeypatch.setattr(upstream_pool, "IDLE_SECONDS", 60.0)  # else a slow machine closes the first too soon
    other = live_with(upstream=way_out)
    other.store("bearer", value=VALUE)
    live.send("bearer")
    other.send("bearer")
    live.send("http_header")

    assert live.upstream.connections_accepted == 2
    assert live.upstream.requests[2].header("authorization") is None


@pytest.mark.parametrize("status", [101, 200, 204, 500])
def test_a_connection_that_was_not_left_clean_is_not_used_again(live: Live, status: int) -> None:
    """Bytes after the answer would be taken for the answer to the next caller's request."""
    head = f"HTTP/1.1 {status} OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".encode()
    live.upstream.route("/more", lambda _: RawResponse([head]))
    with suppress(UpstreamError):
        live.send("bearer", path="/more")

    live.send("http_header")

    assert live.upstream.connections_accepted == 2


def test_a_cookie_is_not_kept(live: Live) -> None:
    """What an upstream sets is the caller's, and not sent by us the next time."""
    live.upstream.route("/set", lambda _: Response(204, [("Set-Cookie", "a=b; Path=/")]))
    live.send("bearer", path="/set")

    live.send("bearer")

    assert live.upstream.requests[1].header("cookie") is None


# ---------------------------------------------------------------- over HTTP, and streamed

KINDS = ("bearer", "http_header", "query")


def _proxied(web: Web, secret: str, path: str = "/echo", **headers: str) -> Any:
    """A request through ``/proxy`` of a caller who has a token, and these headers."""
    own = {
        "Axiorank-Authorization": f"Bearer {web.token(scope='broker:inject')}",
        "Axiorank-Upstream-Url": f"https://{web.live.target}{path}",
        "Axiorank-Agent-Id": AGENT,
        "Axiorank-Secret": secret,
        "Axiorank-Anything": "mine",
    }
    return web.get("/proxy", headers={**own, **headers})


def _holds_nothing_of_ours(received: Received, token: str) -> bool:
    """No header of ours, and the token nowhere: not in a header, the line or the body."""
    names = [name.lower() for name, _ in received.headers]
    everything = f"{received.headers}{received.path}{received.parameters}{received.body!r}"
    return not any(name.startswith("axiorank") for name in names) and token not in everything


@pytest.mark.parametrize("secret", KINDS)
def test_the_proxy_passes_nothing_of_ours_on(live: Live, web: Web, secret: str) -> None:
    """Neither the headers that told us where to go, nor the token that let the caller in."""
    answer = _proxied(web, secret, **{"Axiorank-Mcp-Server-Id": "server-1"})

    assert answer.status_code == 200
    assert _holds_nothing_of_ours(_received(live), answer.request.headers["Axiorank-Authorization"].split()[1])


@pytest.mark.parametrize("secret", KINDS)
def test_a_token_in_authorization_goes_no_further_either(live: Live, web: Web, secret: str) -> None:
    """Whichever header held it is removed; of a bearer what stands there afterwards is the value."""
    answer = web.get(
        "/proxy",
        headers={
            "Axiorank-Upstream-Url": f"https://{live.target}/echo",
            "Axiorank-Agent-Id": AGENT,
            "Axiorank-Secret": secret,
        },
        scope="broker:inject",
    )

    assert answer.status_code == 200
    assert _holds_nothing_of_ours(_received(live), answer.request.headers["Authorization"].split()[1])
    assert _received(live).headers_named("authorization") == ([f"Bearer {VALUE}"] if secret == "bearer" else [])


@pytest.mark.parametrize("name", ["Authorization", "X-Copy", "Cookie", "Proxy-Authorization"])
def test_a_copy_of_the_token_in_any_other_header_goes_no_further(live: Live, web: Web, name: str) -> None:
    """Callers that put it everywhere, to be sure."""
    token = web.token(scope="broker:inject")
    held = {"Axiorank-Authorization": f"Bearer {token}", name: f"Bearer {token}"}

    assert _proxied(web, "http_header", **held).status_code == 200

    assert _holds_nothing_of_ours(_received(live), token)


def test_the_callers_own_authorization_goes_on_where_the_value_goes_elsewhere(live: Live, web: Web) -> None:
    """What is not ours and not the injected one is the caller's business."""
    assert _proxied(web, "http_header", Authorization="Basic bWluZQ==").status_code == 200

    assert _received(live).headers_named("authorization") == ["Basic bWluZQ=="]


@pytest.mark.parametrize(
    ("secret", "header"), [("bearer", "Authorization"), ("bearer", "AUTHORIZATION"), ("http_header", "x_api_key")]
)
def test_through_the_proxy_injected_wins(live: Live, web: Web, secret: str, header: str) -> None:
    """Over whatever the caller put there."""
    token = f"Bearer {web.token(scope='broker:inject')}"
    own = {"Axiorank-Authorization": token, "Axiorank-Upstream-Url": f"https://{live.target}/echo"}
    named = {"Axiorank-Agent-Id": AGENT, "Axiorank-Secret": secret}

    assert web.get("/proxy", headers={**own, **named, header: "mine"}).status_code == 200

    wanted = {"bearer": ("authorization", f"Bearer {VALUE}"), "http_header": ("x-api-key", VALUE)}[secret]
    seen = [text for name, text in _received(live).headers if name.lower().replace("_", "-") == wanted[0]]
    assert seen == [wanted[1]]


@pytest.mark.parametrize("secret", KINDS)
def test_inject_passes_nothing_of_ours_on(live: Live, web: Web, secret: str) -> None:
    """Its caller's headers are in the body: those of ours, that somebody put there, go no further."""
    headers = [["Axiorank-Secret", secret], ["Axiorank-Authorization", "Bearer axr_tok_mine"], ["X-Kept", "1"]]
    request = {"url": f"https://{live.target}/echo", "headers": headers}

    answer = web.post("/inject", json={"agentId": AGENT, "secret": secret, "request": request}, scope="broker:inject")

    assert answer.status_code == 200
    assert _holds_nothing_of_ours(_received(live), answer.request.headers["Authorization"].split()[1])
    assert "axr_tok_mine" not in str(_received(live).headers)
    assert _received(live).header("x-kept") == "1"


@pytest.mark.parametrize("secret", KINDS)
def test_a_streamed_redirect_is_handed_back(live: Live, web: Web, secret: str) -> None:
    """As it came, and one request was made."""
    there = f"https://localhost:{live.upstream.port}/elsewhere"
    head = f"HTTP/1.1 307 Go\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
    live.upstream.route("/go", lambda _: RawResponse([head]))

    answer = _proxied(web, secret, "/go")

    assert (answer.status_code, answer.headers["Location"]) == (307, there)
    assert [request.path for request in live.upstream.requests] == ["/go"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_not_tried_again(live: Live, name: str) -> None:
    """Not before its head, and not in its body."""
    live.upstream.route("/broken", lambda _: BROKEN[name])
    call = Call(live.workspace, AGENT, None, "GET", f"https://{live.target}/broken", secret="bearer")

    with pytest.raises(UpstreamError):
        list(live.app.injector.stream(call).chunks())

    assert (len(live.upstream.requests), live.upstream.connections_accepted) == (1, 1)
