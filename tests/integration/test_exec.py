"""``broker exec``: a command with the variables in its environment only, its output masked, its end ours.

Most run the module that starts the command in a process of its own, as the command does; ``TestCommand`` runs the whole
command. The broker that is asked over HTTP is the sample upstream.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker_core.cli import common, main, masked, remote
from broker_core.cli.masked import Mask, NotStarted, environment_for
from broker_core.dev.upstream import RawResponse, Received, Response, SampleUpstream, as_json
from broker_core.errors import BrokerError, Invalid, Refused, Unavailable
from broker_core.inject.redact import Redactor, forms
from tests.live import AGENT, Live
from tests.web import Web

VALUE = "tok/sentinel+1234567890&\"'\\%<=z"
LINES = "-----BEGIN KEY-----\nMIIBVgIBADANBgkqhkiG\nbase64+lines/of+a+key==\n-----END KEY-----\n"
MASK = "«redacted:secret.TOKEN»"
TOKEN = "axr_tok_header.{}.signature"
PYTHON = (sys.executable, "-I", "-c")
#: loads the one module: importing the whole command takes a second
DRIVER = """
import fcntl, importlib.util, json, sys, termios
spec = importlib.util.spec_from_file_location("masked", sys.argv[1])
masked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(masked)
variables, masking, terminal, *command = map(json.loads, sys.argv[2:])
if terminal:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(masked.run(command, variables, masking=masking))
"""


def line_for(
    *command: str, value: str = VALUE, masking: bool = True, terminal: bool = False, first: str = ""
) -> list[str]:
    """The command line that runs ``command`` with TOKEN, in a Python that did ``first``."""
    arguments = map(json.dumps, [{"TOKEN": value}, masking, terminal, *command])
    return [sys.executable, "-P", "-c", first + DRIVER, str(masked.__file__), *arguments]


def run(*command: str, stdin: bytes = b"", **how: Any) -> subprocess.CompletedProcess[bytes]:
    """Run to the end."""
    return subprocess.run(line_for(*command, **how), input=stdin, capture_output=True, timeout=60, check=False)


@contextmanager
def running(*command: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """One under way; killed at the end if it still is."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line_for(*command, **how), bufsize=0, **pipes) as process:  # type: ignore[call-overload]  # a mapping of pipes is more than its overloads know
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[bytes]) -> bytes:
    """The next line."""
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Write to its stdin."""
    assert process.stdin is not None
    process.stdin.write(text)


class TestMasking:
    def test_every_form_is_masked_in_both_streams(self) -> None:
        """Whatever form the command prints a value in, on stdout or stderr, the mask stands there."""
        printed = b" ".join(sorted(forms(VALUE.encode())))
        script = "import sys; data = sys.stdin.buffer.read(); [os.write(n, data) for n in (1, 2)]"
        ended = run(*PYTHON, "import os\n" + script, stdin=printed)
        expected = Redactor([("TOKEN", VALUE.encode())]).body(printed)
        assert (ended.stdout, ended.stderr) == (expected, expected)
        assert VALUE.encode() not in ended.stdout

    def test_the_variable_is_in_the_commands_environment(self) -> None:
        """The command itself has the value."""
        script = "import hashlib, os; print(hashlib.sha256(os.environb[b'TOKEN']).hexdigest())"
        assert run(*PYTHON, script).stdout.decode().strip() == hashlib.sha256(VALUE.encode()).hexdigest()

    def test_a_value_printed_in_two_halves(self) -> None:
        """A value that is printed half now and half later is masked."""
        script = "import os\nhalf = os.environb[b'TOKEN']\nos.write(1, half[:9]); input(); os.write(1, half[9:])"
        with running(*PYTHON, script) as process:
            tell(process, b"\n")
            assert read(process) == MASK.encode()

    def test_a_trimmed_value_is_masked(self) -> None:
        """A value that ends with a line break is masked as programs print it, without."""
        assert run(*PYTHON, "import os; print(os.environ['TOKEN'].strip(), end='.')", value=VALUE + "\n").stdout == (
            f"{MASK}.".encode()
        )

    def test_other_bytes_pass_unchanged(self) -> None:
        """Binary output, a megabyte of it, arrives byte for byte."""
        data = bytes(range(256)) * 4096
        assert run("cat", stdin=data).stdout == data

    @pytest.mark.parametrize("value", [VALUE, LINES], ids=["one line", "several lines"])
    def test_lines_arrive_while_the_command_runs(self, value: str) -> None:
        """A program that talks in lines is heard at once, whatever the value looks like; stdin passes through."""
        with running("cat", value=value) as process:
            for line in (b"one\n", b"two\n"):
                tell(process, line)
                assert read(process) == line

    def test_without_masking(self) -> None:
        """``--no-masking`` hands the output on as it is."""
        ended = run(*PYTHON, "import os; print(os.environ['TOKEN'], end='')", masking=False)
        assert ended.stdout.decode() == VALUE


class TestMask:
    """Values of several lines, in this process."""

    @pytest.mark.parametrize("size", [1, 7, 20, 1000])
    def test_a_value_of_several_lines(self, size: int) -> None:
        """It is masked as a whole, however its lines arrive."""
        value = LINES.encode()
        data = b"before\n" + value + b"after\n" + value
        mask = Mask(Redactor([("KEY", value)]), [value])
        shown = b"".join(mask.feed(data[at : at + size]) for at in range(0, len(data), size)) + mask.finish()
        assert shown.decode() == "before\n«redacted:secret.KEY»after\n«redacted:secret.KEY»"

    def test_a_line_end_lets_go(self) -> None:
        """What ends with a line that does not begin the value is shown at once."""
        mask = Mask(Redactor([("KEY", LINES.encode())]), [LINES.encode()])
        assert mask.feed(b'{"id": 1}\n') == b'{"id": 1}\n'

    def test_first_lines_wait(self) -> None:
        """The value's own first line waits for what follows."""
        mask = Mask(Redactor([("KEY", LINES.encode())]), [LINES.encode()])
        assert mask.feed(b"-----BEGIN KEY-----\n") + mask.feed(b"\n") == b"-----BEGIN KEY-----\n\n"


