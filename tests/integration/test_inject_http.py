"""``/inject`` and ``/inject/environment`` over HTTP, on real servers: what goes in, what comes out, what never does."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.limiter import SharedLimiter
from broker_core.dev.upstream import Response
from tests.live import AGENT
from tests.web import Web

VALUE = "ghp_0123456789abcdefghij"


@pytest.fixture
def stored(web: Web) -> Web:
    """A workspace with a bearer for AGENT under its own key."""
    web.live.connect(web.live.customer())
    web.live.store("github", value=VALUE)
    return web


def inject(web: Web, path: str = "/echo", *, agent: str = AGENT, secret: str | None = None, **request: Any) -> Any:
    """One injection to the sample upstream."""
    document = {"agentId": agent, "request": {"url": f"https://{web.live.target}{path}", **request}}
    if secret is not None:
        document["secret"] = secret
    return web.post("/inject", scope="broker:inject", json=document)


class TestAnswer:
    def test_whole(self, stored: Web) -> None:
        """The upstream's answer comes back, redacted, with the audit row's id."""
        answer = inject(stored)
        assert answer.status_code == 200
        document = answer.json()
        assert set(document) == {"status", "headers", "body", "bodyEncoding", "auditId"}
        assert (document["status"], document["bodyEncoding"]) == (200, "utf-8")
        assert "«redacted:secret.github»" in document["body"]
        assert VALUE not in answer.text
        uses = [use.intent.id for use in stored.live.app.store.uses(stored.live.workspace)]
        assert UUID(document["auditId"]) in uses

    def test_the_upstream_got_the_value(self, stored: Web) -> None:
        """The request arrived with the value on it, and with what the caller sent."""
        inject(stored, method="POST", headers=[["X-A", "1"], ["X-A", "2"]], body="héllo")
        (seen,) = stored.live.upstream.requests
        assert seen.header("Authorization") == f"Bearer {VALUE}"
        assert (seen.method, seen.body) == ("POST", "héllo".encode())
        assert seen.headers_named("X-A") == ["1", "2"]

    def test_headers_as_an_object(self, stored: Web) -> None:
        """Headers may be given as an object."""
        inject(stored, headers={"X-A": "1"})
        assert stored.live.upstream.requests[0].header("X-A") == "1"

    def test_headers_that_come_twice(self, stored: Web) -> None:
        """Headers that come more than once stay apart, in order."""
        cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        stored.live.upstream.route("/cookies", lambda _: Response(200, cookies, b"{}"))
        headers = inject(stored, "/cookies").json()["headers"]
        assert [pair for pair in headers if pair[0] == "Set-Cookie"] == [list(pair) for pair in cookies]

    def test_bytes_both_ways(self, stored: Web) -> None:
        """A body that is no text is base64 both ways."""
        stored.live.upstream.route("/bytes", lambda request: Response(200, [], request.body))
        sent = b"\xff\xfe\x00\x01"
        document = inject(
            stored, "/bytes", method="PUT", body=base64.b64encode(sent).decode(), bodyEncoding="base64"
        ).json()
        assert document["bodyEncoding"] == "base64"
        assert base64.b64decode(document["body"]) == sent

    def test_an_upstreams_error_is_an_answer(self, stored: Web) -> None:
        """The upstream's 401 is 200 of ours, with its status inside, and without our mark."""
        answer = inject(stored, "/status/401")
        assert (answer.status_code, answer.json()["status"]) == (200, 401)
        assert "Axiorank-Broker-Error" not in answer.headers

    def test_handle(self, stored: Web) -> None:
        """A handle in a header selects the secret and is removed."""
        stored.live.store("other", value="another-value-here")
        answer = inject(stored, headers=[["X-Secret", "{{secret:github}}"]])
        assert answer.status_code == 200
        (seen,) = stored.live.upstream.requests
        assert (seen.header("Authorization"), seen.header("X-Secret")) == (f"Bearer {VALUE}", None)


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"secret": "nobody"}, 403, "no_binding"),
    ({"agent": "agent-2"}, 403, "no_binding"),
    ({"path": "/a/../b"}, 422, "invalid"),
    ({"method": "TRACE"}, 403, "method_refused"),
    ({"method": "get"}, 403, "method_refused"),
    ({"headers": [["X-A", "1\r\nX-B: 2"]]}, 422, "invalid"),
    ({"headers": [["X A", "1"]]}, 422, "invalid"),
    ({"headers": [["X-A"]]}, 422, "invalid"),
    ({"headers": [["X-A", "1"]] * 101}, 422, "invalid"),
    ({"headers": [["X-A", "a" * (1 << 20)]]}, 422, "invalid"),
    ({"body": "%%%", "bodyEncoding": "base64"}, 422, "invalid"),
    ({"body": "x", "bodyEncoding": "hex"}, 422, "invalid"),
    ({"body": "{{secret:github}}"}, 403, "handle_misplaced"),
    ({"other": 1}, 422, "invalid"),
]


