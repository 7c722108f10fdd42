"""The benchmarks, run for real at sizes whose figures mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RATIO_ROWS = {
    ("one caller", "resolve hit, asyncio", "bare tables"): 1.6,
    ("one caller", "resolve hit, asyncio", "bare tables, no Resolution made"): None,
    ("one caller", "resolve hit, uvloop", "bare tables"): None,
    ("one caller", "resolve hit, trio", "bare tables"): None,
    ("one caller", "set, asyncio", "bare tables"): 1.6,
    ("other libraries", "resolve hit", "aiocache memory get"): 10,
    ("other libraries", "resolve hit", "pykka ask"): 10,
    ("other libraries", "resolve hit", "anyio stream round trip"): 10,
    ("other libraries", "resolve hit", "cashews memory get"): None,
    ("sessions", "resolve hit, 1,000 sessions", "bare tables"): None,
    ("sessions", "resolve hit, 2,000 sessions", "bare tables"): 1.5,
    ("partitions", "resolve hit, 1 partition", "1 partition"): None,
    ("partitions", "resolve hit, 2 partitions", "1 partition"): None,
    ("partitions", "resolve hit, 4 partitions", "1 partition"): None,
    ("partitions", "resolve hit, 8 partitions", "1 partition"): None,
    ("partitions", "resolve hit, 16 partitions", "1 partition"): None,
    ("partitions", "resolve hit, 32 partitions", "1 partition"): None,
    ("callers", "resolve hit, 1 caller", "anyio stream round trip"): None,
    ("callers", "resolve hit, 8 callers", "anyio stream round trip"): None,
    ("callers", "resolve hit, 64 callers", "anyio stream round trip"): None,
    ("callers", "resolve hit, 512 callers", "anyio stream round trip"): None,
    ("events", "resolve hit, 1 subscriber", "no subscriber"): None,
    ("events", "set, 1 subscriber", "no subscriber"): None,
    ("events", "an event nobody hears", "resolve hit"): None,
}

ALONE, OTHERS = "aiosqlite, a commit a call", "aiosqlite, one commits for others"
ORM, RAW = "SQLAlchemy AsyncSession", "raw sqlite3, batches of 64"
POOL = "asyncpg pool, a commit a call"
MEMORY, REDIS = "aiogram MemoryStorage", "aiogram RedisStorage"

#: caller count → how it is shown.
CALLERS = {1: "1 caller", 8: "8 callers", 64: "64 callers", 512: "512 callers"}

STORE_ROWS = {
    ("messages, SQLite", "line.ingest, 64 callers", "save_message"): 14_000 / 9_000,
    ("messages, PostgreSQL", "line.ingest, 64 callers", "save_message"): 8_000 / 4_000,
    ("messages, SQLite", "get_messages(limit=50), a room of 1,000", "aiosqlite"): None,
    ("messages, SQLite", "get_messages(limit=50), a room of 1,000", "raw sqlite3, no thread"): None,
    ("fsm, memory", "set_state", MEMORY): 8,
    ("fsm, memory", "update_data", MEMORY): 8,
    ("fsm, memory", "get_state", MEMORY): 8,
    ("fsm, memory", "get_state", "its get_state and get_data"): None,
    ("signal, memory", "transaction, 64 callers apart", None): None,
    ("signal, memory", "transaction, 64 callers on one key", None): None,
    ("signal, SQLite", "transaction, 64 callers apart", "a file a key"): None,
    ("signal, SQLite", "transaction, 64 callers on one key", "a file a key"): None,
    ("signal, SQLite", "set of 100 pre-keys", "a file a key"): 5,
}
for count, by in CALLERS.items():
    STORE_ROWS |= {
        ("messages, SQLite", f"save_message, {by}", ALONE): 10 if count == 64 else None,
        ("messages, SQLite", f"save_message, {by}", OTHERS): None,
        ("messages, SQLite", f"save_message, {by}", ORM): None,
        ("messages, SQLite", f"save_message, {by}", RAW): 3 if count == 64 else None,
        ("messages, SQLite", f"save_message, {by}: latency p50", ALONE): (
            1.25 if count == 1 else None
        ),
        ("messages, SQLite", f"save_message, {by}: latency p99", ALONE): None,
    }
for by in ("1 caller", "64 callers"):
    STORE_ROWS |= {
        ("messages, PostgreSQL", f"save_message, {by}", POOL): None,
        ("messages, PostgreSQL", f"save_message, {by}: latency p50", POOL): None,
        ("messages, PostgreSQL", f"save_message, {by}: latency p99", POOL): None,
    }
for act in ("set_state", "update_data", "get_state"):
    for count in (1, 64):
        against, budget = ("aiosqlite", None) if act == "get_state" else (ALONE, 8)
        row = ("fsm, SQLite", f"{act}, {CALLERS[count]}", against)
        STORE_ROWS[row] = budget if count == 64 else None
    for count in (1, 64, 512):
        row = ("fsm, Valkey", f"{act}, {CALLERS[count]}", REDIS)
        STORE_ROWS[row] = 3 if count == 64 else None

CHAT_SDK, SYNC = "chat-sdk, Valkey", "fdatasync, p50"
RATE = "accept, empty handler, finish; 64 sessions"
for place, against, budget in (
    ("memory", "chat-sdk, memory", 1),
    ("Valkey", CHAT_SDK, 10),
    ("SQLite", CHAT_SDK, 5),
    ("PostgreSQL", CHAT_SDK, 4),
):
    section = f"turns, {place}"
    STORE_ROWS |= {
        (section, RATE, against): budget,
        (section, f"accept → handler, {place}: p50", SYNC): 6 if place == "SQLite" else None,
        (section, f"accept → handler, {place}: p99", SYNC): None,
        (section, f"claim of 16, 200 sessions wait, {place}", "32 wait"): None,
        (section, f"heartbeat beside 99 other processes, {place}", "of the only process"): None,
    }
    if place != "memory":
        STORE_ROWS |= {
            (section, f"accept → handler elsewhere, {place}: p50", SYNC): None,
            (section, f"accept → handler elsewhere, {place}: p99", SYNC): None,
        }

#: What the report says is left out → the sections and peers that are, then.
LEFT_OUT = {
    "no PostgreSQL": {"messages, PostgreSQL", "turns, PostgreSQL"},
    "no Valkey": {"fsm, Valkey", "turns, Valkey", CHAT_SDK},
    "set TMPDIR": {
        "messages, SQLite",
        "fsm, SQLite",
        "signal, memory",
        "signal, SQLite",
        "turns, SQLite",
        SYNC,
    },
}

FIGURE_ROWS = {
    ("memory", "a route, at the worst table size", None): 400,
    ("memory", "a route, at the median table size", None): None,
    ("memory", "2,000 sets of one key: most allocated", None): 65_536,
    ("memory", "2,000 sets of one key: growth of the process", None): None,
    ("prune", "8 x 1,000 expired: longest stall", None): 10,
    ("prune", "8 x 1,000 expired: all of it", None): None,
    ("prune", "1 x 2,000 fresh", "1 x 1,000 fresh"): 2,
    ("import", "import trunkline", None): 150,
    ("import", "from trunkline import SessionRouter", None): 150,
}

#: The one figure that may well be nothing.
MAY_BE_ZERO = "2,000 sets of one key: growth of the process"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def printed(results):
    """What the command prints; its files are in `results`."""
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--results", str(results)],
        cwd=ROOT,
        env=environment | {"COLUMNS": "200", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    if run.returncode == 2 and "pip install" in run.stderr:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def run(results, printed):
    """The raw figures."""
    return json.loads((results / "benchmarks.json").read_text())


@pytest.fixture(scope="module")
def rows(run):
    return [row for benchmark in run["benchmarks"] for row in benchmark["extra_info"]["rows"]]


def test_a_run_has_every_row_with_its_budget(rows, run):
    left_out = set()
    for reason in run["skipped"]:
        left_out |= next(sections for what, sections in LEFT_OUT.items() if what in reason)
    expected = RATIO_ROWS | STORE_ROWS | FIGURE_ROWS
    found = {(row["section"], row["work"], row["against"]): row["budget"] for row in rows}
    assert found == {row: expected[row] for row in expected if left_out.isdisjoint(row)}
    assert len(found) == len(rows)


def test_every_figure_is_positive(rows):
    for row in rows:
        assert row["figure"] > 0 or row["work"] == MAY_BE_ZERO, row
        assert row["against"] is None or row["peer"] > 0, row


def line_of(row, printed):
    """The line of the table that shows `row`, in the section of `row`."""
    lines = printed.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"│ {row['section']} "))
    return next(
        line
        for line in lines[first:]
        if f" {row['work']} " in line and f" {row['against'] or ''} " in line
    )


def test_the_table_shows_every_row(rows, printed):
    assert len({line_of(row, printed) for row in rows}) == len(rows)


def test_a_budget_is_held_against_the_ratio_or_else_the_figure(rows, printed):
    for row in rows:
        if row["budget"] is None:
            continue
        if row["against"] is None:
            kept = row["figure"] <= row["budget"]
        elif row["speedup"]:
            kept = row["peer"] >= row["budget"] * row["figure"]
        else:
            kept = row["figure"] <= row["budget"] * row["peer"]
        line = line_of(row, printed)
        assert ("kept" in line, "missed" in line) == (kept, not kept), row


def test_the_plot_is_a_picture(results, printed):
    image = pytest.importorskip("matplotlib.image").imread(results / "benchmarks.png")
    height, width, _ = image.shape
    assert width == 1600
    assert height >= 1200
    assert image[..., :3].std() > 0.01


def test_the_hosts_name_stays_out_of_the_figures(run):
    assert "node" not in run["machine_info"]


def test_the_disk_under_the_stores_is_named(run, printed):
    if run["disk"] is None:
        pytest.skip("the folder for temporary files is in memory")
    assert "tmpfs" not in run["disk"]
    assert run["disk"] in printed
