"""The only place that builds an encryption context (INV-2).

The context binds a blob to its row: KMS uses it as associated data, so a blob that is moved to another workspace's or
another name's row, or an older version that is put back alone, does not decrypt. It is derived from the row's identity
at every use and never stored. Imports the model only for its types.

AWS documents the encryption context as non-secret: it appears in plain text in the customer's CloudTrail.
https://docs.aws.amazon.com/kms/latest/developerguide/encrypt_context.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NewType
from uuid import UUID

EncryptionContext = NewType("EncryptionContext", Mapping[str, str])

WORKSPACE_KEY = "axiorank:workspace"
SECRET_KEY = "axiorank:secret"  # noqa: S105 - the name of a context pair, no secret
VERSION_KEY = "axiorank:version"
CANARY_KEY = "axiorank:canary"


def for_secret(workspace_id: str, name: str, version: int) -> EncryptionContext:
    """The context of one version of one secret."""
    return _frozen({WORKSPACE_KEY: workspace_id, SECRET_KEY: name, VERSION_KEY: str(version)})


def for_canary(workspace_id: str, connection_id: UUID) -> EncryptionContext:
    """The context of a connection's canary."""
    return _frozen({WORKSPACE_KEY: workspace_id, CANARY_KEY: str(connection_id)})


def workspace_part(context: EncryptionContext) -> EncryptionContext:
    """What all contexts of one workspace share: no use's own context, but the condition of a policy."""
    return _frozen({WORKSPACE_KEY: context[WORKSPACE_KEY]})


def associated_data(context: EncryptionContext) -> bytes:
    """The context as bytes, one way only: JSON with sorted keys, no spaces, ASCII.

    It is the associated data of what we encrypt ourselves (kms-envelope, platform). Quoted strings make it
    unambiguous: {"a": "bc"} and {"ab": "c"} differ.
    """
    return json.dumps(dict(context), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _frozen(pairs: dict[str, str]) -> EncryptionContext:
    return EncryptionContext(MappingProxyType(pairs))
