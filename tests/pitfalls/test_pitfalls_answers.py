"""Pitfalls 3 to 10, 20, 22, 25 and 26: what a hostile upstream answers, and what of it the agent gets.

Over real sockets, whole and streamed. "The value" is a sentinel; the search for its forms shares no code with the
redaction.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest

from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.dev.upstream import Response, SampleUpstream
from broker_core.dev.upstream_hostile import BREAKING, ECHOES, LIMITS
from broker_core.errors import BrokerError, InjectionRefused, UpstreamError
from broker_core.inject.redact import Redactor
from tests.fakes_keys import ManualClock
from tests.live import AGENT, Live
from tests.pitfalls.agent import NAME, Agent
from tests.web import Web

MASK = f"«redacted:secret.{NAME}»"
#: of the echoes, those of each row; the meta-test below sees that none is left out
ROWS = {
    3: ["location", "refresh"],
    4: ["link", "json", "status-line", "header", "header-name", "set-cookie", "challenge"],
    5: ["raw", "rendered", "until-close"],
    6: [
        "json-slashes",
        "json-html",
        "json-in-json",
        "percent",
        "percent-lower",
        "percent-twice",
        "form",
        "html",
        "hex",
        "hex-upper",
    ]
    + [f"base64-{kind}{before}" for before in range(3) for kind in ("", "url-")],
    7: ["byte-by-byte", "sevens", "events"],
    8: ["gzip", "gzip-members", "deflate", "deflate-bare", "brotli-named", "gzip-twice", "gzip-broken"],
    9: ["partial"],
    10: ["digests"],
    22: ["trailers", "interim"],
}
TOO_MUCH = ["endless", "bomb", "header-flood", "header-huge", "interim-endless", "trailers-endless"]


def named(answer: object, name: str) -> list[str]:
    """An answer's headers of that name."""
    headers: list[tuple[str, str]] = answer.headers  # type: ignore[attr-defined]  # a BrokeredResponse
    return [text for key, text in headers if key.lower() == name]


def test_every_echo_belongs_to_a_row() -> None:
    """No way of echoing that the sample upstream knows goes untested."""
    assert sorted(name for names in ROWS.values() for name in names) == sorted(ECHOES)


class TestRedirects:
    def test_pitfall_03_no_form_in_a_redirect(self, http_agent: Agent) -> None:
        """A redirect that carries the value comes back without it."""
        assert http_agent.leaks(ROWS[3]) == {}

    def test_pitfall_03_a_redirect_is_handed_back(self, agent: Agent) -> None:
        """It is the agent's to follow, without the credential: the broker asked once."""
        answer = agent.live.send(NAME, "/hostile/location")
        assert (answer.status, len(agent.live.upstream.requests)) == (302, 1)
        assert named(answer, "location") == [f"https://elsewhere.test/?token=[redacted:secret.{NAME}]"]


