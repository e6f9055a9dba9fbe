"""What an owner can do about each way in which a key, or its set-up, does not work: one plain sentence for each.

Pure; imports the nouns and the errors.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker_core.errors import Denied, Denier, KeyServiceError, KeyState
from broker_core.model import parse_key_arn
from broker_core.policies import Extra

_WHAT_TO_DO: Mapping[KeyState, str] = {
    KeyState.ACCESS_DENIED: "Let the role use kms:Encrypt and kms:Decrypt on this key again, in the key's policy.",
    KeyState.ROLE_REFUSED: "Let AxioRank assume the role again: the role must exist, and its trust policy must name our"
    " account and this external id.",
    KeyState.KEY_DISABLED: "Enable the key again in AWS KMS, or connect another key and give the values again.",
    KeyState.KEY_PENDING_DELETION: "Cancel the key's deletion in AWS KMS and enable it before the waiting period ends.",
    KeyState.KEY_STATE: "Look at the key's state in AWS KMS: it must be Enabled.",
    KeyState.KEY_GONE: "The key does not exist any more, and what it encrypted cannot be read again: connect another"
    " key and give the values again.",
    KeyState.INTEGRITY: "Nothing is wrong on your side: a stored value does not fit its place, and our operators were"
    " told.",
    KeyState.MISCONFIGURED: "Check that the key is a symmetric encryption key in a Region that your account has"
    " enabled; if it is, the fault is ours.",
    KeyState.TRANSIENT: "AWS did not answer, or asked us to slow down: try again in a minute.",
}


#: of a secret whose new value was lost on its way in
GIVE_IT_AGAIN = "Give the value again: rotate the secret. The value before it, if there was one, stays in use."
#: of a secret whose rotation is due
ROTATE_IT = "Make a new credential where this one comes from, and give it: rotate the secret."


def what_to_do(state: KeyState) -> str:
    """One plain sentence for an owner."""
    return _WHAT_TO_DO[state]


def warnings_for(key_arn: str) -> tuple[str, ...]:
    """What an owner must know about a key that they connect, one plain sentence each. Raises Invalid (``keyArn``)."""
    key = parse_key_arn(key_arn)
    if not key.is_multi_region:
        return ()
    several = "This is a multi-Region key: it exists in several Regions, and disabling it in one leaves the others."
    return (f"{several} AxioRank uses only the one in {key.region}.",)


# ---------------------------------------------------------------- while a connection is verified

ROLE_DOES_NOT_ACCEPT = (
    "Let AxioRank assume the role: the role must exist, and its trust policy must allow sts:AssumeRole to our account"
    " with this external id."
)
ROLE_NO_LONGER_ACCEPTS = (
    "The role let us in a moment ago and refuses now: a change of its trust policy is still spreading through AWS; try"
    " again in a minute."
)
ASSUMED_WITHOUT = (
    "The role can be assumed without an external id: require yours in its trust policy, with StringEquals on"
    " sts:ExternalId."
)
ASSUMED_WITH_WRONG = (
    "The role can be assumed with a wrong external id: require exactly yours in its trust policy, with StringEquals on"
    " sts:ExternalId and no wildcard."
)
OPENED_ELSEWHERE = (
    "The key gave a value back under another secret's context, which AWS KMS never does; our operators were told."
)
NOT_OPENED_ELSEWHERE = (
    "The key's policy lets the role decrypt under some contexts only: let it decrypt under every context with this"
    " workspace's axiorank:workspace."
)
WRONG_KEY = "AWS KMS used another key than the one you named, which it never does; our operators were told."
GRANTS_ALLOWED = (
    "Do not let the role call kms:CreateGrant: a grant is a use of the key that its policy does not show, and it stays"
    " when the role is removed from the policy."
)
_OURS = "The fault is ours, and nothing is wrong with your set-up: our operators were told; try again later."
_DENIERS: Mapping[Denier, str] = {
    Denier.KEY_POLICY: "The key's policy denies the role {action} explicitly: take that Deny away; an Allow beside it"
    " does not help.",
    Denier.IDENTITY_POLICY: "A policy attached to the role denies {action} explicitly: take that Deny away.",
    Denier.BOUNDARY: "The role's permissions boundary denies {action}: let the boundary allow it.",
    Denier.ORGANIZATION: "A policy of your AWS organization denies the role {action}: have your organization's"
    " administrators allow it.",
}
_VERIFYING: Mapping[KeyState, str] = {
    KeyState.ROLE_REFUSED: ROLE_DOES_NOT_ACCEPT,
    KeyState.KEY_DISABLED: "Enable the key in AWS KMS, or connect one that is enabled.",
    KeyState.KEY_GONE: "AWS knows no such key in the Region that its ARN names: check Region, account and key id; a key"
    " that was deleted cannot be connected.",
    KeyState.INTEGRITY: "The key did not give back what it was given, which AWS KMS never does; our operators were"
    " told.",
}
NO_ANSWER = (
    "AWS did not answer: try again in a minute. If it never does, look for a mistake in the Region that the key's ARN"
    " names."
)
_MISCONFIGURED: Mapping[str, str] = {
    "InvalidKeyUsageException": "This key cannot encrypt and decrypt as we need it: connect a symmetric encryption key"
    " (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT).",
    "RegionDisabledException": "AWS STS is not active in the key's Region for your account: activate it, or connect a"
    " key in another Region.",
}


def on_verifying(error: KeyServiceError, action: str) -> str:
    """What to do where ``action`` (``kms:Encrypt``, …) failed while a connection was verified."""
    if isinstance(error, Denied) and error.state is KeyState.ACCESS_DENIED:
        if error.denier is not None:
            return _DENIERS[error.denier].format(action=action)
        return f"Let the role use {action} on this key, in the key's policy."
    if error.state is KeyState.MISCONFIGURED:
        return _MISCONFIGURED.get(error.aws_code, _OURS)
    if error.state is KeyState.TRANSIENT and not error.aws_code:
        return NO_ANSWER
    return _VERIFYING.get(error.state) or what_to_do(error.state)


def is_ours(error: KeyServiceError) -> bool:
    """Whether a set-up that does not work is our own, so that an operator must be told."""
    return error.state is KeyState.MISCONFIGURED and error.aws_code not in _MISCONFIGURED


def on_extra(extra: Extra) -> str:
    """What to do where the role may use the key for more than the two."""
    if extra is Extra.CREATE_GRANT:
        return GRANTS_ALLOWED
    return f"The role may also use {extra.value} on this key; AxioRank never does. Allow it the promised two only."


def on_unknown_extra(extra: Extra, error: KeyServiceError) -> str:
    """What to do where it could not be learnt whether it may."""
    return f"Whether the role may use {extra.value} could not be learnt. {what_to_do(error.state)}"
