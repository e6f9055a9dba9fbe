"""PostgreSQL behind the store ports: SQL as SQL, one file for each use case.

``Store`` is all of them on one pool. Every statement names the workspace, except the few that serve all workspaces by
design (the reconciler's and the sweep's claims, and ``begin``, which a message's event id leads to).
"""

from __future__ import annotations

from broker_core.adapters.store.audit import AuditSql
from broker_core.adapters.store.byok import ByokSql
from broker_core.adapters.store.custody import CustodySql
from broker_core.adapters.store.database import Database, Pool
from broker_core.adapters.store.inject import InjectSql
from broker_core.adapters.store.intake import IntakeSql
from broker_core.adapters.store.owner import OwnerSql
from broker_core.adapters.store.sweep import SweepSql

__all__ = ["Database", "Pool", "Store"]


class Store(IntakeSql, CustodySql, InjectSql, SweepSql, ByokSql, OwnerSql, AuditSql):
    """Every store port, on one database."""