class TestEnd:
    def test_the_exit_code(self) -> None:
        """Its exit code is ours."""
        assert run("sh", "-c", "exit 7").returncode == 7

    def test_ended_by_a_signal(self) -> None:
        """A command that a signal ended gives 128 and the signal's number."""
        assert run("sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
    def test_a_signal_is_forwarded(self, name: str) -> None:
        """A signal to us reaches the command, which decides what becomes of it."""
        script = (
            f"import signal, sys\nwanted = {{signal.{name}}}\nsignal.pthread_sigmask(signal.SIG_BLOCK, wanted)\n"
            "print('ready', flush=True)\nsys.exit(signal.sigwait(wanted) + 40)"
        )
        with running(*PYTHON, script) as process:
            assert read(process) == b"ready\n"
            process.send_signal(getattr(signal, name))
            assert process.wait(30) == getattr(signal, name) + 40

    def test_a_signal_that_another_thread_got_is_forwarded(self) -> None:
        """The kernel may hand a signal to any thread: the command gets it all the same."""
        script = (
            "import signal, sys\nwanted = {signal.SIGUSR1}\nprint('ready', flush=True)\n"
            "sys.exit(signal.sigwait(wanted) + 40)"  # blocked already: a process inherits that
        )
        elsewhere = (
            "import signal, threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
        )
        with running(*PYTHON, script, first=elsewhere) as process:
            assert read(process) == b"ready\n"
            process.send_signal(signal.SIGUSR1)
            assert process.wait(30) == signal.SIGUSR1 + 40

    def test_signals_that_are_blocked(self) -> None:
        """Whoever started us may have blocked the signal that tells of the command's end."""
        first = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})\n"
        assert run("sh", "-c", "exit 7", first=first).returncode == 7

    @pytest.mark.parametrize("first", ["", "os.setpgid(0, 0)\n"], ids=["our group", "a group of its own"])
    def test_an_interrupt_at_the_terminal_comes_once(self, first: str) -> None:
        """^C reaches the command from the terminal, and not from us a second time; from us, if it left our group."""
        script = (
            f"import os\n{first}"
            "import signal, sys\nwanted, seen = {signal.SIGINT, signal.SIGUSR1}, 0\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, wanted)\nos.write(1, b'ready\\n')\n"
            "while signal.sigwait(wanted) == signal.SIGINT:\n    seen += 1\n    os.write(1, b'int\\n')\n"
            "sys.exit(seen)"
        )
        keyboard, terminal = pty.openpty()
        line = line_for(*PYTHON, script, terminal=True)
        try:
            with subprocess.Popen(line, stdin=terminal, stdout=subprocess.PIPE, start_new_session=True) as process:
                try:
                    assert read(process) == b"ready\n"
                    os.write(keyboard, b"\x03")
                    assert read(process) == b"int\n"
                    process.send_signal(signal.SIGUSR1)  # of two signals the lower number is handled first
                    assert process.wait(30) == 1
                finally:
                    process.kill()
        finally:
            os.close(keyboard)
            os.close(terminal)

    def test_what_it_leaves_behind_holds_up_nobody(self) -> None:
        """A process that the command leaves in the background lives on, and we end with the command."""
        ended = run("sh", "-c", "sleep 600 & echo $!")
        os.kill(int(ended.stdout), signal.SIGKILL)  # fails if it had not lived on
        assert ended.returncode == 0

    def test_what_it_leaves_behind_may_go_on_printing(self) -> None:
        """What the command left in the background, and prints without end, does not keep us."""
        assert run("sh", "-c", "yes & exit 3").returncode == 3

    def test_all_that_it_printed_arrives(self) -> None:
        """What was still in the pipe when the command ended is shown."""
        assert len(run("sh", "-c", "head -c 60000 /dev/zero; yes >&2 & exit 3").stdout) == 60_000

    def test_the_command_is_reaped(self) -> None:
        """The command's process is gone with us, not a zombie."""
        ended = run("sh", "-c", "echo $$")
        with pytest.raises(ProcessLookupError):
            os.kill(int(ended.stdout), 0)

    def test_a_reader_that_goes_away_ends_the_command(self) -> None:
        """Where nobody reads our stdout any more, the command gets SIGPIPE, as it would without us."""
        with running("sh", "-c", "while :; do echo y; done") as process:
            assert read(process) == b"y\n"
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(30) == 128 + signal.SIGPIPE

    def test_a_stdout_that_does_not_block(self) -> None:
        """A pipe that somebody made non-blocking loses nothing."""
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        with open(ours, "rb") as reader, subprocess.Popen(line_for(*PYTHON, "print('x' * 1_000_000)"), stdout=theirs):
            os.close(theirs)
            assert len(reader.read()) == 1_000_001