class TestRefused:
    def test_before_a_decrypt(self, stored: Web) -> None:
        """What is refused costs no decrypt, sends nothing, and is marked as ours."""
        stored.live.aws.trail.clear()
        for changed, status, code in REFUSED:
            answer = inject(stored, **changed)
            assert (answer.status_code, answer.json()["error"]) == (status, code), changed
            assert answer.headers["Axiorank-Broker-Error"] == "true"
        assert stored.live.aws.trail.calls == ()
        assert stored.live.upstream.requests == []

    def test_another_host(self, stored: Web) -> None:
        """A URL elsewhere is refused, although a secret is bound."""
        answer = stored.post(
            "/inject", scope="broker:inject", json={"agentId": AGENT, "request": {"url": "https://evil.test/"}}
        )
        assert (answer.status_code, answer.json()["error"]) == (403, "host_mismatch")

    def test_revoked(self, web: Web) -> None:
        """A key that refuses is 424, and says no more than that; the audit row is named."""
        customer = web.live.customer()
        web.live.connect(customer)
        web.live.store("github", value=VALUE)
        customer.disable_key()
        answer = inject(web)
        assert (answer.status_code, answer.json()["error"]) == (424, "secret_unavailable")
        assert UUID(answer.json()["auditId"])
        assert "disabled" not in answer.text.lower()

    @pytest.mark.parametrize("who", [{"scope": "broker:events"}, {"scope": "broker:environment"}, {"role": "owner"}])
    def test_another_scope(self, stored: Web, who: dict[str, str]) -> None:
        """Only a token for injecting injects."""
        answer = stored.post("/inject", json={"agentId": AGENT, "request": {"url": "https://x.test"}}, **who)
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")

    def test_another_workspace(self, stored: Web) -> None:
        """A token of another workspace reaches nothing of this one."""
        document = {"agentId": AGENT, "secret": "github", "request": {"url": f"https://{stored.live.target}/echo"}}
        answer = stored.post("/inject", scope="broker:inject", workspace="ws_other", json=document)
        assert (answer.status_code, answer.json()["error"]) == (403, "no_binding")


class TestLimits:
    @pytest.fixture
    def limiter(self, queue_valkey: str) -> Iterator[SharedLimiter]:
        """One that waits for Redis: who gives it up counts by itself, and begins anew."""
        limiter = SharedLimiter(queue_valkey, SystemClock(), seconds=20)
        yield limiter
        limiter.close()

    def test_requests(self, live_with: Any, limiter: SharedLimiter) -> None:
        """Above its limit a workspace is answered 429 with the seconds to wait, and nothing is decrypted."""
        from tests.web import web_on

        with web_on(live_with({"BROKER_RATE_INJECT_PER_MINUTE": "2"}, limiter=limiter)) as web:
            answers = [inject(web, secret="nobody") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [403, 403, 429]
        assert answers[2].json()["error"] == "rate_limited"
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 120

    def test_bytes(self, live_with: Any, limiter: SharedLimiter) -> None:
        """A workspace that had its bytes is answered 429; the injection that went above was still answered."""
        from tests.web import web_on

        with web_on(live_with({"BROKER_RATE_BYTES_PER_MINUTE": "100"}, limiter=limiter)) as web:
            web.live.store("github", value=VALUE)
            answers = [inject(web, method="POST", body="x" * 200) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]


class TestEnvironment:
    def test_all_that_is_bound(self, web: Web) -> None:
        """Every variable that is bound to the caller, an audit row each, and nobody may store the answer."""
        for name in ("ONE", "TWO"):
            web.live.store(
                name, value=f"value of {name}", injectionKind="stdio_env", bindingKey=name, mcpServerId="server-1"
            )
        answer = web.post("/inject/environment", scope="broker:environment", json={"mcpServerId": "server-1"})
        assert answer.status_code == 200
        assert answer.json()["environment"] == {"ONE": "value of ONE", "TWO": "value of TWO"}
        assert len(set(answer.json()["auditIds"])) == 2
        assert answer.headers["Cache-Control"] == "no-store"

    def test_nothing_bound(self, web: Web) -> None:
        """Where nothing is bound the environment is empty."""
        answer = web.post("/inject/environment", scope="broker:environment", json={"mcpServerId": "server-1"})
        assert answer.json() == {"environment": {}, "auditIds": []}

    def test_its_own_scope(self, web: Web) -> None:
        """A token for requests gets no environment."""
        answer = web.post("/inject/environment", scope="broker:inject", json={"mcpServerId": "server-1"})
        assert answer.status_code == 403