class TestEchoes:
    def test_pitfall_04_no_form_in_pagination_or_headers(self, http_agent: Agent) -> None:
        """``Link``, JSON ``next``, status line, cookies, challenges, even a header's name."""
        assert http_agent.leaks(ROWS[4]) == {}

    def test_pitfall_04_the_next_page_is_still_there(self, agent: Agent) -> None:
        """Only the value is taken out of a ``Link``: the rest stays as it was."""
        answer = agent.live.send(NAME, "/hostile/link")
        assert named(answer, "link") == [
            f'<https://api.test/items?api_key=[redacted:secret.{NAME}]&page=2>; rel="next"'
        ]

    def test_pitfall_05_no_echo_in_a_body(self, http_agent: Agent) -> None:
        """The value in a body, bare or as it was rendered, is masked."""
        assert http_agent.leaks(ROWS[5]) == {}

    def test_pitfall_05_the_mask_stands_in_its_place(self, agent: Agent) -> None:
        """The agent sees that something was there, and of which secret."""
        assert agent.live.send(NAME, "/hostile/rendered").body.decode() == (f"you sent Authorization: Bearer {MASK}.")

    def test_pitfall_05_over_http_too(self, http_agent: Agent) -> None:
        """``/proxy`` streams the same masked body."""
        sent = http_agent.proxied("/hostile/rendered")
        assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"you sent Authorization: Bearer {MASK}.".encode() in sent

    def test_pitfall_06_every_encoding(self, http_agent: Agent) -> None:
        """Percent, JSON, HTML, hex and base64 at each alignment, in each spelling."""
        assert http_agent.leaks(ROWS[6]) == {}

    def test_pitfall_06_a_credential_without_its_scheme(self, agent: Agent) -> None:
        """Of a header that is stored whole, the upstream shows only what it took out of it."""
        header = {"injectionKind": "http_header", "bindingKey": "Authorization", "targetHost": agent.live.target}
        whole = "Bearer " + agent.value.value.decode()
        agent.live.store(NAME, "secret.rotated", 2, whole, agentId=AGENT, **header)

        assert agent.leaks(ROWS[4] + ROWS[5]) == {}

    def test_pitfall_06_one_encoding_in_another_is_a_limit(self, agent: Agent) -> None:
        """base64 of base64 is not found; SECURITY.md says so."""
        body = agent.live.send(NAME, "/hostile/base64-in-base64").body
        twice = body.removeprefix(b"you sent ").removesuffix(b".")
        assert base64.b64decode(base64.b64decode(twice)) == agent.value.value

    @pytest.mark.parametrize("name", sorted(LIMITS))
    def test_pitfall_06_a_limit_breaks_nothing(self, agent: Agent, name: str) -> None:
        """What is not found is handed on as it is."""
        assert agent.live.send(NAME, f"/hostile/{name}").status == 200

    def test_pitfall_07_chunk_borders(self, http_agent: Agent) -> None:
        """However the body was cut, one byte at a time too."""
        assert http_agent.leaks(ROWS[7]) == {}

    @pytest.mark.parametrize("size", [1, 5, 9, 100])
    def test_pitfall_07_one_value_begins_another(self, size: int) -> None:
        """Of two values the longer one is masked, however the text is cut."""
        text = b"token-abcdef and token-abcdef-123456."
        masking = Redactor([("short", b"token-abcdef"), ("long", b"token-abcdef-123456")]).stream()
        shown = b"".join(masking.feed(text[at : at + size]) for at in range(0, len(text), size)) + masking.finish()
        assert shown.decode() == "«redacted:secret.short» and «redacted:secret.long»."

    def test_pitfall_08_no_compression_hides_it(self, http_agent: Agent) -> None:
        """gzip and deflate are decoded and searched; what we do not decode, or not fully, is withheld."""
        assert http_agent.leaks(ROWS[8]) == {}

    @pytest.mark.parametrize("name", ["brotli-named", "gzip-twice", "gzip-broken"])
    def test_pitfall_08_what_cannot_be_read_is_withheld(self, agent: Agent, name: str) -> None:
        """An answer in a coding that we do not read does not reach the agent at all."""
        with pytest.raises(UpstreamError) as refused:
            agent.live.send(NAME, f"/hostile/{name}")
        assert refused.value.reason == "response_withheld"

    def test_pitfall_08_identity_is_asked_for(self, agent: Agent) -> None:
        """Whatever codings the agent names, the upstream is asked for none."""
        agent.live.send(NAME, headers=[("accept-encoding", "gzip, br"), ("Accept_Encoding", "br")])
        (received,) = agent.live.upstream.requests
        assert [text for name, text in received.headers if name.lower().startswith("accept")] == ["identity"]


class TestPieces:
    def test_pitfall_09_a_partial_answer(self, http_agent: Agent) -> None:
        """A 206 that nobody asked for is searched like any other answer."""
        assert http_agent.leaks(ROWS[9]) == {}

    def test_pitfall_09_ranges_are_not_asked_for(self, agent: Agent) -> None:
        """``Range`` and ``If-Range`` do not go out: no half of an echo can be asked for that way."""
        agent.live.send(NAME, headers=[("Range", "bytes=0-9"), ("if-range", '"x"'), ("RANGE", "bytes=10-")])
        (received,) = agent.live.upstream.requests
        assert (received.headers_named("Range"), received.headers_named("If-Range")) == ([], [])


class TestOracle:
    def test_pitfall_10_no_digest_passes(self, agent: Agent) -> None:
        """``ETag``, ``Content-MD5`` and the digests, by which a guess could be checked, are dropped."""
        answer = agent.live.send(NAME, "/hostile/digests")
        dropped = {"etag", "content-md5", "digest", "repr-digest", "content-digest"}
        assert [name for name, _ in answer.headers if name.lower() in dropped] == []

    @pytest.mark.parametrize("write", [bytes, bytes.hex, base64.b64encode], ids=["raw", "hex", "base64"])
    def test_pitfall_10_a_right_guess_is_not_sent(self, agent: Agent, write: Callable[[bytes], str | bytes]) -> None:
        """A request that holds a form of the value is refused, so the mask confirms no guess of a part."""
        guess = write(agent.value.value)
        with pytest.raises(InjectionRefused) as refused:
            agent.live.send(NAME, method="POST", body=guess.encode() if isinstance(guess, str) else guess)
        assert (refused.value.reason, agent.live.upstream.requests) == ("handle_misplaced", [])

    def test_pitfall_10_the_mask_tells_no_length(self, live: Live) -> None:
        """Two values of different lengths come back as the same bytes, with the same length."""
        answers = []
        for version, value in ((1, "a-value-of-one-length"), (2, "a-value-of-quite-another-length")):
            live.store(NAME, "secret.rotated" if version > 1 else "secret.created", version, value, bare=version > 1)
            answer = live.send(NAME, "/hostile/raw")
            answers.append((answer.body, named(answer, "content-length")))
        assert answers[0] == answers[1]

    def test_pitfall_10_a_short_value_is_warned_about(self, live: Live) -> None:
        """Under 8 bytes a value is not masked, and whoever stores one is told."""
        assert "not redacted" in live.publish(value="1234567").warnings[0]


