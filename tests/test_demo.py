from __future__ import annotations

import io

from rich.console import Console

from trunkline.cli import main
from trunkline.demo import demo


async def show():
    """What the demo says, one line a paragraph, and what it counted."""
    output = io.StringIO()
    stats = await demo(Console(file=output, width=80), turn_seconds=0, outage_ms=200)
    return output.getvalue(), stats


async def test_the_demo_shows_what_a_router_does():
    text, _ = await show()
    words = " ".join(text.split())
    assert "Telegram, Discord and Matrix" in words
    assert "(partition_fallback, thread_scope_miss) -> help-desk (state_hit)" in words
    assert "(provided_fallback, session_unavailable)" in words
    assert "is back by itself" in words
    assert "-> owner (provided_fallback, stale) -> owner (state_hit)" in words
    assert "1,200 of at most 1,200 are held" in words
    assert "\x1b" not in text


async def test_the_demo_counts_what_it_shows():
    _, stats = await show()
    total = stats.total
    assert total.restarts == 1
    assert total.sets > 3_240
    assert total.hits > 3_000
    assert total.thread_fallbacks > 0
    assert total.provided_fallbacks > 0
    assert total.stale > 0
    assert total.evicted > 8_000
    assert total.pruned > 0
    assert all(one.entries <= one.capacity for one in stats.partitions)


async def test_the_demo_ends_with_a_table_of_every_partition():
    text, stats = await show()
    table = text.partition("3,240 messages")[2]
    [header] = [row for row in table.splitlines() if row.startswith("partition")]
    assert header.split() == ["partition", "0", "1", "2", "3", "all"]
    for name in ("entries", "hits", "evicted", "restarts"):
        [row] = [row for row in table.splitlines() if row.startswith(f"{name} ")]
        counts = [getattr(one, name) for one in (*stats.partitions, stats.total)]
        assert [int(word.replace(",", "")) for word in row.split()[1:6]] == counts


async def test_one_partition_crashes_and_comes_back():
    text, stats = await show()
    [crashed] = [index for index, one in enumerate(stats.partitions) if one.restarts]
    assert f"A bug crashes partition {crashed}" in text
    assert f"Partition {crashed} is back by itself" in text
    assert text.count("A bug crashes") == text.count("is back by itself") == 1


def test_the_command_shows_it_in_a_few_seconds_without_a_traceback(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert "Traceback" not in captured.out
    assert max(map(len, captured.out.splitlines())) <= 80
