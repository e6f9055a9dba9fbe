"""The composition root: ``Settings`` become an ``App``. The only place that knows which adapter stands behind which
port.

Every port can be replaced: ``build_app(settings, store=…)``. What is replaced is not built. Logs and traces are set up
elsewhere, once for a process (``observability``), so that tests may build as many as they like.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import uuid_utils.compat as uuid_utils

from broker_core import ports
from broker_core.adapters.aws_clients import AwsClients, AwsOptions
from broker_core.adapters.claims import RedisClaimBox
from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.key_service import KmsKeyService
from broker_core.adapters.limiter import SharedLimiter
from broker_core.adapters.platform_cipher import PlatformKeyring, PlatformKms
from broker_core.adapters.queue import DramatiqQueue, connect_queue
from broker_core.adapters.signing import Ed25519Signer
from broker_core.adapters.store import Database, Store
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.adapters.webhook import Webhook
from broker_core.administer import Administer
from broker_core.byok import Byok
from broker_core.custody import Custody, Reconciler
from broker_core.inject.injector import InjectLimits, Injector
from broker_core.intake import Intake
from broker_core.notifications import Notifications
from broker_core.proof import LockoutProof, ProofLimits
from broker_core.rates import Allowance, Guesses, Rates
from broker_core.reencrypt import MoveLimits, Reencrypt
from broker_core.reports import Reports
from broker_core.settings import Settings
from broker_core.sweep import Sweep, SweepLimits

#: threads that use an App at a time, where nobody says otherwise: as many as a worker process has
THREADS = 8


@dataclass(frozen=True)
class App:
    """The use cases, wired."""

    settings: Settings
    store: Any  # every store port
    queue: ports.Queue
    intake: Intake
    custody: Custody
    reconciler: Reconciler
    injector: Injector
    sweep: Sweep
    byok: Byok
    administer: Administer
    reports: Reports
    proofs: LockoutProof
    reencrypt: Reencrypt
    notifications: Notifications
    rates: Rates
    #: what other machines do for us, and how to ask each whether it is there: raises Unavailable
    parts: Mapping[str, Callable[[], object]]
    _closing: ExitStack = field(repr=False)

    def reconcile(self) -> None:
        """See ``custody.Reconciler``."""
        self.reconciler.run()

    def close(self) -> None:
        """Close what was opened, in reverse order."""
        self._closing.close()


def new_id() -> uuid.UUID:
    """A UUIDv7."""
    return uuid_utils.uuid7()


def build_app(
    settings: Settings,
    *,
    store: Any = None,
    claims: ports.ClaimBox | None = None,
    queue: ports.Queue | None = None,
    keys: ports.KeyService | None = None,
    platform: ports.PlatformCipher | None = None,
    upstream: ports.Upstream | None = None,
    limiter: ports.Limiter | None = None,
    notifier: ports.Notifier | None = None,
    clock: ports.Clock | None = None,
    clients: AwsClients | None = None,
    on_wait: Callable[[str], None] = lambda operation: None,
    threads: int = THREADS,
) -> App:
    """Wire an App. Raises ConfigurationError where a setting cannot work (a claim Redis that persists among them).

    ``on_wait`` is told of every round trip to PostgreSQL, by operation. ``threads``: how many threads of this process
    use the App at a time; one customer's key takes at most half of them.
    """
    with ExitStack() as opened:
        clock = clock or SystemClock()
        store = store or _store(settings, opened, on_wait)
        claims = claims or _claims(settings, opened)
        queue = queue or _queue(settings, opened)
        options = aws_options(settings, threads)
        clients = clients or AwsClients(options)
        keys = keys or KmsKeyService(clients, options, clock)
        platform = platform or _platform(settings, clients, clock)
        upstream = upstream or _upstream(settings, opened, clock)
        limiter = limiter or _limiter(settings, opened, clock)
        sweep = Sweep(store, store, keys, clock, new_id, _sweep_limits(settings))
        intake = Intake(store, claims, queue, ttl_seconds=settings.claim_ttl_seconds, new_id=new_id)
        return App(
            settings=settings,
            store=store,
            queue=queue,
            intake=intake,
            custody=Custody(store, claims, keys, platform, new_id=new_id, brakes=sweep.brakes),
            reconciler=Reconciler(store, queue, grace_seconds=settings.stream_seconds + 300),
            injector=Injector(
                store,
                keys,
                platform,
                upstream,
                sweep,
                Guesses(limiter),
                clock,
                new_id,
                _inject_limits(settings),
            ),
            sweep=sweep,
            byok=Byok(store, store, keys, clock, new_id),
            administer=Administer(intake, store, store, store, new_id),
            reports=Reports(store, clock),
            proofs=_proofs(settings, store, keys, clock, sweep),
            reencrypt=Reencrypt(store, keys, sweep, clock, new_id, MoveLimits(calls_per_second=settings.check_rps)),
            notifications=Notifications(store, notifier or _notifier(settings, clock), clock),
            rates=Rates(limiter, _allowance(settings)),
            parts=_parts(database=store, claims=claims, queue=queue),
            _closing=opened.pop_all(),
        )


def aws_options(settings: Settings, threads: int = THREADS) -> AwsOptions:
    """What the AWS adapter needs of the settings, and of the number of threads."""
    return AwsOptions(
        endpoint_kms=settings.aws_endpoint_url_kms or settings.aws_endpoint_url,
        endpoint_sts=settings.aws_endpoint_url_sts or settings.aws_endpoint_url,
        proxy=settings.aws_proxy,
        control_role_arn=settings.control_role_arn,
        sts_reuse_seconds=settings.sts_reuse_seconds,
        per_connection_concurrency=max(threads // 2, 1),
    )


def _parts(**parts: object) -> Mapping[str, Callable[[], object]]:
    """The parts that can be asked: what replaces one in a test need not answer."""
    return {name: part.ping for name, part in parts.items() if hasattr(part, "ping")}


def _store(settings: Settings, opened: ExitStack, on_wait: Callable[[str], None]) -> Store:
    database = Database(settings.database_url, on_wait=on_wait)
    opened.callback(database.close)
    return Store(database)


def _claims(settings: Settings, opened: ExitStack) -> RedisClaimBox:
    box = RedisClaimBox(settings.claim_redis_url)
    opened.callback(box.close)
    box.check_volatile()
    return box


def _queue(settings: Settings, opened: ExitStack) -> DramatiqQueue:
    queue = DramatiqQueue(connect_queue(settings.redis_url))
    opened.callback(queue.close)
    return queue


def _platform(settings: Settings, clients: AwsClients, clock: ports.Clock) -> ports.PlatformCipher:
    if settings.platform_kms_key is not None:
        return PlatformKms(clients, settings.platform_kms_key, clock)
    assert settings.platform_keys is not None  # noqa: S101 - Settings holds exactly one of the two
    return PlatformKeyring.parse(settings.platform_keys)


def _signer(settings: Settings) -> Ed25519Signer:
    settings.require("signing_key")
    assert settings.signing_key is not None  # noqa: S101 - required a line above
    return Ed25519Signer(settings.signing_key)


def _proofs(settings: Settings, store: Any, keys: ports.KeyService, clock: ports.Clock, sweep: Sweep) -> LockoutProof:
    return LockoutProof(
        store,
        keys,
        clock,
        new_id,
        lambda: _signer(settings),
        sweep.brakes,
        ProofLimits(calls_per_second=settings.check_rps),
        shares_sessions=settings.sts_reuse_seconds > 0,
        has_control_role=settings.control_role_arn is not None,
    )


def _notifier(settings: Settings, clock: ports.Clock) -> Webhook | None:
    if settings.webhook_url is None or settings.webhook_secret is None:  # both or neither
        return None
    return Webhook(settings.webhook_url, settings.webhook_secret, clock, settings.egress_ca_file)


def _upstream(settings: Settings, opened: ExitStack, clock: ports.Clock) -> HttpsUpstream:
    egress = Egress([str(each) for each in settings.egress_allow], deny=[str(each) for each in settings.egress_deny])
    upstream = HttpsUpstream(egress, clock, settings.egress_ca_file)
    opened.callback(upstream.close)
    return upstream


def _limiter(settings: Settings, opened: ExitStack, clock: ports.Clock) -> SharedLimiter:
    limiter = SharedLimiter(settings.redis_url, clock)
    opened.callback(limiter.close)
    return limiter


def _allowance(settings: Settings) -> Allowance:
    return Allowance(
        inject=settings.rate_inject_per_minute,
        events=settings.rate_events_per_minute,
        other=settings.rate_other_per_minute,
        bytes=settings.rate_bytes_per_minute,
    )


def _inject_limits(settings: Settings) -> InjectLimits:
    return InjectLimits(
        settings.upstream_seconds, max_bytes=settings.upstream_max_bytes, stream_seconds=settings.stream_seconds
    )


def _sweep_limits(settings: Settings) -> SweepLimits:
    return SweepLimits(
        probe_seconds=settings.probe_seconds,
        unhealthy=settings.probe_unhealthy_seconds,
        check_round=settings.check_round_seconds,
        check_rps=settings.check_rps,
        announce_after=settings.announce_after_seconds,
    )