class TestWhoAnswered:
    def test_pitfall_20_our_mark_is_removed_from_theirs(self, agent: Agent) -> None:
        """An upstream cannot pass its answer off as the broker's."""
        mark = [("Axiorank-Broker-Error", "true"), ("axiorank_broker_error", "true"), ("X-Kept", "1")]
        agent.live.upstream.route("/x", lambda _: Response(403, mark, b'{"error": "no_binding"}'))
        answer = agent.live.send(NAME, "/x")
        assert [name for name, _ in answer.headers if name.lower().startswith(("axiorank", "x-"))] == ["X-Kept"]

    def test_pitfall_20_our_refusals_have_it(self, web: Web) -> None:
        """An error of the broker's own is marked, before and after anything went out."""
        refusals = [web.post("/inject", json={}), web.post("/inject", json={}, scope="broker:inject")]
        assert [answer.headers.get("Axiorank-Broker-Error") for answer in refusals] == ["true", "true"]

    def test_pitfall_20_over_http(self, http_agent: Agent) -> None:
        """An upstream's 401 passes unmarked, whatever it says of itself."""
        mark = [("Axiorank-Broker-Error", "true")]
        http_agent.live.upstream.route("/x", lambda _: Response(401, mark, b"{}"))
        head = http_agent.proxied("/x").partition(b"\r\n\r\n")[0].lower()
        assert (head[:12], b"axiorank-broker-error" in head) == (b"http/1.1 401", False)


class TestFraming:
    def test_pitfall_22_no_form_in_trailers_or_interim_answers(self, http_agent: Agent) -> None:
        """Trailers, chunk extensions and 1xx answers do not reach the agent."""
        assert http_agent.leaks(ROWS[22]) == {}

    def test_pitfall_22_nothing_of_the_connection_passes(self, agent: Agent) -> None:
        """Hop-by-hop headers, and those that ``Connection`` names, end at the broker."""
        headers = [("Connection", "X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=1"), ("Upgrade", "h2c")]
        headers += [("Proxy-Authenticate", "Basic"), ("Trailer", "X"), ("X-Kept", "1")]
        agent.live.upstream.route("/x", lambda _: Response(200, headers, b"{}"))
        answer = agent.live.send(NAME, "/x")
        sent = {name.lower() for name, _ in headers}
        assert {name.lower() for name, _ in answer.headers} & sent == {"x-kept"}

    def test_pitfall_22_the_length_is_the_masked_bodys(self, agent: Agent) -> None:
        """``Content-Length`` is counted again after the redaction."""
        answer = agent.live.send(NAME, "/hostile/raw")
        assert named(answer, "content-length") == [str(len(answer.body))]

    def test_pitfall_25_a_second_answer_goes_to_nobody(self, agent: Agent) -> None:
        """What follows a complete answer is not taken for the next request's: that one has another connection."""
        assert agent.live.send(NAME, "/hostile/two-answers").body == b"{}"
        assert b"second" not in agent.live.send(NAME, "/echo").body

    @pytest.mark.parametrize("name", sorted(BREAKING.keys() - {*TOO_MUCH, "two-answers"}))
    def test_pitfall_25_a_broken_answer_ends_its_connection(self, agent: Agent, name: str) -> None:
        """After an answer that is not framed as HTTP the next request is answered, with its own answer."""
        agent.buffered(f"/hostile/{name}")
        assert agent.live.send(NAME, "/status/201").status == 201


class TestTooMuch:
    @pytest.mark.parametrize("name", TOO_MUCH)
    @pytest.mark.parametrize("way", ["buffered", "streamed"])
    def test_pitfall_26_it_ends(self, live_with: Callable[..., Live], way_out: object, name: str, way: str) -> None:
        """Endless bodies, bombs, header floods and endless trailers end by size or time, with an error of ours."""
        # a stream has no size: what is endless takes a whole processor for as long as it may
        limits = {"BROKER_UPSTREAM_SECONDS": "3", "BROKER_STREAM_SECONDS": "1", "BROKER_UPSTREAM_MAX_BYTES": "1000000"}
        agent = Agent(live_with(limits, upstream=way_out))
        agent.keep()
        assert b"Error: " in getattr(agent, way)(f"/hostile/{name}")

    def test_pitfall_26_a_slow_drip_ends(self, live_with: Callable[..., Live], upstream: SampleUpstream) -> None:
        """A byte now and then does not hold a worker longer than the whole exchange may take."""
        clock = ManualClock()

        def drip() -> Iterator[bytes]:
            while True:
                clock.seconds += 1
                yield b"x"

        upstream.route("/drip", lambda _: Response(200, body=drip()))
        way = HttpsUpstream(Egress(["127.0.0.0/8", "::1/128"]), clock, str(upstream.ca_file))
        live = live_with(upstream=way)
        live.store(NAME)
        with pytest.raises(BrokerError) as refused:
            live.send(NAME, "/drip")
        assert refused.value.reason == "upstream_timeout"
