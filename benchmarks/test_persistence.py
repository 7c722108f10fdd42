"""Saving messages so that they are on disk, by few callers and many, and reading a page of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal

from benchmarks import store_peers as peers
from benchmarks.race import Contender, Crowd, Race, by, whole_turns
from benchmarks.rows import Row
from benchmarks.scale import Scale
from benchmarks.servers import run_postgres

#: As many callers as wait for one commit in the limit: raw batches of so many messages.
BATCH = 64


@pytest.fixture
def new_file(portal: BlockingPortal, disk_folder: Path) -> Callable[[str], Path]:
    """Makes a database file with our tables and a room in it."""

    def new_file(name: str) -> Path:
        path = disk_folder / f"{name}.db"
        portal.call(peers.make_database, f"sqlite:///{path}")
        return path

    return new_file


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with run_postgres() as url:
        yield url


def test_save_message(race, portal, scale, new_file, callers):
    files = {name: new_file(name) for name in ("ours", "alone", "shared", "sqlalchemy", "raw")}
    with ExitStack() as stack:

        def enter(peer, name):
            return stack.enter_context(portal.wrap_async_context_manager(peer(files[name])))

        crowds = {
            "ours": Crowd(enter(peers.our_file, "ours"), callers),
            "alone": Crowd(enter(peers.aiosqlite_alone, "alone"), callers),
            "shared": Crowd(enter(peers.aiosqlite_shared, "shared"), callers),
            "sqlalchemy": Crowd(enter(peers.sqlalchemy_session, "sqlalchemy"), callers),
        }
        save_rows = stack.enter_context(peers.sqlite_batches(files["raw"], BATCH))
        contenders = {
            name: Contender(crowd, peers.make_messages(), operations_of(name, callers, scale))
            for name, crowd in crowds.items()
        }
        rows = map(peers.row_of, peers.make_messages())
        contenders["raw"] = Contender(save_rows, rows, operations_of("raw", BATCH, scale))
        best = race.run(portal, rounds=scale.store_rounds, **contenders)
    for name, contender in contenders.items():
        stored = portal.call(peers.count_messages, f"sqlite:///{files[name]}")
        assert stored == (scale.store_rounds + 1) * contender.operations, name
    add_rows(race, "messages, SQLite", crowds, best, budgets_of(callers))
    race.add(
        Row(
            section="messages, SQLite",
            work=f"save_message, {by(callers)}",
            figure=best["ours"],
            unit="ns",
            per_second=True,
            against=f"raw sqlite3, batches of {BATCH}",
            peer=best["raw"],
            budget=3 if callers == BATCH else None,
            x=callers,
        )
    )


#: What the contenders are called in the report.
NAMES = {
    "alone": "aiosqlite, a commit a call",
    "shared": "aiosqlite, one commits for others",
    "sqlalchemy": "SQLAlchemy AsyncSession",
    "asyncpg": "asyncpg pool, a commit a call",
}


def operations_of(name: str, callers: int, scale: Scale) -> int:
    """A round of about the same length for each; a whole number of turns for each caller."""
    shares = callers > 1 and name in ("ours", "shared", "raw")
    return whole_turns(scale.batched_operations if shares else scale.durable_operations, callers)


def budgets_of(callers: int) -> dict[str, float]:
    """What the design allows, by figure."""
    return {1: {"p50": 1.25}, 64: {"throughput": 10}}.get(callers, {})


def add_rows(
    race: Race, section: str, crowds: dict[str, Crowd], best: dict[str, float], budgets
) -> None:
    """Throughput against every peer, and latency against the first."""
    ours, callers = crowds["ours"], crowds["ours"].callers
    peers = [name for name in crowds if name != "ours"]
    for name in peers:
        race.add(
            Row(
                section=section,
                work=f"save_message, {by(callers)}",
                figure=best["ours"],
                unit="ns",
                per_second=True,
                against=NAMES[name],
                peer=best[name],
                speedup=True,
                budget=budgets.get("throughput") if name == peers[0] else None,
                x=callers,
            )
        )
    for percent in (50, 99):
        race.add(
            Row(
                section=section,
                work=f"save_message, {by(callers)}: latency p{percent}",
                figure=ours.latency(percent),
                unit="ns",
                against=NAMES[peers[0]],
                peer=crowds[peers[0]].latency(percent),
                budget=budgets.get(f"p{percent}"),
                x=callers,
            )
        )


@pytest.mark.parametrize("crowd", [1, 64])
def test_save_message_on_postgres(race, portal, scale, postgres, crowd):
    portal.call(peers.make_database, postgres)
    before = portal.call(peers.count_messages, postgres)
    with (
        portal.wrap_async_context_manager(peers.our_store(postgres)) as save,
        portal.wrap_async_context_manager(peers.asyncpg_pool(postgres)) as their_save,
    ):
        crowds = {"ours": Crowd(save, crowd), "asyncpg": Crowd(their_save, crowd)}
        contenders = {
            name: Contender(one, peers.make_messages(), operations_of(name, crowd, scale))
            for name, one in crowds.items()
        }
        best = race.run(portal, rounds=scale.store_rounds, **contenders)
    stored = portal.call(peers.count_messages, postgres) - before
    operations = sum(contender.operations for contender in contenders.values())
    assert stored == (scale.store_rounds + 1) * operations
    add_rows(race, "messages, PostgreSQL", crowds, best, budgets={})


#: How much longer an `ingest` may take than a `save_message`, which is one of its statements.
INGEST_BUDGETS = {"sqlite": 14 / 9, "postgresql": 2.0}


@pytest.mark.parametrize("server", INGEST_BUDGETS)
def test_ingest(race, portal, scale, new_file, server, request):
    if server == "sqlite":
        url = f"sqlite:///{new_file('line')}"
    else:
        url = request.getfixturevalue("postgres")
        portal.call(peers.make_database, url)
    before = portal.call(peers.count_messages, url)
    with (
        portal.wrap_async_context_manager(peers.our_line(url)) as ingest,
        portal.wrap_async_context_manager(peers.our_store(url)) as save,
    ):
        contenders = {
            name: Contender(Crowd(call, BATCH), peers.make_messages(), scale.batched_operations)
            for name, call in {"ours": ingest, "save_message": save}.items()
        }
        best = race.run(portal, rounds=scale.store_rounds, **contenders)
    stored = portal.call(peers.count_messages, url) - before
    assert stored == 2 * (scale.store_rounds + 1) * scale.batched_operations
    race.add(
        Row(
            section=f"messages, {'SQLite' if server == 'sqlite' else 'PostgreSQL'}",
            work=f"line.ingest, {by(BATCH)}",
            figure=best["ours"],
            unit="ns",
            per_second=True,
            against="save_message",
            peer=best["save_message"],
            budget=INGEST_BUDGETS[server],
            x=BATCH,
        )
    )


def test_get_messages(race, portal, scale, new_file):
    path = new_file("room")
    messages = peers.make_messages()
    with peers.sqlite_batches(path, scale.room_messages) as save:
        save([peers.row_of(next(messages)) for _ in range(scale.room_messages)])
    with ExitStack() as stack:
        fetches = {
            name: stack.enter_context(portal.wrap_async_context_manager(peer(path)))
            for name, peer in {
                "ours": peers.our_page,
                "aiosqlite": peers.aiosqlite_page,
                "raw": peers.sqlite_page,
            }.items()
        }
        newest = portal.call(fetches["ours"], peers.ROOM.id)
        assert [one.external_id for one in newest] == [
            scale.room_messages - peers.PAGE + place for place in range(1, peers.PAGE + 1)
        ]
        for fetch in fetches.values():
            assert portal.call(fetch, peers.ROOM.id) == newest
        best = race.run(
            portal,
            rounds=scale.store_rounds,
            **{
                name: Contender(Crowd(fetch, 1), [peers.ROOM.id], scale.durable_operations)
                for name, fetch in fetches.items()
            },
        )
    for name, against in {"aiosqlite": "aiosqlite", "raw": "raw sqlite3, no thread"}.items():
        race.add(
            Row(
                section="messages, SQLite",
                work=f"get_messages(limit={peers.PAGE}), a room of {scale.room_messages:,}",
                figure=best["ours"],
                unit="ns",
                against=against,
                peer=best[name],
            )
        )
