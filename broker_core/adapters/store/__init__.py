"""PostgreSQL behind the store ports: SQL as SQL, one file for each use case.

``Store`` is all of them on one pool. Every statement names the workspace, except the few that serve all workspaces by
design (the reconciler's, the sweep's and the outbox's claims, and ``begin``, which a message's event id leads to).
"""

from __future__ import annotations

from broker_core.adapters.store.audit import AuditSql
from broker_core.adapters.store.byok import ByokSql
from broker_core.adapters.store.custody import CustodySql
from broker_core.adapters.store.database import Database, Pool
from broker_core.adapters.store.inject import InjectSql
from broker_core.adapters.store.intake import IntakeSql
from broker_core.adapters.store.moves import MoveSql
from broker_core.adapters.store.notices import NoticeSql
from broker_core.adapters.store.owner import OwnerSql
from broker_core.adapters.store.proof import ProofSql
from broker_core.adapters.store.reports import ReportSql
from broker_core.adapters.store.sweep import SweepSql
from broker_core.adapters.tables import REVISION
from broker_core.errors import Unavailable

__all__ = ["Database", "Pool", "Store"]


class Store(
    IntakeSql, CustodySql, InjectSql, SweepSql, ByokSql, OwnerSql, AuditSql, ReportSql, ProofSql, NoticeSql, MoveSql
):
    """Every store port, on one database."""

    def ping(self) -> None:
        """Raise Unavailable unless the database answers, and has what this program's statements need."""
        rows = self._database.run("ping", "SELECT version_num FROM alembic_version", {})
        if not rows or rows[0].version_num < REVISION:
            raise Unavailable("the database's schema is older than this program: broker migrate")
