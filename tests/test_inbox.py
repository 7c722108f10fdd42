"""`trunkline inbox`, on every database that several processes can share."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from tests.stock import CHAT, KEY, OTHER_CHAT, SECRETS, begin_turn, fill
from trunkline.admin import discard_items, inspect_inbox, retry_items
from trunkline.cli import main
from trunkline.errors import ConfigurationError, NotFound
from trunkline.turns import Inbox, TurnPolicy, Turns

#: For a process that may hang instead.
PATIENCE = 300

EVIL = "\x1b[2J\x9b31m"

#: The id of an item that does not exist.
NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(autouse=True)
def in_a_terminal_of_80_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sqlite", "postgres", "valkey"])
def url(request):
    """The URL of an inbox with an item of each state, not encrypted."""
    url = "sqlite:///bot.db"
    if request.param != "sqlite":
        url = request.getfixturevalue(f"{request.param}_url")
    anyio.run(fill_inbox, url)
    return url


async def fill_inbox(url, namespace="default"):
    """An item that has failed, one that runs, and three that wait."""

    async def refuse(turn):
        raise ValueError(f"no answer {EVIL}")

    async with Inbox(url, namespace=namespace) as inbox:
        await inbox.accept(OTHER_CHAT, {"text": "fails", "to": EVIL}, external_id=EVIL)
        async with Turns(inbox, refuse, TurnPolicy(max_attempts=2, retry_delay_ms=1)) as turns:
            await turns.idle()
        await inbox.accept(CHAT, {"text": "runs"}, external_id=7)
        await begin_turn(inbox, {})
        await inbox.accept(CHAT, {"text": "waits"})
        await inbox.accept(CHAT, {None: 2**70}, alone=True)
        await inbox.accept(CHAT, b"\0", urgent=True, delay_ms=60_000)


def inbox_as_json(capsys, *arguments, namespace="default"):
    assert main(["inbox", "--json", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)["namespaces"][namespace]


def ids(capsys, url, state):
    items = inbox_as_json(capsys, "--state", state, url)["items"]
    assert [*items] == [state]
    return [item["id"] for item in items[state]]


def counts(capsys, url):
    return inbox_as_json(capsys, url)["counts"]


# -- what it shows -----------------------------------------------------------------------------


def test_json_shows_the_items_of_each_state_without_their_contents(capsys, url):
    found = inbox_as_json(capsys, url)
    assert found["counts"] == {"sessions": 1, "waiting": 3, "running": 1, "failed": 1}
    [failed] = found["items"]["failed"]
    assert failed["session_key"] == "telegram:support:ü%3A[*"
    assert failed["external_id"] == EVIL
    assert failed["attempt"] == 2
    assert failed["error"].startswith("ValueError('no answer")
    [running] = found["items"]["running"]
    assert (running["session_key"], running["attempt"]) == ("telegram:support:-100", 1)
    waiting = found["items"]["waiting"]
    assert [(one["alone"], one["urgent"], one["attempt"]) for one in waiting] == [
        (False, False, 0),
        (True, False, 0),
        (False, True, 0),
    ]
    assert all("payload" not in item for items in found["items"].values() for item in items)


def test_contents_are_shown_if_they_are_asked_for(capsys, url):
    found = inbox_as_json(capsys, "--show-content", url)["items"]
    assert [item["payload"] for item in found["failed"]] == [{"text": "fails", "to": EVIL}]
    # What JSON cannot have is shown as Python shows it, and bytes in base64.
    waiting = [item["payload"] for item in found["waiting"]]
    assert waiting == [{"text": "waits"}, f"{{None: {2**70}}}", "AA=="]


def test_the_report_is_plain_fits_the_terminal_and_has_every_item(capsys, url):
    assert main(["inbox", "--show-content", url]) == 0
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    assert max(map(len, text.splitlines())) <= 80
    for kind, count in (("sessions", 1), ("waiting", 3), ("running", 1), ("failed", 1)):
        assert re.search(rf"^  {kind} +{count} *$", text, re.MULTILINE)
    words = " ".join(text.split())
    assert "2 attempts, external id \\x1b[2J\\x9b31m ValueError('no answer" in words
    assert '{"text":"waits"}' in words
    assert "alone" in words
    assert "urgent" in words
    assert main(["inbox", url]) == 0
    assert "waits" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_contents_that_are_encrypted_are_not_shown(capsys, options):
    fill("sqlite:///bot.db", ["inbox"])
    assert main(["inbox", "--show-content", *options, "sqlite:///bot.db"]) == 0
    text = capsys.readouterr().out
    assert "it is encrypted or damaged" in text
    assert not any(secret in text for secret in SECRETS)
    assert KEY not in text


def test_control_characters_of_users_do_not_reach_the_terminal(url):
    command = [sys.executable, "-m", "trunkline", "inbox", "--show-content"]
    for options in ([], ["--json"]):
        ran = subprocess.run(
            [*command, *options, url], capture_output=True, check=True, timeout=PATIENCE
        )
        assert ran.stdout.decode().replace("\n", "").isprintable()


def test_items_are_shown_a_page_at_a_time(capsys, url):
    every = ids(capsys, url, "waiting")
    assert len(every) == 3
    assert main(["inbox", "--state", "waiting", "--limit", "2", url]) == 0
    text = capsys.readouterr().out
    assert every[2] not in text
    assert f"--after {every[1]} shows what follows" in text
    after = inbox_as_json(capsys, "--state", "waiting", "--after", every[1], url)["items"]
    assert [item["id"] for item in after["waiting"]] == every[2:]


def test_every_namespace_is_shown_or_the_one_that_is_asked_for(capsys, url):
    anyio.run(fill_inbox, url, "ü}:inbox:[*")
    assert main(["inbox", url]) == 0
    text = capsys.readouterr().out
    assert text.index("Inbox, namespace default") < text.index("Inbox, namespace ü}:inbox:[*")
    assert main(["inbox", "--json", "--namespace", "ü}:inbox:[*", url]) == 0
    assert [*json.loads(capsys.readouterr().out)["namespaces"]] == ["ü}:inbox:[*"]


def test_a_backup_without_a_write_ahead_log_is_shown_and_left_as_it_is(capsys):
    anyio.run(fill_inbox, "sqlite:///bot.db")
    with closing(sqlite3.connect("bot.db")) as connection:
        connection.execute("VACUUM INTO 'backup.db'")
    before = Path("backup.db").read_bytes()
    assert counts(capsys, "sqlite:///backup.db")["waiting"] == 3
    assert Path("backup.db").read_bytes() == before


# -- what it changes ---------------------------------------------------------------------------


def test_a_failed_item_that_is_retried_is_handled_by_a_bot_that_runs(capsys, url):
    handled = anyio.Event()

    async def answer(turn):
        if turn.items[0].payload == {"text": "fails", "to": EVIL}:
            assert turn.attempt == 1
            handled.set()

    async def retry_beside_a_bot():
        # A scan comes after minutes: the command wakes the bot.
        async with Inbox(url) as inbox, Turns(inbox, answer, lease_ms=600_000):
            [failed] = await inbox.list("failed")
            status = await anyio.to_thread.run_sync(main, ["inbox", "--retry", failed.id, url])
            with anyio.fail_after(PATIENCE):
                await handled.wait()
            return status, failed.id

    status, item_id = anyio.run(retry_beside_a_bot)
    assert status == 0
    assert capsys.readouterr().out == f"{item_id} retried\n"


def test_items_that_wait_or_have_failed_are_discarded(capsys, url):
    waiting, failed = ids(capsys, url, "waiting"), ids(capsys, url, "failed")
    options = [word for item_id in (waiting[0], failed[0]) for word in ("--discard", item_id)]
    assert main(["inbox", "--json", *options, url]) == 0
    assert json.loads(capsys.readouterr().out) == {"discarded": [waiting[0], failed[0]]}
    assert ids(capsys, url, "waiting") == waiting[1:]
    assert counts(capsys, url) == {"sessions": 1, "waiting": 2, "running": 1, "failed": 0}


def test_an_item_that_runs_is_not_discarded(capsys, url):
    [running] = ids(capsys, url, "running")
    assert main(["inbox", "--discard", running, url]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    # On Valkey a line about durability stands before it.
    told = captured.err.splitlines()[-1]
    assert told == f"trunkline: item '{running}' runs now, and was not discarded"
    assert ids(capsys, url, "running") == [running]


def test_an_item_is_found_in_whichever_namespace_it_is(capsys, url):
    anyio.run(fill_inbox, url, "shop")
    [item] = inbox_as_json(capsys, url, namespace="shop")["items"]["failed"]
    assert main(["inbox", "--namespace", "default", "--discard", item["id"], url]) == 1
    assert main(["inbox", "--discard", item["id"], url]) == 0
    capsys.readouterr()
    assert inbox_as_json(capsys, url, namespace="shop")["counts"]["failed"] == 0
    assert counts(capsys, url)["failed"] == 1


# -- what can be wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--retry", "--discard"])
def test_an_item_that_is_missing_ends_with_1_and_changes_nothing(capsys, url, option):
    [failed] = ids(capsys, url, "failed")
    assert main(["inbox", option, failed, option, NOBODY, url]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"trunkline: there is no item '{NOBODY}' in ")
    assert ids(capsys, url, "failed") == [failed]


def test_an_item_that_has_not_failed_is_not_retried(capsys, url):
    waiting = ids(capsys, url, "waiting")
    assert main(["inbox", "--retry", waiting[0], url]) == 1
    assert capsys.readouterr().err == f"trunkline: item '{waiting[0]}' has not failed\n"


@pytest.mark.parametrize("options", [[], ["--retry", NOBODY], ["--discard", NOBODY]])
def test_a_file_that_does_not_exist_is_reported_and_not_created(capsys, options):
    assert main(["inbox", *options, "sqlite:///missing.db"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "trunkline: missing.db does not exist\n"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--retry", NOBODY], ["--discard", NOBODY]])
def test_a_database_without_an_inbox_is_reported_and_left_as_it_is(capsys, options):
    fill("sqlite:///bot.db", ["fsm"])
    before = Path("bot.db").read_bytes()
    assert main(["inbox", *options, "sqlite:///bot.db"]) == 1
    assert capsys.readouterr().err == "trunkline: sqlite:///bot.db holds no inbox\n"
    assert Path("bot.db").read_bytes() == before


def test_a_namespace_that_is_missing_ends_with_1(capsys, url):
    assert main(["inbox", "--namespace", "nobody's", url]) == 1
    assert capsys.readouterr().err.endswith('holds no inbox in the namespace "nobody\'s"\n')


def test_a_schema_of_another_version_is_refused(capsys):
    anyio.run(fill_inbox, "sqlite:///bot.db")
    with closing(sqlite3.connect("bot.db")) as connection, connection:
        connection.execute("UPDATE trunkline_schema SET version = 99")
    for options in ([], ["--discard", NOBODY]):
        assert main(["inbox", *options, "sqlite:///bot.db"]) == 2
        assert "has version 99 of the inbox schema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://", "what is kept in memory ends with its process"),
        ("sqlite://", "what is kept in memory ends with its process"),
        ("bot.db", "a store's URL looks like"),
        ("postgresql://me:hunter2@127.0.0.1:1/bot", "postgresql://me:***@127.0.0.1:1/bot"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--retry", NOBODY]])
def test_a_url_that_cannot_work_ends_with_2_and_one_line(capsys, url, reason, options):
    assert main(["inbox", *options, url]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trunkline: ")
    assert captured.err.count("\n") == 1
    assert reason in captured.err
    assert "hunter2" not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--state", "gone", "sqlite:///bot.db"],
        ["--limit", "0", "sqlite:///bot.db"],
        ["--retry", NOBODY, "--discard", NOBODY, "sqlite:///bot.db"],
        ["--after", NOBODY, "sqlite:///bot.db"],
    ],
)
def test_wrong_usage_ends_with_2(capsys, arguments):
    try:
        status = main(["inbox", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    assert capsys.readouterr().out == ""


def test_the_library_raises_what_the_command_prints():
    with pytest.raises(ConfigurationError, match="does not exist"):
        inspect_inbox("sqlite:///missing.db")
    fill("sqlite:///bot.db", ["inbox"])
    with pytest.raises(NotFound):
        retry_items("sqlite:///bot.db", [NOBODY])
    with pytest.raises(NotFound):
        discard_items("sqlite:///bot.db", [NOBODY])
