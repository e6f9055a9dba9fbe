"""``docs/owners.md``: its commands run, in its order, and its table is what the surface has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.curl import stand_in
from tests.integration.test_documents import blocks, names, rows
from tests.live import Live
from tests.web import Web, web_on

GUIDE = (Path(__file__).parents[2] / "docs" / "owners.md").read_text()
KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
#: seconds until a command is given up: the machine may be busy
PATIENCE = 300


@pytest.fixture
def web(live_with: Callable[..., Live], way_out: Any) -> Iterator[Web]:
    """The surface on an App that can sign, and is allowed to ask AWS quickly."""
    with web_on(live_with({"BROKER_SIGNING_KEY": KEY, "BROKER_CHECK_RPS": "1000"}, upstream=way_out)) as opened:
        yield opened


class Reader:
    """An owner who types what the guide says, section by section."""

    def __init__(self, web: Web, folder: Path, curl: str) -> None:
        self._folder = folder
        (folder / "bin").mkdir()
        if curl == "stand-in":
            stand_in(folder / "bin")
        self.typed: list[str] = []
        self.variables = {"BROKER": web.serve(), "TOKEN": web.token(role="owner")}

    def type(self, heading: str) -> list[Any]:
        """Run a section's commands; what they print, as JSON. Each must succeed."""
        section = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        found: list[Any] = []
        for block in blocks(section, "sh"):
            if block not in self.typed:
                found += self._run(block)
        return found

    def first(self, heading: str) -> list[Any]:
        """The same, but for the first block only: something happens before the next."""
        section = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        return self._run(next(block for block in blocks(section, "sh") if block not in self.typed))

    def _run(self, block: str) -> list[Any]:
        self.typed.append(block)
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", block],
            capture_output=True,
            text=True,
            cwd=self._folder,
            env={"PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}", "no_proxy": "*", **self.variables},
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return list(_documents(done.stdout))


def _documents(text: str) -> Iterator[Any]:
    """JSON documents that stand one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        found, at = decoder.raw_decode(text, at)
        yield found


@pytest.mark.parametrize("curl", ["stand-in", *(["curl"] if shutil.which("curl") else [])])
def test_every_command_runs(web: Web, tmp_path: Path, curl: str) -> None:
    """The guide from the set-up to disconnecting, on a customer's account of the AWS double."""
    live, reader = web.live, Reader(web, tmp_path, curl)
    live.store("before")
    assert reader.first("Connecting") == []
    assert "aws iam create-role" in (tmp_path / "setup.sh").read_text()

    customer = live.customer()
    reader.variables |= {
        "ROLE_ARN": customer.role_arn,
        "KEY_ARN": customer.key_arn,
        "EXTERNAL_ID": customer.external_id,
    }
    (connected,) = reader.type("Connecting")
    assert connected["status"] == "current"
    reader.variables |= {"OLDER": connected["id"]}
    secret = live.store("github")
    reader.variables |= {"SECRET": str(secret.secret_id)}
    (tmp_path / "value.json").write_text(json.dumps({"secret": "another-value-of-it"}))
    (coverage,) = reader.type("What is protected")
    assert (coverage["currentKey"], coverage["platform"]) == (1, 1)

    (drilled,) = reader.first("Before and after a revocation")
    assert drilled["secrets"] == 1
    customer.disable_key()
    live.publish("held")
    live.work()
    live.app.sweep.probes()
    (affected,) = reader.type("Before and after a revocation")
    assert [each["id"] for each in affected["connections"][0]["secrets"]] == [str(secret.secret_id)]
    customer.enable_key()
    (again,) = reader.type("Giving a value again")
    assert again["version"] == 2
    live.work()

    live.connect(live.customer())
    started, _ = reader.first("Changing the key")
    while live.app.reencrypt.step(live.workspace, UUID(started["id"])).ended_at is None:
        pass
    _, retired = reader.type("Changing the key")
    assert retired["neededBy"] == 0

    proof, _ = reader.first("Proving a lockout")
    while live.app.proofs.step(live.workspace, UUID(proof["id"])).ended_at is None:
        pass
    reader.variables |= {"PROOF": proof["id"]}
    reader.type("Proving a lockout")
    assert "NOT locked out" in (tmp_path / "proof.html").read_text()
    reader.type("Taking a secret away with you")
    assert json.loads((tmp_path / "export.json").read_text())["name"] == "github"
    (ended,) = reader.type("Disconnecting")
    assert ended["status"] == "retired"
    assert reader.typed == blocks(GUIDE, "sh", "bash", "console")


def test_no_value_is_an_argument() -> None:
    """Every user of a machine can read the arguments of its commands."""
    assert not re.search(r"-d [^@\n]*secret", GUIDE)


def test_the_table_is_the_surface(web: Web) -> None:
    """Every call of the table is an operation with that least role, and none of ``/byok`` is left out."""
    paths = web.get("/api/openapi.json").json()["paths"]
    operations = {
        f"{method.upper()} {path.removeprefix('/api/v1')}": operation["security"][0]["token"][0]
        for path, item in paths.items()
        for method, operation in item.items()
        if "operationId" in operation
    }
    described = {names(call)[0]: who.partition(",")[0] for call, who, _ in rows(GUIDE, "call", "who", "what")}
    assert described.items() <= operations.items()
    assert {call for call in operations if "/byok/" in call or "/rotations/" in call} <= described.keys()


def test_parameters_of_the_setup(web: Web) -> None:
    """The parameters that the table names are those of the operation."""
    operation = web.get("/api/openapi.json").json()["paths"]["/api/v1/byok/setup"]["get"]
    (said,) = [row[2] for row in rows(GUIDE, "call", "who", "what") if "/byok/setup" in row[0]]
    named = set(re.findall(r"`(\w+)`", said)) - {"json", "cloudformation", "terraform", "cli"}
    assert named == {parameter["name"] for parameter in operation["parameters"]}
