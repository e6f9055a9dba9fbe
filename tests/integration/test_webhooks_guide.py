"""docs/webhooks.md: its table is the code's, its example is a notice, and its snippets verify what we sign."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker_core.events import NOTICE_FIELDS, NoticeType
from broker_core.notice_signature import EVENT_HEADER, ID_HEADER, SIGNATURE_HEADER, TOLERANCE_SECONDS, signature

GUIDE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
SECRET, OTHER = "whsec-0123456789abcdef", "whsec-fedcba9876543210"
NOW = 1_767_225_600
BODY = '{"id": "1", "data": {"name": "gît"}}'.encode()
GOOD = signature([SECRET], NOW, BODY)
#: what is given to a snippet: secrets, header, body, time → whether it is to pass
CASES: dict[str, tuple[list[str], str, bytes, float, bool]] = {
    "good": ([SECRET], GOOD, BODY, NOW, True),
    "just in time": ([SECRET], GOOD, BODY, NOW + TOLERANCE_SECONDS, True),
    "too old": ([SECRET], GOOD, BODY, NOW + TOLERANCE_SECONDS + 1, False),
    "of the future": ([SECRET], GOOD, BODY, NOW - TOLERANCE_SECONDS - 1, False),
    "another secret": ([OTHER], GOOD, BODY, NOW, False),
    "another body": ([SECRET], GOOD, BODY + b" ", NOW, False),
    "another time": ([SECRET], GOOD.replace(str(NOW), str(NOW + 1)), BODY, NOW, False),
    "exchanging the secret": ([OTHER], signature([SECRET, OTHER], NOW, BODY), BODY, NOW, True),
    "either secret": ([OTHER, SECRET], GOOD, BODY, NOW, True),
    "no secret": ([], GOOD, BODY, NOW, False),
    "no header": ([SECRET], "", BODY, NOW, False),
    "no signature": ([SECRET], f"t={NOW}", BODY, NOW, False),
    "an empty signature": ([SECRET], f"t={NOW},v1=", BODY, NOW, False),
    "no time": ([SECRET], GOOD.split(",")[1], BODY, NOW, False),
    "two times": ([SECRET], f"t={NOW},{GOOD}", BODY, NOW, False),
    "a strange time": ([SECRET], GOOD.replace(str(NOW), "١"), BODY, NOW, False),
    "a part without a name": ([SECRET], f"x,{GOOD}", BODY, NOW, True),
}
each_case = pytest.mark.parametrize("case", CASES)


def block(language: str) -> str:
    """The one fenced block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_table() -> None:
    """Every notice is described, with its fields."""
    lines = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| [^|]* \| ([^|]*) \|$", GUIDE, re.MULTILINE)
    described = {kind: tuple(re.findall(r"`(\w+)`", fields)) for kind, fields in lines}
    assert described == {kind.value: fields for kind, fields in NOTICE_FIELDS.items()}


def test_the_headers() -> None:
    """Every header is described."""
    assert re.findall(r"^\| `(Axiorank-\w+)` \|", GUIDE, re.MULTILINE) == [ID_HEADER, EVENT_HEADER, SIGNATURE_HEADER]


def test_the_example() -> None:
    """It has the fields of its type."""
    example = json.loads(block("json"))
    assert list(example) == ["id", "type", "time", "workspaceId", "data"]
    assert tuple(example["data"]) == NOTICE_FIELDS[NoticeType(example["type"])]


@pytest.fixture(scope="module")
def in_python() -> Callable[..., Any]:
    """The snippet's function."""
    names: dict[str, Any] = {}
    exec(compile(block("python"), "docs/webhooks.md", "exec"), names)
    verify: Callable[..., Any] = names["verify"]
    return verify


@each_case
def test_verifying_in_python(in_python: Callable[..., Any], case: str) -> None:
    """The snippet takes what we sign and refuses everything else."""
    *arguments, passes = CASES[case]
    if passes:
        assert in_python(*arguments) == json.loads(BODY)
        return
    with pytest.raises(ValueError, match=r"header|signed"):
        in_python(*arguments)


NODE = shutil.which("node")
if NODE:
    #: what TypeScript has beyond JavaScript, as far as the snippet uses it
    _TYPES = re.compile(r"^export interface .*?^}\n|: (string\[\]|string|number|Buffer|Notice)(?=[,) ])", re.S | re.M)

    @pytest.fixture(scope="module")
    def in_typescript(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """What the snippet says of every case, its types taken off: the notice, or null."""
        directory = tmp_path_factory.mktemp("typescript")
        (directory / "verify.mjs").write_text(_TYPES.sub("", block("typescript")))
        cases = {name: [secrets, header, body.decode(), now] for name, (secrets, header, body, now, _) in CASES.items()}
        (directory / "main.mjs").write_text(f"""
            import {{ verify }} from "./verify.mjs";
            const said = {{}};
            for (const [name, [secrets, header, body, now]] of Object.entries({json.dumps(cases)})) {{
                try {{ said[name] = verify(secrets, header, Buffer.from(body), now); }}
                catch (error) {{
                    if (!/header|signed/.test(error.message)) throw error;
                    said[name] = null;
                }}
            }}
            console.log(JSON.stringify(said));""")
        assert NODE is not None
        done = subprocess.run(
            [NODE, str(directory / "main.mjs")], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    @each_case
    def test_verifying_in_typescript(in_typescript: dict[str, Any], case: str) -> None:
        """The same in TypeScript, on machines that have Node.js."""
        assert in_typescript[case] == (json.loads(BODY) if CASES[case][-1] else None)
