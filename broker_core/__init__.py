"""AxioRank BYOK Secrets Broker: the map.

Purpose
-------
AI agents need real credentials to reach upstreams. The broker keeps a credential and puts it on the one upstream
request that needs it, so that the agent never sees it. With BYOK the encryption key is in the customer's AWS account:
every new or rotated secret is encrypted under their KMS key before it is stored, every use needs a live
``kms:Decrypt`` there, and once they revoke the grant we cannot read it any more. It protects the broker secrets only.

The flows
---------
    custody   event → intake.py ──claim──▶ memory-only Redis        (one half of the value: the ciphertext)
                          └──────row────▶ PostgreSQL               (the other half: a one-time key)
                          └────ring─────▶ queue ──▶ custody.py ──▶ customer's KMS ──▶ blob

    inject    request → inject/: select → host → TLS → audit intent → AssumeRole, Decrypt → apply → send once
                                → redact → outcome

    sweep     sweep.py: probe each connection's canary, check each secret by dry run ──▶ decrypt_failures
                        (injections feed the same record) ──▶ what owners see as affected, until it heals or they
                        re-provision

Where to read: ``model.py`` for the nouns and states, ``ports.py`` for what each part promises, then one use case at a
time; ``bootstrap.py`` wires them. Errors and who reacts to each: ``errors.py``.

Invariants
----------
Each has a test of the same number in ``tests/invariants/``.

INV-1   No value, data key or STS credential in a queue message, log, span, metric, row, error text, core file or temp
        file.
INV-2   Every KMS call carries a context, and the context comes from ``context.py``.
INV-3   With BYOK on, no path encrypts with anything but the customer's key.
INV-4   No decrypt result outlives the one use it was made for (named exception: the environment of a stdio server).
INV-5   Audit intent first, or nothing is assumed, decrypted or released.
INV-6   Host, binding and TLS are settled before a decrypt.
INV-7   Injected wins; our own headers and tokens never go upstream; nothing is followed or sent twice.
INV-8   Only customer-side denials make a secret affected; only transient errors are retried; our own faults blame
        nobody.
INV-9   Every accepted event reaches an end, and an owner can see where it is.
INV-10  A query without a workspace does not exist: another tenant's id answers like one that does not exist.
INV-11  No switch turns encryption or any of the above off.

This module imports nothing.
"""
