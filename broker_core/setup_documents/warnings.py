"""What a customer must know before they apply a set-up, and how they apply it: one sentence or more each, for people.

Pure; imports ``blueprint`` only. No sentence holds a line break or an external id.
"""

from __future__ import annotations

from broker_core.setup_documents.blueprint import Blueprint, Format

ROOT = (
    "Keep no statement that allows `kms:*` to your account's `root` in the key policy. AWS's usual key policy has it"
    ' ("Enable IAM User Permissions"), and it lets IAM policies of your account use the key: whoever has kms:Decrypt in'
    " an IAM policy, the role included, still decrypts after you removed the role from the key policy. The"
    " administrators' statement here allows managing the key, and neither kms:Encrypt nor kms:Decrypt."
)
PUT_POLICY = "Whoever may call kms:PutKeyPolicy can give themselves any use of the key; your CloudTrail shows it."
ANYBODY = (
    "The administrators' statement names your account's root, so your IAM policies say who may manage the key."
    f" {PUT_POLICY} Name one role as the administrators' principal to narrow that."
)
SPREAD = (
    "AWS needs seconds, at times minutes, to spread a new role or policy. If the key policy is refused as"
    " MalformedPolicyDocumentException, or connecting as AccessDenied, wait a minute and try again."
)
EXISTING_KEY = (
    "The policy replaces the whole policy of a key that exists: keep the old one, make sure that nobody else needs this"
    " key, and look for grants (aws kms list-grants), which a key policy does not show. A key of its own is better."
)
ACCOUNT = "Your account's id is not known here: put it in the place of ${ACCOUNT_ID}."
ROTATE = (
    "Secrets that were stored before the key is connected stay under AxioRank's platform cipher until they are rotated;"
    " rotate them to a new credential."
)
_THEN = "Then give AxioRank the role's ARN, the key's ARN and the external id."


def warnings(plan: Blueprint, form: Format) -> tuple[str, ...]:
    """What to know before applying one form, the most important first."""
    found = [ROOT, _administrators(plan), SPREAD]
    if plan.key_arn is not None:
        found.append(EXISTING_KEY)
    if plan.strict:
        alone = f"This key policy serves the workspace {plan.workspace_id} alone"
        found.append(f"{alone}: another workspace needs a key, or a statement, of its own.")
    if plan.account_id is None and form is Format.JSON:  # the others ask AWS
        found.insert(0, ACCOUNT)
    return (*found, ROTATE)


def how_to_apply(plan: Blueprint, form: Format) -> list[str]:
    """For the head of a document."""
    if form is Format.CLOUDFORMATION:
        by_hand = (
            "CloudFormation cannot change a key that it did not make: put the policy that stands in the metadata as"
            " AxioRank.KeyPolicy yourself, once the role is there."
        )
        apply = "Apply with the capability CAPABILITY_NAMED_IAM, in the key's Region."
        return [f"{apply} {_THEN}"] if plan.key_arn is None else [apply, f"{by_hand} {_THEN}"]
    if form is Format.TERRAFORM:
        return [f"The aws provider must be set to your account, and to the key's Region. {_THEN}"]
    if form is Format.JSON:
        return [f"Make the role with the trust policy first, then the key with the key policy. {_THEN}"]
    who = "somebody who may make roles and keys in the account that is to hold them"
    return [f"Save it and run it with sh, as {who}. {_THEN}"]


def _administrators(plan: Blueprint) -> str:
    if plan.administrators is None or plan.administrators == plan.root:
        return ANYBODY
    return (
        f"Only {plan.administrators} may manage the key, and must be who applies this, or AWS refuses the policy. If it"
        f" is ever deleted, only AWS Support can make the key manageable again. {PUT_POLICY}"
    )
