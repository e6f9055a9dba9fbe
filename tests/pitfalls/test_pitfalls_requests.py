"""Pitfalls 11 to 15, 17, 18, 19, 23 and 27: what a hostile or careless caller asks for, and what goes out.

"Costs nothing" means: nothing reached the upstream, and the customer's key was not asked; the AWS double has the list.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.dev.upstream import Response, SampleUpstream
from broker_core.errors import BrokerError, Invalid, Misconfigured, UpstreamError
from tests.live import AGENT, Live
from tests.pitfalls.agent import NAME, Agent

HEADER = {"injectionKind": "http_header", "bindingKey": "X-Api-Key"}
QUERY = {"injectionKind": "query", "bindingKey": "key"}


@pytest.fixture
def under_byok(live: Live) -> Live:
    """A workspace with a secret under its customer's key; what came before is forgotten."""
    live.connect(live.customer())
    live.store(NAME, value="a-value-under-their-key")
    live.aws.trail.clear()
    return live


def refused(live: Live, path: str = "/echo", **call: Any) -> str:
    """The code of a refusal that cost nothing."""
    with pytest.raises(BrokerError) as caught:
        live.send(NAME, path, **call)
    assert (live.upstream.requests, [call.action for call in live.aws.trail.calls]) == ([], [])
    return caught.value.reason


class TestValues:
    @pytest.mark.parametrize(
        "value", ["a-value\r\nX: y", "a-value\n", "a-value\r", "a\0value-1", "a-välue-1", " a-value"]
    )
    @pytest.mark.parametrize("injection", [{}, HEADER], ids=["bearer", "header"])
    def test_pitfall_11_is_refused_when_given(self, live: Live, value: str, injection: dict[str, str]) -> None:
        """A value that would end or bend its header is not accepted."""
        if injection:
            injection = {**injection, "targetHost": live.target, "agentId": AGENT}
        with pytest.raises(Invalid, match=r"data\.value"):
            live.publish(value=value, **injection)

    def test_pitfall_11_a_files_newline_is_named(self, live: Live) -> None:
        """The refusal of a trailing newline says to trim it."""
        with pytest.raises(Invalid, match=r"ends with a line break.*trim it"):
            live.publish(value="a-value-from-a-file\n")

    def test_pitfall_11_is_checked_again_at_use(self, live: Live) -> None:
        """A value that came in before its kind was known is not put on a request that it does not fit."""
        live.store(NAME, "secret.rotated", 2, "a-value\r\nX-Evil: 1", bare=True)
        live.publish(NAME, "secret.created", 1, "superseded")
        live.work()
        with pytest.raises(Misconfigured):
            live.send(NAME)
        assert live.upstream.requests == []


class TestNames:
    @pytest.mark.parametrize(
        "name",
        """Host Content-Length Transfer-Encoding Connection Keep-Alive Proxy-Authorization Proxy-Anything Expect TE
        Trailer Upgrade :authority Axiorank-Authorization axiorank-x HOST content-length""".split(),
    )
    def test_pitfall_12_a_reserved_header(self, live: Live, name: str) -> None:
        """A header that steers the connection, or is ours, cannot be bound."""
        with pytest.raises(Invalid, match=r"data\.bindingKey"):
            live.publish(injectionKind="http_header", bindingKey=name, targetHost=live.target, agentId=AGENT)

    def test_pitfall_13_another_authorization(self, agent: Agent) -> None:
        """Whatever the caller sends as ``Authorization``, in any case and number: one arrives, ours."""
        own = [("Authorization", "Basic x"), ("AUTHORIZATION", "Bearer y"), ("authorization ".strip(), "z")]
        agent.live.send(NAME, headers=own)
        (received,) = agent.live.upstream.requests
        assert received.headers_named("Authorization") == ["Bearer " + agent.value.value.decode()]

    def test_pitfall_13_a_spelling_that_servers_fold(self, live: Live) -> None:
        """``X_Api_Key`` is ``X-Api-Key`` to a CGI or WSGI server: it is removed too."""
        agent = Agent(live)
        agent.keep(**HEADER)
        live.send(NAME, headers=[("X_Api_Key", "mine"), ("x-api_key", "mine"), ("X-Api-Keys", "other")])
        (received,) = live.upstream.requests
        found = [(name, text) for name, text in received.headers if name.lower().startswith(("x-", "x_"))]
        assert found == [("X-Api-Keys", "other"), ("X-Api-Key", agent.value.value.decode())]

    @pytest.mark.parametrize(
        "query", ["key=mine", "k%65y=mine", "KEY=mine", "a=1&key=mine&key=mine", "key[]=mine", "a;key=m"]
    )
    def test_pitfall_13_another_parameter(self, live: Live, query: str) -> None:
        """A repeated, encoded or folded parameter is removed: one arrives, ours."""
        agent = Agent(live)
        agent.keep(**QUERY)
        live.send(NAME, f"/echo?{query}")
        (received,) = live.upstream.requests
        values = [text for name, text in received.parameters if name.lower().startswith("key")]
        assert values == [agent.value.value.decode()]


HANDLE = "{{secret:github}}"


