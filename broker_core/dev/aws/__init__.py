"""A double of AWS KMS, STS and IAM that enforces: trust and key policies, key state, context, signatures.

moto's server stores roles, users and keys; a guard of ours in front decides (`guard`, `decide`), and does the
cryptography and AssumeRole itself. `AwsDouble` is the server, `CustomerAccount` a customer set up as documented,
`Fault` what can be made to fail. It serves nothing but loopback and is for tests, the demo and benchmarks.
Differences to AWS that remain: no permissions boundaries, no organisation policies, no policy variables, no key
rotation of material, RSA keys do not encrypt, sizes of packed policies are an estimate.
"""

from broker_core.dev.aws.account import Account, Accounts, Credentials, document, fresh_account_id, statement
from broker_core.dev.aws.customer import CustomerAccount
from broker_core.dev.aws.faults import Fault
from broker_core.dev.aws.server import AwsDouble
from broker_core.dev.aws.trail import Call

__all__ = [
    "Account",
    "Accounts",
    "AwsDouble",
    "Call",
    "Credentials",
    "CustomerAccount",
    "Fault",
    "document",
    "fresh_account_id",
    "statement",
]
