"""What owners' reports say, on PostgreSQL: coverage by key, and what a revocation would take away."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from broker_core.errors import NotFound
from broker_core.ports import Cover, CoveredSecret
from broker_core.reports import WHAT_TO_DO, WHY

if TYPE_CHECKING:
    from tests.live import Live


def covered(live: Live, cover: Cover) -> list[CoveredSecret]:
    return [item.secret for item in live.app.reports.coverage(live.workspace, cover).items]


def names(live: Live, cover: Cover) -> list[str]:
    return [secret.name for secret in covered(live, cover)]


def test_each_secret_is_under_the_cover_that_encrypted_it(live: Live) -> None:
    """Before BYOK, under a first key, under the second, and on its way in: four secrets, four covers."""
    live.store("before")
    live.connect(live.customer())
    live.store("first")
    second = live.customer()
    live.connect(second)
    live.store("second")
    second.remove_role_from_key_policy()
    live.publish("held")
    live.work()

    assert {cover: names(live, cover) for cover in Cover} == {
        Cover.CURRENT_KEY: ["second"],
        Cover.OLDER_CONNECTION: ["first"],
        Cover.PLATFORM: ["before"],
        Cover.HELD: ["held"],
    }


def test_an_older_connection_is_named(live: Live) -> None:
    """The owner must know which key still protects it."""
    first = live.connect(live.customer())
    live.store("github")
    live.connect(live.customer())

    (item,) = covered(live, Cover.OLDER_CONNECTION)
    assert item.connection_id == first.id


def test_without_a_connection_what_was_under_one_stays_under_it(live: Live) -> None:
    """Disconnecting changes no blob: it is under an older connection then."""
    live.connect(live.customer())
    live.store("github")
    live.app.byok.disconnect(live.workspace)

    assert names(live, Cover.OLDER_CONNECTION) == ["github"]


def test_a_held_value_says_until_when(live: Live) -> None:
    """Not yet under the key, until it is stored or expires."""
    customer = live.customer()
    live.connect(customer)
    customer.disable_key()
    live.publish("held")
    live.work()

    (item,) = covered(live, Cover.HELD)
    assert item.held_until is not None


def test_a_held_value_names_its_event(live: Live) -> None:
    """By it an owner discards the value, whoever sent it."""
    customer = live.customer()
    live.connect(customer)
    customer.disable_key()
    event_id = live.publish("held").id
    live.work()

    (item,) = covered(live, Cover.HELD)
    assert item.event_id == event_id


def test_of_several_held_values_the_newest_is_named(live: Live) -> None:
    """It is the one that will be in use; in whatever order they came."""
    for version in (1, 3, 2):
        live.publish("held", version=version)

    (item,) = covered(live, Cover.HELD)
    assert item.version == 3


def test_a_rotation_moves_a_secret_from_the_platform_cipher(live: Live) -> None:
    """What the advice says works."""
    live.store("github")
    live.connect(live.customer())
    live.store("github", kind="secret.rotated", version=2)

    assert (names(live, Cover.PLATFORM), names(live, Cover.CURRENT_KEY)) == ([], ["github"])


def test_a_deleted_secret_is_under_no_cover(live: Live) -> None:
    """Its blob is gone."""
    live.store("github")
    live.publish("github", kind="secret.deleted", version=2)

    assert sum(live.app.reports.coverage(live.workspace).counts.values()) == 0


def test_counts_are_whole_and_lists_are_pages(live: Live) -> None:
    """The number is of all; a page goes on after its last id."""
    for number in range(5):
        live.store(f"s{number}")

    first = live.app.reports.coverage(live.workspace, limit=3)
    rest = live.app.reports.coverage(live.workspace, cursor=first.next, limit=3)
    assert first.counts[Cover.PLATFORM] == 5
    assert [item.secret.name for item in [*first.items, *rest.items]] == [f"s{number}" for number in range(5)]
    assert rest.next is None


def test_every_cover_says_why_and_what_to_do() -> None:
    """No cover is left without its sentences."""
    assert set(WHY) == set(WHAT_TO_DO) == set(Cover)


def test_the_advice_says_where_a_rotation_goes_while_no_key_is_connected(live: Live) -> None:
    """Under the platform cipher: whoever is told to rotate must know before that a key is to be connected first."""
    live.connect(live.customer())
    live.store("github")
    live.app.byok.disconnect(live.workspace)
    live.store("github", "secret.rotated", version=2)

    assert names(live, Cover.PLATFORM) == ["github"]
    for cover in (Cover.PLATFORM, Cover.OLDER_CONNECTION):
        assert WHAT_TO_DO[cover].startswith("Connect a key first, if none is.")


def test_a_drill_counts_what_was_used(live: Live) -> None:
    """Two of three secrets were injected, one of them twice: the most used comes first, with who used it."""
    live.connect(live.customer())
    for name in ("once", "twice", "never"):
        live.store(name)
    for name in ("once", "twice", "twice"):
        live.send(name)

    _, drilled = live.app.reports.drill(live.workspace)

    assert (drilled.secrets, drilled.uses, drilled.used_secrets) == (3, 3, 2)
    assert [(one.name, one.uses) for one in drilled.most_used] == [("twice", 2), ("once", 1), ("never", 0)]
    assert drilled.most_used[0].callers == [("agent-1", None)]


def test_a_drill_asks_aws_nothing(live: Live) -> None:
    """It is an answer from our rows."""
    live.connect(live.customer())
    live.store("github")
    before = len(live.aws.trail.calls)

    live.app.reports.drill(live.workspace)

    assert len(live.aws.trail.calls) == before


def test_a_drill_leaves_out_what_is_under_no_key(live: Live) -> None:
    """A revocation does not reach the platform cipher."""
    live.store("before")

    assert live.app.reports.drill(live.workspace)[1].secrets == 0


def test_a_drill_of_one_connection(live: Live) -> None:
    """Revoking the older key takes away what is under it, and no more."""
    first = live.connect(live.customer())
    live.store("old")
    live.connect(live.customer())
    live.store("new")

    _, drilled = live.app.reports.drill(live.workspace, first.id)
    assert [one.name for one in drilled.most_used] == ["old"]


def test_a_drill_of_a_connection_that_is_not_theirs(live: Live) -> None:
    """Another tenant's id answers like one that does not exist, whichever way in asks."""
    live.connect(live.customer())
    with pytest.raises(NotFound):
        live.app.reports.drill(live.workspace, uuid4())


def test_a_use_of_eight_days_ago_is_not_counted(live: Live) -> None:
    """The period is seven days."""
    live.connect(live.customer())
    live.store("github")
    live.send("github")
    with psycopg.connect(
        live.environment["BROKER_DATABASE_URL"].replace("+psycopg", ""), autocommit=True
    ) as connection:
        connection.execute(
            "UPDATE audit_log SET started_at = now() - interval '8 days' WHERE workspace_id = %s", [live.workspace]
        )

    assert live.app.reports.drill(live.workspace)[1].uses == 0


def test_reports_of_an_unknown_workspace_are_not_found(live: Live) -> None:
    """Another tenant's id answers like one that does not exist."""
    strange = f"ws_{uuid4().hex}"
    for ask in (
        lambda: live.app.reports.coverage(strange),
        lambda: live.app.reports.drill(strange),
    ):
        with pytest.raises(NotFound):
            ask()