class TestNotStarted:
    @pytest.mark.parametrize(
        ("command", "code"),
        [("/nowhere/at/all", 127), ("/etc/passwd", 126), ("an\0argument", 126)],
        ids=["missing", "not executable", "NUL"],
    )
    def test_says_why(self, command: str, code: int) -> None:
        """127 for what is not there, 126 for what cannot be run."""
        with pytest.raises(NotStarted) as refused:
            masked.run([command], {"TOKEN": VALUE})
        assert refused.value.exit_code == code

    def test_more_than_the_system_allows(self) -> None:
        """More than fits into a new process: 126, and the error holds neither."""
        with pytest.raises(NotStarted) as refused:
            masked.run(["true", "x" * 200_000], {"TOKEN": VALUE})
        assert refused.value.exit_code == 126
        assert VALUE not in "".join(traceback.format_exception(refused.value))


class TestEnvironment:
    def test_ours_is_taken_out(self) -> None:
        """Our settings and credentials are not the command's; everything else is."""
        ours = {b"BROKER_DATABASE_URL": b"x", b"AWS_SECRET_ACCESS_KEY": b"x", b"OTEL_A": b"x", b"PATH": b"/bin\xff"}
        assert environment_for(ours, {}) == {b"PATH": b"/bin\xff"}

    def test_a_variable_wins(self) -> None:
        """What is bound replaces what was there, also under a name of ours."""
        assert environment_for({b"AWS_SECRET_ACCESS_KEY": b"ours", b"T": b"old"}, {"AWS_SECRET_ACCESS_KEY": "é"}) == {
            b"T": b"old",
            b"AWS_SECRET_ACCESS_KEY": "é".encode(),
        }


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A token of workspace ws_1, with the newline that files end with."""
    payload = base64.urlsafe_b64encode(json.dumps({"workspace": "ws_1"}).encode()).decode().rstrip("=")
    path = tmp_path / "token"
    path.write_text(TOKEN.format(payload) + "\n")
    return path


def answering(variables: Mapping[str, object]) -> Callable[[Received], Response]:
    """A route that hands out these variables."""
    return lambda _: as_json({"environment": variables, "auditIds": ["1"]})


def ask(upstream: SampleUpstream, url: str = "", token: str = "a.b.c") -> dict[str, str]:
    """Ask the sample upstream as the broker."""
    return remote.RemoteBroker(url or upstream.url, token, str(upstream.ca_file)).environment(AGENT, "files")


class TestRemote:
    def test_asks_as_the_surface_wants_it(self, upstream: SampleUpstream) -> None:
        """One POST with the token and who asks; the answer's variables."""
        upstream.route(remote.PATH, answering({"TOKEN": VALUE}))
        assert ask(upstream) == {"TOKEN": VALUE}
        (received,) = upstream.requests
        assert (received.method, received.header("Authorization")) == ("POST", "Bearer a.b.c")
        assert json.loads(received.body) == {"agentId": AGENT, "mcpServerId": "files"}

    def test_over_http_to_loopback(self) -> None:
        """Plain http will do to an address of this machine."""
        with SampleUpstream.start(("127.0.0.1",), tls=False) as plain:
            plain.route(remote.PATH, answering({}))
            assert ask(plain) == {}

    @pytest.mark.parametrize(
        "url", ["http://localhost", "http://broker.test", "ftp://x", "https://u:p@x", "https://x?q"]
    )
    def test_other_urls_are_refused(self, upstream: SampleUpstream, url: str) -> None:
        """A token never crosses a network in the clear, nor goes where a URL has two readings."""
        with pytest.raises(Invalid, match="--server"):
            ask(upstream, url)

    def test_a_redirect_is_not_followed(self, upstream: SampleUpstream) -> None:
        """A redirect is a refusal: nobody else gets the token."""
        upstream.route(remote.PATH, lambda _: Response(307, [("Location", f"{upstream.url}/echo")]))
        with pytest.raises(Refused, match="307"):
            ask(upstream)
        assert len(upstream.requests) == 1

    def test_the_environments_proxies_are_not_asked(
        self, upstream: SampleUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Neither proxies nor a file for session keys of the environment are used."""
        keys = tmp_path / "keys"
        for name, value in {"HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
        upstream.route(remote.PATH, answering({}))
        assert (ask(upstream), keys.exists()) == ({}, False)

    def test_an_untrusted_certificate(self) -> None:
        """A server whose certificate is not trusted gets no request."""
        with SampleUpstream.start(certificate="self-signed") as other, pytest.raises(Refused, match="server_tls"):
            ask(other)
        assert other.requests == []

    def test_whom_we_trust_is_no_matter_of_the_environment(
        self, upstream: SampleUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OpenSSL's own variables add nobody: the token goes to whom the system or ``--ca-file`` names."""
        monkeypatch.setenv("SSL_CERT_FILE", str(upstream.ca_file))
        monkeypatch.setenv("SSL_CERT_DIR", str(upstream.ca_file.parent))
        with pytest.raises(Refused, match="server_tls"):
            remote.RemoteBroker(upstream.url, "a.b.c").environment(AGENT, "files")
        assert upstream.requests == []

    @pytest.mark.parametrize(
        ("status", "body", "error", "code"),
        [
            (403, {"error": "no_binding"}, Refused, "no_binding"),
            (401, {"error": "\x1b[2J" + VALUE}, Refused, "refused"),
            (503, {"error": "audit_unavailable"}, Unavailable, "audit_unavailable"),
            (429, {}, Unavailable, "unavailable"),
        ],
    )
    def test_refusals(
        self, upstream: SampleUpstream, status: int, body: object, error: type[BrokerError], code: str
    ) -> None:
        """The server's code is handed on, and nothing else of what it wrote."""
        upstream.route(remote.PATH, lambda _: as_json(body, status))
        with pytest.raises(error) as refused:
            ask(upstream)
        assert refused.value.reason == code
        assert VALUE not in str(refused.value)

    @pytest.mark.parametrize(
        ("status", "code", "advice"), [(401, "unauthorized", "new token"), (403, "forbidden", "broker:environment")]
    )
    def test_what_to_do_about_the_token(self, upstream: SampleUpstream, status: int, code: str, advice: str) -> None:
        """Of a token that is not taken the message says which one is needed."""
        upstream.route(remote.PATH, lambda _: as_json({"error": code}, status))
        with pytest.raises(Refused, match=advice):
            ask(upstream)

    @pytest.mark.parametrize(
        "answer",
        [b"", b"[]", b'{"environment": []}', b'{"environment": {"A": 1}}', b'{"environment": {"PATH": "/tmp"}}',
         b'{"environment": {"A=B": "x"}}', b'{"environment": {"A": "x\\u0000"}}', b'{"environment": {"A": "\\ud800"}}',
         b"[" * 100_000],
    )  # fmt: skip
    def test_what_is_no_environment_is_refused(self, upstream: SampleUpstream, answer: bytes) -> None:
        """An answer that cannot be an environment, or would set a reserved variable, starts nothing."""
        upstream.route(remote.PATH, lambda _: Response(200, (), answer))
        with pytest.raises(Refused, match="no environment"):
            ask(upstream)

    def test_a_server_that_breaks_off(self, upstream: SampleUpstream) -> None:
        """A broken answer is an absence, without the library's text."""
        upstream.route(
            remote.PATH, lambda _: RawResponse([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"], reset=True)
        )
        with pytest.raises(Unavailable) as refused:
            ask(upstream)
        assert refused.value.__cause__ is None

    @pytest.mark.parametrize("token", ["", "a b", "a\r\nX: y", "x" * 20_000, "é"])
    def test_a_file_without_a_token(self, upstream: SampleUpstream, token: str) -> None:
        """What cannot be a token is refused before anything is sent, and not quoted."""
        with pytest.raises(Invalid, match="--token-file: holds no bearer token"):
            ask(upstream, token=token)
        assert upstream.connections_accepted == 0


def invoke(*arguments: str) -> Result:
    """The command in this process, up to where it would start another."""
    return CliRunner().invoke(main, ["exec", *arguments])


class TestArguments:
    def test_a_missing_command_costs_nothing(self, upstream: SampleUpstream, token_file: Path) -> None:
        """127 for a command that is not there, before the broker is asked."""
        result = invoke(
            "--agent", AGENT, "--server", upstream.url, "--token-file", str(token_file), "--", "no-such-thing"
        )
        assert (result.exit_code, upstream.connections_accepted) == (127, 0)
        assert "there is no such command" in result.stderr

    def test_a_command_that_is_not_executable(self, token_file: Path) -> None:
        """126 for a file that cannot be run."""
        assert invoke("--agent", AGENT, "--workspace", "ws_1", "--", str(token_file)).exit_code == 126

    @pytest.mark.parametrize(
        ("arguments", "option"),
        [
            (["--workspace", "ws_1"], "--mcp-server"),
            (["--agent", AGENT], "--workspace"),
            (["--agent", "a b", "--workspace", "ws_1"], "--agent"),
            (["--agent", AGENT, "--server", "https://x"], "--token-file"),
            (["--agent", AGENT, "--workspace", "ws_1", "--token-file", "x"], "--server"),
            (["--agent", AGENT, "--server", "https://x", "--token-file", "/nowhere"], "--token-file"),
        ],
    )
    def test_what_is_missing_is_named(self, arguments: list[str], option: str) -> None:
        """Exit code 1, and the option that is missing or wrong."""
        result = invoke(*arguments, "--", "true")
        assert result.exit_code == common.REFUSED
        assert f"invalid: {option}:" in result.stderr

    def test_another_workspaces_token(self, upstream: SampleUpstream, token_file: Path) -> None:
        """A token that says another workspace than ``--workspace`` is not sent."""
        line = ["--agent", AGENT, "--server", upstream.url, "--token-file", str(token_file), "--workspace", "ws_2"]
        assert "another workspace" in invoke(*line, "--", "true").stderr
        assert upstream.connections_accepted == 0

    def test_the_exit_code_of_an_absence(self, token_file: Path) -> None:
        """A server that is not there: 69."""
        line = ["--agent", AGENT, "--server", "http://127.0.0.1:9", "--token-file", str(token_file)]
        assert invoke(*line, "--", "true").exit_code == common.AWAY


def whole(
    environment: Mapping[str, str], *arguments: str, shell: str = 'exec "$@"'
) -> subprocess.CompletedProcess[str]:
    """The whole command, with these settings and no others."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    line = ["sh", "-c", shell, "sh", sys.executable, "-P", "-m", "broker_core.cli", "exec", *arguments]
    return subprocess.run(line, env={**kept, **environment}, capture_output=True, text=True, timeout=60, cwd="/")


#: prints what it has, in a form that is not looked for where it is to be seen
SHOW = """
import hashlib, json, os, sys
print(os.environ["TOKEN"])
print(json.dumps({"names": sorted(os.environ), "sha": hashlib.sha256(os.environb[b"TOKEN"]).hexdigest()}))
sys.exit(5)
"""


class TestCommand:
    def test_from_a_server(self, upstream: SampleUpstream, token_file: Path) -> None:
        """Asked over HTTP, started, masked; neither our settings nor the token are in the command's environment."""
        upstream.route(remote.PATH, answering({"TOKEN": VALUE, "PIN": "1234"}))
        ours = {"BROKER_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "OTHER": "kept"}
        line = ["--workspace", "ws_1", "--mcp-server", "files", "--server", upstream.url]
        line += ["--token-file", str(token_file), "--ca-file", str(upstream.ca_file)]
        ended = whole(ours, *line, "--", *PYTHON, SHOW)
        first, second = ended.stdout.splitlines()
        shown = json.loads(second)
        assert (ended.returncode, first) == (5, MASK)
        assert shown["sha"] == hashlib.sha256(VALUE.encode()).hexdigest()
        assert {"TOKEN", "PIN", "OTHER"} == {name for name in shown["names"] if name in {*ours, "TOKEN", "PIN"}}
        assert ended.stderr == "broker: values under 8 bytes are not masked: PIN\n"

    def test_from_the_surface_itself(self, web: Web, tmp_path: Path) -> None:
        """A token of the scope for environments, the HTTP surface over a socket, a value under the customer's key."""
        web.live.connect(web.live.customer())
        web.live.store(value=VALUE, injectionKind="stdio_env", bindingKey="TOKEN", mcpServerId="files")
        token = tmp_path / "token"
        token.write_text(web.token(scope="broker:environment"))
        line = ["--workspace", web.live.workspace, "--mcp-server", "files", "--server", web.serve()]
        ended = whole({}, *line, "--token-file", str(token), "--", *PYTHON, SHOW)
        assert (ended.returncode, ended.stdout.splitlines()[:1]) == (5, [MASK]), ended.stderr

    def test_a_closed_stdout(self, upstream: SampleUpstream, token_file: Path) -> None:
        """Started with stdout closed, the command runs, and its output goes nowhere: not into another descriptor."""
        upstream.route(remote.PATH, answering({"TOKEN": VALUE}))
        line = ["--agent", AGENT, "--server", upstream.url, "--token-file", str(token_file)]
        line += ["--ca-file", str(upstream.ca_file)]
        ended = whole({}, *line, "--", *PYTHON, SHOW, shell='exec "$@" >&-')
        assert (ended.returncode, ended.stdout, ended.stderr) == (5, "", "")

    def test_from_our_own_settings(self, live: Live) -> None:
        """Opened on this machine; one use is in the audit log for the variable."""
        live.store(name="token", value=VALUE, injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
        line = ["--workspace", live.workspace, "--agent", AGENT]
        ended = whole(live.environment, *line, "--", *PYTHON, SHOW)
        assert (ended.returncode, ended.stdout.splitlines()[0]) == (5, MASK), ended.stderr
        assert not {name for name in json.loads(ended.stdout.splitlines()[1])["names"] if name.startswith("BROKER_")}
        (use,) = [use for use in live.app.store.uses(live.workspace) if use.intent.purpose == "inject"]
        assert use.result is not None
        assert use.result.outcome == "ok"

    def test_nothing_bound(self, live: Live) -> None:
        """Without a binding the command runs without a variable, and stderr says so."""
        ended = whole(live.environment, "--workspace", live.workspace, "--agent", AGENT, "--", "echo", "-n", "done")
        assert (ended.returncode, ended.stdout) == (0, "done")
        assert "nothing is bound to this caller" in ended.stderr


if Path("/proc/self/environ").exists():  # elsewhere nobody but the kernel can be asked

    def test_where_else_it_could_be_read(upstream: SampleUpstream, token_file: Path) -> None:
        """No argument and no environment but the command's own has the value or the token; neither leaves a core."""
        upstream.route(remote.PATH, answering({"TOKEN": VALUE}))
        script = (
            "import os, resource\n"
            "def read(*path):\n    return open('/'.join(('/proc', *map(str, path))), 'rb').read()\n"
            "parent, own = os.getppid(), os.getpid()\n"
            "texts = [read(parent, 'cmdline'), read(parent, 'environ'), read(own, 'cmdline')]\n"
            "print([os.environb[b'TOKEN'] in text or b'axr_' + b'tok' in text for text in texts])\n"
            "limits = [line.split()[4] for line in read(parent, 'limits').splitlines() if b'core file' in line]\n"
            "print(resource.getrlimit(resource.RLIMIT_CORE), limits)"
        )
        line = ["--agent", AGENT, "--server", upstream.url, "--token-file", str(token_file)]
        ended = whole({}, *line, "--ca-file", str(upstream.ca_file), "--", *PYTHON, script)
        assert ended.stdout.splitlines() == ["[False, False, False]", "(0, 0) [b'0']"], ended.stderr
