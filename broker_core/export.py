"""The escape hatch: what a customer needs to decrypt a secret in their own account, without us.

A ``kms`` blob is exactly KMS's ``CiphertextBlob``, so the AWS CLI opens it. A ``kms-envelope`` blob has one layer more,
whose format is documented; ``docs/decrypt_envelope.py`` opens it. What the platform cipher encrypted is under no key of
theirs and is not given. Pure.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from broker_core import context
from broker_core.errors import Conflict
from broker_core.model import Blob, CipherName, Connection

#: what the commands call their files
BLOB_FILE, VALUE_FILE, EXPORT_FILE = "blob.bin", "value.bin", "export.json"


@dataclass(frozen=True)
class Export:
    """One secret's ciphertext, and how its owner opens it. Everything here is useless without their key."""

    name: str
    version: int
    cipher: CipherName
    ciphertext: str  # base64
    encryption_context: Mapping[str, str]
    key_arn: str
    region: str
    commands: tuple[str, ...]  # for a POSIX shell with the AWS CLI and credentials that may use the key


def export(name: str, version: int, blob: Blob, connection: Connection | None) -> Export:
    """Raises Conflict for a blob that is under no key of the customer's."""
    if connection is None or blob.cipher is CipherName.PLATFORM:
        raise Conflict(
            "this secret is under the platform cipher, not under your key: rotate it with BYOK on to move it"
        )
    bound = dict(context.for_secret(connection.workspace_id, name, version))
    return Export(
        name=name,
        version=version,
        cipher=blob.cipher,
        ciphertext=base64.b64encode(blob.ciphertext).decode("ascii"),
        encryption_context=bound,
        key_arn=connection.key_arn,
        region=connection.region,
        commands=_commands(blob, bound, connection),
    )


def _commands(blob: Blob, bound: Mapping[str, str], connection: Connection) -> tuple[str, ...]:
    if blob.cipher is CipherName.KMS_ENVELOPE:
        # the blob can have 70 KiB, more than a shell takes as one argument: the script reads this answer from a file
        return (f"python3 decrypt_envelope.py {EXPORT_FILE} > {VALUE_FILE}",)
    text = base64.b64encode(blob.ciphertext).decode("ascii")
    decrypt = [
        *("aws", "kms", "decrypt", "--region", connection.region, "--key-id", connection.key_arn),
        *("--encryption-context", json.dumps(bound, separators=(",", ":"))),
        *("--ciphertext-blob", f"fileb://{BLOB_FILE}", "--query", "Plaintext", "--output", "text"),
    ]
    return (
        f"printf %s {shlex.quote(text)} | base64 --decode > {BLOB_FILE}",
        f"{shlex.join(decrypt)} | base64 --decode > {VALUE_FILE}",
    )