class TestHandles:
    @pytest.mark.parametrize(
        "call",
        [
            {"path": "/echo?key={{secret:github}}"},
            {"method": "POST", "body": b'{"a": "{{secret:github}}", "b": "{{secret:github}}"}'},
            {"method": "POST", "body": b'{"{{secret:github}}": 1}'},
            {"method": "POST", "body": b"key={{secret:github}}"},
            {"headers": [(HANDLE.strip("{}").replace(":", "-"), HANDLE), ("X-Other", HANDLE)]},
        ],
        ids=["url", "twice", "a name", "no JSON", "two headers"],
    )
    def test_pitfall_14_is_no_template(self, under_byok: Live, call: dict[str, Any]) -> None:
        """A handle anywhere but alone in one place is refused, and the key is not asked."""
        path = call.pop("path", "/echo")
        with pytest.raises(BrokerError) as caught:
            under_byok.send(None, path, **call)
        assert caught.value.reason == "handle_misplaced"
        assert (under_byok.upstream.requests, under_byok.aws.trail.calls) == ([], ())

    def test_pitfall_14_selects_and_is_removed(self, agent: Agent) -> None:
        """In one string of a JSON body it picks the secret and does not arrive."""
        body = b'{"token": "{{secret:github}}", "q": 1}'
        agent.live.send(None, method="POST", body=body, headers=[("Content-Type", "application/json")])
        (received,) = agent.live.upstream.requests
        assert b"secret:" not in received.body
        assert agent.value.value not in received.body


class TestHosts:
    @pytest.mark.parametrize(
        "host",
        """localhost@elsewhere.test elsewhere.test#localhost elsewhere.test\\@localhost localhost. LOCALHOST.:1
        ⓛocalhost localhost%00.elsewhere.test 127.1 0x7f000001 2130706433 0177.0.0.1 １２７.0.0.1 [::ffff:127.0.0.1]
        127.0.0.1 localhost:1 localhost:443 sub.localhost localhost,elsewhere.test""".split(),
    )
    def test_pitfall_15_another_host_in_disguise(self, under_byok: Live, host: str) -> None:
        """A host that is not exactly the bound one, however it is written, costs nothing."""
        port = "" if ":" in host.rpartition("]")[2] else f":{under_byok.upstream.port}"
        code = refused(under_byok, url=f"https://{host}{port}/echo")
        assert code in ("invalid", "host_mismatch")
        assert under_byok.upstream.connections_accepted == 0

    def test_pitfall_15_the_host_header_is_ours(self, agent: Agent) -> None:
        """The caller's ``Host`` is dropped; what arrives is the host that was compared."""
        agent.live.send(NAME, headers=[("Host", "elsewhere.test"), ("X-Forwarded-Host", "x")])
        (received,) = agent.live.upstream.requests
        assert received.headers_named("Host") == [agent.live.target]

    def test_pitfall_15_case_is_normalised(self, agent: Agent) -> None:
        """Another case is the same host: one normal form is compared."""
        assert agent.live.send(NAME, url=f"https://LocalHost:{agent.live.upstream.port}/echo").status == 200

    @pytest.mark.parametrize(
        "path", ["/a/%2e%2e/b", "/a/../b", "/a%2fb", "/a%5cb", "/a%252e", "/a/..;x/b", "/./a", "/a%00"]
    )
    def test_pitfall_23_a_path_with_two_readings(self, under_byok: Live, path: str) -> None:
        """What two servers could read as two paths is refused, and costs nothing."""
        assert refused(under_byok, path) == "invalid"

    @pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "CONNECT", "trace", "PURGE"])
    def test_pitfall_27_a_method_that_reflects(self, under_byok: Live, method: str) -> None:
        """Methods that reflect, tunnel or ask about the server carry no value, and cost nothing."""
        assert refused(under_byok, method=method) == "method_refused"


class TestTls:
    @pytest.mark.parametrize("host", ["localhost", "upstream.test", "127.0.0.1.nip.test"])
    def test_pitfall_17_plain_http(self, under_byok: Live, host: str) -> None:
        """Plain http to a name is refused, and costs nothing."""
        assert refused(under_byok, url=f"http://{host}:{under_byok.upstream.port}/echo") == "destination_blocked"

    @pytest.mark.parametrize("certificate", ["self-signed", "expired"])
    def test_pitfall_17_a_certificate_that_is_not_trusted(
        self, live_with: Callable[..., Live], certificate: Any
    ) -> None:
        """No setting lets a bad certificate pass; the key is not asked."""
        with SampleUpstream.start(certificate=certificate) as bad:
            egress = Egress(["127.0.0.0/8", "::1/128"])
            live = live_with(to=bad, upstream=HttpsUpstream(egress, SystemClock(), str(bad.ca_file)))
            live.connect(live.customer())
            live.store(NAME)
            live.aws.trail.clear()
            assert refused(live) == "upstream_tls"


class TestNothingAmbient:
    def test_pitfall_18_the_environment_is_not_asked(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Neither ``.netrc`` nor proxies of the environment change what goes out, or where to."""
        (tmp_path / ".netrc").write_text("default login a password b\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert agent.live.send(NAME).status == 200
        (received,) = agent.live.upstream.requests
        assert received.headers_named("Authorization") == ["Bearer " + agent.value.value.decode()]

    def test_pitfall_18_no_cookie_is_kept(self, agent: Agent) -> None:
        """A cookie that an answer sets does not come back with the next request."""
        agent.live.upstream.route("/x", lambda _: Response(200, [("Set-Cookie", "a=b; Path=/")], b"{}"))
        agent.live.send(NAME, "/x")
        agent.live.send(NAME, "/x")
        assert [received.header("Cookie") for received in agent.live.upstream.requests] == [None, None]

    @pytest.mark.parametrize("path", ["/reset", "/status/503", "/hostile/length-too-long"])
    def test_pitfall_19_sent_once(self, under_byok: Live, path: str) -> None:
        """Whatever becomes of it, a request is one decrypt and one attempt."""
        with suppress(UpstreamError):
            under_byok.send(NAME, path)
        asked = [call.action for call in under_byok.aws.trail.calls]
        assert (len(under_byok.upstream.requests), asked) == (1, ["sts:AssumeRole", "kms:Decrypt"])
