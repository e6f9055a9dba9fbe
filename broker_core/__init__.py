"""AxioRank BYOK Secrets Broker: the map.

Purpose
-------
AI agents need real credentials to reach upstreams. The broker keeps a credential and puts it on the one upstream
request that needs it, so that the agent never sees it. With BYOK the encryption key is in the customer's AWS account:
every new or rotated secret is encrypted under their KMS key before it is stored, every use needs a live
``kms:Decrypt`` there, and once they revoke the grant we cannot read it any more. It protects the broker secrets only.

The flows
---------
    web       token → api/ (callers.py: who is it, may they, how often) → one use case → JSON, or a stream (/proxy)

    custody   event → intake.py ──claim──▶ memory-only Redis        (one half of the value: the ciphertext)
                          └──────row────▶ PostgreSQL               (the other half: a one-time key)
                          └────ring─────▶ queue ──▶ custody.py ──▶ customer's KMS ──▶ blob

    inject    request → inject/: select → host → TLS → audit intent → AssumeRole, Decrypt → apply → send once
                                → redact while it passes → outcome

    sweep     sweep.py: probe each connection's canary, check each secret by dry run ──▶ decrypt_failures
                        (injections feed the same record) ──▶ what owners see as affected, until it heals or they
                        re-provision

    owners    byok_setup.py, policies.py, setup_documents/: what to apply ──▶ byok.py, verification.py: it is shown to
              work, then current ──▶ reports.py: coverage, drill ──▶ reencrypt.py: from an older key to the current one
              revoked ──▶ proof.py: every secret asked, a signed document; cloudtrail.py: their trail against our log;
              export.py: a ciphertext that they decrypt without us; revocation.py: what each way of revoking stops

    notices   what owners are told is written together with what it tells of (an outbox) ──▶ notifications.py ──▶ the
              platform's endpoint, signed, at least once

    admins    administer.py: secrets by hand (each change of a value is an event of our own, through intake.py), the
              audit log, workspaces

    ticks     workers/scheduler.py rings, once a period, for the reconciler (custody.py: whatever was accepted reaches
              an end), for probes and checks, and for proofs, re-encryptions and notices to go on

Where to read: ``model.py`` for the nouns and states, ``ports/`` for what each part promises, then one use case at a
time; ``bootstrap.py`` wires them. Errors and who reacts to each: ``errors.py``.

    ways in     api/ (HTTP), cli/ (the command), workers/ (queue), intake.py (producers in Python); they only translate
    wiring      bootstrap; settings, settings_checks; observability (logs, traces and metrics of a process)
    use cases   intake, custody, inject/, sweep, byok (canary, verification), byok_setup, administer, reports, proof,
                reencrypt, cloudtrail, notifications, rates (how much one workspace may ask for)
    nouns       model, injection, events, audit, errors, secret, pages, signals, queues (their names); ports/; telemetry
                (names of spans and log lines)
    pure        context, envelope, policies, advice, revocation, export, proof_document, proof_page, notice_signature,
                trail_calls, aws_names, setup_documents/
    adapters/   PostgreSQL, Redis, KMS and STS, the way out to upstreams, the webhook: each behind a port
    dev/        the local stack; nothing in production needs it

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
