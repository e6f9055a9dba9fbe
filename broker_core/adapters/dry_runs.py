"""Dry runs: what we ask KMS without having it done, and what its answers say.

Promise: every call made of these parameters has ``DryRun``, and an endpoint that does not honour it is found out at
once. Makes no call itself; sessions and time are in ``key_service``.
https://docs.aws.amazon.com/kms/latest/developerguide/testing-permissions.html
"""

from __future__ import annotations

from typing import Any

from broker_core.adapters.kms import DRY_RUN_OK, Reply
from broker_core.errors import KeyState, Misconfigured
from broker_core.policies import Extra
from broker_core.ports import KeyUse


def require_dry_run(reply: Reply) -> None:
    """Raises the reply's error, or Misconfigured where something was done instead of only asked."""
    if reply.error is not None:
        raise reply.error
    if reply.code != DRY_RUN_OK:
        # the reply, and what may be in it, ends with this frame; nobody gets to see it
        raise Misconfigured("the endpoint ignores DryRun; a dry run must never read a value or give a grant")


def denial(extra: Extra, reply: Reply) -> str:
    """AWS's code where the customer's side would not let us do this, empty where it would. Raises as above."""
    error = reply.error
    if error is None or error.state is not KeyState.ACCESS_DENIED:
        require_dry_run(reply)
        return ""
    # of the two that ReEncrypt needs, KMS asks about the source's first
    is_past_source = extra is Extra.RE_ENCRYPT_FROM and reply.refused == "kms:ReEncryptTo"
    return "" if is_past_source else error.aws_code


def dry_run_of(extra: Extra, use: KeyUse) -> tuple[str, dict[str, Any]]:
    """botocore's method and all its parameters. The context goes along wherever KMS takes one: a key policy may ask
    for the workspace's."""
    method, params = _call(extra, use.connection.key_arn, dict(use.context), use.connection.role_arn)
    return method, params | {"DryRun": True}


def _call(extra: Extra, key: str, context: dict[str, str], role: str) -> tuple[str, dict[str, Any]]:
    named = {"KeyId": key, "EncryptionContext": context}
    if extra is Extra.CREATE_GRANT:
        limits = {"Operations": ["Decrypt"], "Constraints": {"EncryptionContextSubset": context}}
        return "create_grant", {"KeyId": key, "GranteePrincipal": role, **limits}
    if extra is Extra.GENERATE_DATA_KEY:
        return "generate_data_key", named | {"KeySpec": "AES_256"}
    if extra is Extra.GENERATE_DATA_KEY_WITHOUT_PLAINTEXT:
        return "generate_data_key_without_plaintext", named | {"KeySpec": "AES_256"}
    if extra is Extra.GENERATE_DATA_KEY_PAIR:
        return "generate_data_key_pair", named | {"KeyPairSpec": "ECC_NIST_P256"}
    if extra is Extra.GENERATE_DATA_KEY_PAIR_WITHOUT_PLAINTEXT:
        return "generate_data_key_pair_without_plaintext", named | {"KeyPairSpec": "ECC_NIST_P256"}
    source = {"SourceKeyId": key, "SourceEncryptionContext": context, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}
    return "re_encrypt", {**source, "DestinationKeyId": key, "DestinationEncryptionContext": context}
