from __future__ import annotations

import fcntl
import gzip
import importlib.metadata
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from array import array
from pathlib import Path
from time import sleep

import pytest

from trunkline import __version__
from trunkline.actors.log import Log
from trunkline.cli import main

#: For reads from a process that may hang instead.
PATIENCE = 300


def line(minute, room_id="#python", thread_id=None):
    return json.dumps(
        {
            "ts": minute * 60,
            "channel": "irc",
            "bridge_id": "libera",
            "room_id": room_id,
            "thread_id": thread_id,
            "user_id": "ada",
            "text": "Grüße",
        }
    )


@pytest.fixture(autouse=True)
def in_a_terminal_of_80_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def chat(tmp_path):
    """Five messages: a room that comes back once in time and once too late, and a new thread."""
    file = tmp_path / "chat.jsonl"
    lines = [line(0), line(10), line(11, "#rust"), line(12, thread_id="t1"), line(300)]
    file.write_text("\n".join(lines) + "\n")
    return "chat.jsonl"


def broken(count):
    file = Path("broken.jsonl")
    file.write_text("".join(f"line {number}\n" for number in range(1, count + 1)))
    return "broken.jsonl"


def run(*arguments, **options):
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "trunkline", *arguments],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


def start(*arguments, **options):
    """The command as a process under way, with pipes to it."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-m", "trunkline", *arguments], **(pipes | options))


# -- the command itself ------------------------------------------------------------------------


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"trunkline {__version__}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["replay"], ["inspect"], ["copy"], ["inbox"]])
def test_help_has_examples_and_fits_the_terminal(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "examples:\n  trunkline " in text
    assert max(map(len, text.splitlines())) <= 80


def test_without_a_command_the_help_is_shown_as_an_error(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "trunkline replay" in captured.err


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["reply"], "'reply'"),
        (["replay"], "FILE"),
        (["replay", "--ttl-ms", "0", "chat.jsonl"], "--ttl-ms: '0' is not"),
        (["replay", "--ttl-ms", "1.5", "chat.jsonl"], "--ttl-ms: '1.5' is not"),
        (["replay", "--partitions", "-1", "chat.jsonl"], "--partitions: '-1' is not"),
        (
            ["replay", "--partitions", "4097", "chat.jsonl"],
            "--partitions: '4097' is more than 4,096",
        ),
        (["replay", "--max-entries", "many", "chat.jsonl"], "--max-entries: 'many' is not"),
        (["replay", "--prune-interval-ms", "", "chat.jsonl"], "--prune-interval-ms: '' is not"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(capsys, chat, arguments, wrong):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert wrong in captured.err


def test_it_is_a_module_and_a_console_script():
    assert run("--version").stdout.decode() == f"trunkline {__version__}\n"
    [script] = importlib.metadata.entry_points(group="console_scripts", name="trunkline")
    assert script.load() is main


def test_the_log_and_ctrl_c_are_afterwards_as_before(chat, log):
    def surroundings():
        logger = logging.getLogger("trunkline")
        return (
            list(logger.handlers),
            logger.level,
            logger.propagate,
            signal.getsignal(signal.SIGINT),
        )

    before = surroundings()
    assert main(["replay", chat]) == 0
    assert surroundings() == before
    Log("trunkline.tests").debug("heard")
    assert [entry["event"] for entry in log] == ["heard"]


#: Holds up the import of a module, and says so, until it is interrupted.
SLOW_IMPORT = """
import sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            print("importing", flush=True)
            time.sleep({seconds})

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "entry", [["-m", "trunkline"], ["-c", "import sys, trunkline.cli as c; sys.exit(c.main())"]]
)
@pytest.mark.parametrize(
    "module", ["msgspec", "trunkline.commands.copy", "anyio._backends._asyncio"]
)
def test_ctrl_c_while_it_starts_ends_it_without_a_traceback(tmp_path, entry, module):
    slow_import = SLOW_IMPORT.format(module=module, seconds=PATIENCE)
    (tmp_path / "sitecustomize.py").write_text(slow_import)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, *entry, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    ) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b"trunkline: interrupted\n"


def shell(command):
    """Run the command by a shell, which can close its streams."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m trunkline {command}', sys.executable],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("command", ["demo", "replay --json chat.jsonl", "--version"])
def test_a_closed_standard_output_is_reported_in_one_line(chat, command):
    done = shell(f"{command} >&-")
    assert done.returncode == 1
    assert done.stderr == b"trunkline: standard output: Bad file descriptor\n"


def test_errors_do_not_reach_standard_output_when_standard_error_is_closed():
    done = shell("replay missing.jsonl 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


# -- replay ------------------------------------------------------------------------------------


def rows(text):
    """The numbers of each row of a report, by its name."""
    found = {}
    for row in text.splitlines():
        if match := re.match(r"  ([a-z]+(?: [a-z]+)*)  +([\d,]+(?: +[\d,]+)*)", row):
            numbers = [int(number.replace(",", "")) for number in match[2].split()]
            found.setdefault(match[1], numbers)
    return found


def test_replay_reports_what_happened(capsys, chat):
    assert main(["replay", chat]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "2 rooms and 1 thread" in captured.out
    assert "8 partitions of 10,000 entries" in captured.out
    assert "fresh for 30 min, pruned every 30 s" in captured.out
    found = rows(captured.out)
    assert found["messages"] == [5]
    assert found["hits"] == [5, 1, 6]
    assert found["thread fallbacks"] == [0, 1, 1]
    assert found["misses"] == [0, 3, 3]
    assert found["resolves"] == [5, 5, 10]
    assert found["new"] == [3]
    assert found["expired"] == [1]
    assert found["sets"] == [6]
    assert found["peak entries"] == [3]
    assert found["pruned"] == [3]
    assert found["stale"] == [0]
    assert found["evicted"] == [0]
    assert re.search(r"messages per second +[\d,]+ ", captured.out)
    assert re.search(r"p50 .*s, p99 .*s, max .*s", captured.out)
    assert "With these settings 50.0% of the routes were still there" in captured.out
    assert re.search(r"to keep all +--ttl-ms 17340000 +4 h 49 min", captured.out)
    assert re.search(r"to evict nothing +--max-entries 2 +at a TTL of 30 min", captured.out)


def test_a_report_for_a_pipe_is_plain_and_fits_the_terminal(capsys, chat):
    assert main(["replay", chat]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_log_in_which_nobody_comes_back_gets_no_advice(capsys):
    Path("chat.jsonl").write_text(line(0))
    assert main(["replay", "chat.jsonl"]) == 0
    assert "any TTL and capacity will do" in capsys.readouterr().out


def bars(text):
    """Index, peak and length of each bar of the chart."""
    chart = text.partition("Peak entries per partition\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ +(\d+) +([\d,]+) (━*)╸? *(?:[\d,]+ evicted)? *$", chart, re.MULTILINE)
    return [(int(index), int(peak), len(bar)) for index, peak, bar in found]


def test_the_bars_of_the_chart_are_as_long_as_the_partitions_are_full(capsys):
    lines = [line(0, "#python", f"t{number}") for number in range(59)]
    lines += [line(1, "#rust", f"t{number}") for number in range(29)]
    Path("chat.jsonl").write_text("\n".join(lines))
    assert main(["replay", "--partitions", "4", "chat.jsonl"]) == 0
    found = bars(capsys.readouterr().out)
    assert [index for index, _, _ in found] == [0, 1, 2, 3]
    assert sorted(peak for _, peak, _ in found) == [0, 0, 30, 60]
    by_peak = {peak: length for _, peak, length in found}
    assert by_peak[60] == 2 * by_peak[30] > 0
    assert by_peak[0] == 0


def test_of_many_partitions_the_fullest_are_shown(capsys):
    Path("chat.jsonl").write_text("\n".join(line(0, f"#{number}") for number in range(500)))
    assert main(["replay", "--partitions", "100", "chat.jsonl"]) == 0
    text = capsys.readouterr().out
    found = bars(text)
    assert len(found) == 32
    assert found == sorted(found)
    assert "and 68 more that were never fuller than these" in text
    assert main(["replay", "--partitions", "100", "--json", "chat.jsonl"]) == 0
    peaks = [one["peak_entries"] for one in json.loads(capsys.readouterr().out)["partitions"]]
    assert sorted(peak for _, peak, _ in found) == sorted(peaks)[-32:]


def test_json_is_one_line_and_nothing_else(capsys, chat):
    assert main(["replay", "--json", chat, broken(1)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["messages"] == 5
    assert report["resolves"] == 10
    assert (report["hits"], report["thread_fallbacks"], report["misses"]) == (6, 1, 3)
    assert report["late_answers"] == {
        "hits": 1,
        "thread_fallbacks": 1,
        "misses": 3,
        "new": 3,
        "expired": 1,
        "evicted": 0,
    }
    assert report["needed_ttl"]["max_ms"] == 288 * 60_000 + 1
    assert report["needed_entries"] == 2
    assert (report["broken_lines"], report["unreadable_files"]) == (1, 0)
    assert len(report["partitions"]) == 8
    assert report["resolve"]["max_ns"] >= report["resolve"]["p50_ns"] > 0


def test_the_options_set_up_the_router(capsys, chat):
    options = "--partitions 3 --ttl-ms 20000000 --max-entries 1 --prune-interval-ms 7000"
    assert main(["replay", *options.split(), "--json", chat]) == 0
    report = json.loads(capsys.readouterr().out)
    config = report["config"]
    assert config["partition_count"] == len(report["partitions"]) == 3
    assert config["ttl_ms"] == 20_000_000
    assert config["max_entries_per_partition"] == 1
    assert config["prune_interval_ms"] == 7_000
    assert report["late_answers"]["expired"] == 0
    assert report["evicted"] > 0


def test_logs_are_replayed_one_after_another(capsys, chat):
    Path("later.jsonl").write_text(line(301))
    assert main(["replay", "--json", chat, "later.jsonl"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["messages"], report["out_of_order"]) == (6, 0)


def test_messages_that_go_back_in_time_are_reported(capsys, chat):
    assert main(["replay", chat, chat]) == 0
    assert re.search(r"out of order +4 messages older", capsys.readouterr().out)


# -- replay --store ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
def test_a_replayed_log_is_saved(request, capsys, chat, kind):
    urls = {"memory": "memory://", "sqlite": "sqlite:///bot.db"}
    url = urls.get(kind) or request.getfixturevalue("postgres_url")
    assert main(["replay", "--store", url, chat]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    saved = captured.out.partition("What was saved\n")[2]
    assert re.search(r"rooms +2 +all of them new", saved)
    assert re.search(r"participants +1 +all of them new", saved)
    assert re.search(r"threads +1 +all of them new", saved)
    assert re.search(r"messages +5 +all of them new", saved)
    assert re.search(r"saved per second +[\d,]+ +messages; [\d.]+ s, the replay left out", saved)
    assert max(map(len, captured.out.splitlines())) <= 80


def test_a_log_that_is_replayed_again_doubles_nothing(capsys, chat):
    arguments = ["replay", "--json", "--store", "sqlite:///bot.db", chat]
    for new in (5, 0):
        assert main(arguments) == 0
        stored = json.loads(capsys.readouterr().out)["stored"]
        assert (stored["messages"], stored["new_messages"], stored["refused"]) == (5, new, 0)
    assert main(["inspect", "--json", "sqlite:///bot.db"]) == 0
    counts = json.loads(capsys.readouterr().out)["namespaces"]["default"]["counts"]
    assert (counts["rooms"], counts["participants"], counts["threads"]) == (2, 1, 1)
    assert counts["messages"] == 5


def test_a_log_is_saved_in_the_namespace_that_is_named(capsys, chat):
    for namespace in ("shop", "bar"):
        options = ["--store", "sqlite:///bot.db", "--namespace", namespace]
        assert main(["replay", "--json", *options, chat]) == 0
        assert json.loads(capsys.readouterr().out)["stored"]["new_messages"] == 5
    assert main(["inspect", "--json", "sqlite:///bot.db"]) == 0
    found = json.loads(capsys.readouterr().out)["namespaces"]
    assert {name: one["counts"]["messages"] for name, one in found.items()} == {"bar": 5, "shop": 5}


def test_without_a_store_nothing_is_saved(capsys, chat):
    assert main(["replay", "--json", chat]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] is None
    assert [path.name for path in Path().iterdir()] == [chat]


def test_saving_does_not_change_what_is_measured(capsys, chat):
    reports = []
    for options in ([], ["--store", "memory://"]):
        assert main(["replay", "--json", *options, chat]) == 0
        report = json.loads(capsys.readouterr().out)
        reports.append([report[name] for name in ("late_answers", "partitions", "needed_ttl")])
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:///no/bot.db", "the folder of no/bot.db does not exist"),
        ("sqlite:///chat.jsonl", "file is not a database"),
        ("postgresql://me:hunter2@127.0.0.1:1/bot", "me:***@127.0.0.1:1/bot"),
        ("redis://me:hunter2@localhost", "no persistence adapter for 'redis://me:***@localhost'"),
        ("bot.db", "a store's URL looks like"),
    ],
)
def test_a_store_that_cannot_be_reached_ends_with_2(capsys, url, told):
    Path("chat.jsonl").write_text((line(0) + "\n") * 99)
    assert main(["replay", "--store", url, "chat.jsonl"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert "hunter2" not in captured.err


def test_messages_that_no_database_can_hold_are_reported_and_counted(capsys, chat):
    with open(chat, "a") as file:
        file.write(line(301, room_id="#\0"))
    assert main(["replay", "--store", "memory://", chat]) == 0
    captured = capsys.readouterr()
    assert "cannot be stored" in captured.err
    assert re.search(r"refused +1 +messages no database can hold", captured.out)
    assert re.search(r"^  messages +5 ", captured.out.partition("What was saved")[2], re.MULTILINE)


@pytest.mark.slow
def test_ctrl_c_ends_a_replay_that_saves():
    with start("replay", "--store", "sqlite:///bot.db", "-") as process:
        process.stdin.write(b"broken\n")
        process.stdin.flush()
        assert b"standard input:1" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b"trunkline: interrupted\n"


# -- what can be wrong with a log --------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--store", "memory://"]])
@pytest.mark.parametrize(
    "instant",
    [
        '"0001-01-01T00:00:00+14:00"',
        '"9999-12-31T23:59:59-14:00"',
        '"9999-12-31T23:59:59.9999999"',
        "-62135596801",
        "253402300800",
        "1e308",
        "1" + "0" * 400,
    ],
)
def test_an_instant_out_of_range_is_counted_and_skipped(chat, options, instant):
    with open(chat, "a") as file:
        file.write(line(301).replace('"ts": 18060', f'"ts": {instant}') + "\n")
    done = run("replay", "--json", *options, chat)
    assert done.returncode == 0
    assert done.stderr.startswith(b"trunkline: chat.jsonl:6: ts ")
    assert done.stderr.count(b"\n") == 1
    report = json.loads(done.stdout)
    assert (report["messages"], report["broken_lines"]) == (5, 1)


def test_control_characters_of_a_log_do_not_reach_the_terminal(chat):
    evil = "\x1b]0;evil\x07\x9b31m\u202e\0"
    Path(name := "evil\x1b[31m.jsonl").write_text(line(302, room_id=evil) + "\nbroken\n")
    done = run("replay", "--store", "memory://", chat, name)
    assert done.returncode == 0
    told = done.stderr.decode().splitlines()
    assert len(told) == 2
    assert all(text.isprintable() for text in told)
    assert any(r"\x1b]0;evil\x07\x9b31m\u202e\x00" in text for text in told)
    assert told[0].startswith(r"trunkline: evil\x1b[31m.jsonl:2: ")


def test_broken_lines_are_reported_by_file_and_number_and_skipped(capsys, chat):
    assert main(["replay", chat, broken(3)]) == 0
    captured = capsys.readouterr()
    told = captured.err.splitlines()
    assert [text.rpartition(": JSON")[0] for text in told] == [
        f"trunkline: broken.jsonl:{number}" for number in (1, 2, 3)
    ]
    assert re.search(r"broken lines +3, skipped", captured.out)


def test_after_ten_broken_lines_the_rest_is_counted(capsys, chat):
    assert main(["replay", chat, broken(1_250)]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 11
    assert told[-1] == "trunkline: 1,240 more such problems"


def test_nothing_but_broken_lines_ends_with_1(capsys):
    assert main(["replay", broken(3)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == (
        "trunkline: nothing to replay: none of 3 lines is a message"
    )


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"", mtime=0)])
def test_an_empty_log_ends_with_1(capsys, content):
    Path("empty.jsonl").write_bytes(content)
    assert main(["replay", "--json", "empty.jsonl"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "trunkline: nothing to replay: the log is empty\n"


def test_a_missing_file_ends_with_2_before_anything_is_replayed(capsys, chat):
    assert main(["replay", chat, "missing.jsonl"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "trunkline: missing.jsonl: No such file or directory\n"


def test_a_directory_ends_with_2(capsys, tmp_path):
    assert main(["replay", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"trunkline: {tmp_path}: it is a directory\n"


def test_a_file_that_only_looks_gzipped_ends_with_2(capsys, chat):
    Path(chat).rename("chat.jsonl.gz")
    assert main(["replay", "chat.jsonl.gz"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "trunkline: chat.jsonl.gz: not a gzip file\n"


def test_a_cut_off_gzip_is_reported_as_far_as_it_goes_and_ends_with_2(capsys):
    whole = gzip.compress("".join(line(n) + "\n" for n in range(9_000)).encode())
    Path("chat.jsonl.gz").write_bytes(whole[:-20])
    assert main(["replay", "chat.jsonl.gz"]) == 2
    captured = capsys.readouterr()
    assert "trunkline: chat.jsonl.gz: damaged gzip: " in captured.err
    assert rows(captured.out)["messages"][0] > 1_000
    assert re.search(r"incomplete +1 file could not be read whole", captured.out)


# -- a good Unix tool --------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_standard_input_is_read(chat, compress):
    done = run("replay", "--json", "-", input=compress(Path(chat).read_bytes()))
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["messages"] == 5


def test_a_gzipped_pipe_is_recognised_though_its_first_read_gives_one_byte(chat):
    compressed = gzip.compress(Path(chat).read_bytes())
    with start("replay", "--json", "-") as process:
        process.stdin.write(compressed[:1])
        process.stdin.flush()
        while unread(process.stdin):
            sleep(0.01)
        out, err = process.communicate(compressed[1:], PATIENCE)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["messages"] == 5


def unread(pipe):
    """How many bytes of a pipe wait to be read."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def test_broken_lines_of_standard_input_are_reported():
    done = run("replay", "-", input=b"broken\n")
    assert done.returncode == 1
    assert done.stderr.startswith(b"trunkline: standard input:1: ")


def test_ctrl_c_ends_a_read_that_waits():
    with start("replay", "-") as process:
        process.stdin.write(b"broken\n")
        process.stdin.flush()
        assert b"standard input:1" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b"trunkline: interrupted\n"


def test_ctrl_c_ends_the_demo():
    with start("demo") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b"trunkline: interrupted\n"


def test_a_reader_that_goes_away_ends_the_demo():
    with start("demo") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_went_away_ends_a_replay(options):
    with start("replay", *options, "-") as process:
        process.stdout.close()
        process.stdin.write(line(0).encode())
        process.stdin.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_is_reported_in_one_line(chat, options):
    with open("/dev/full", "wb") as full, start("replay", *options, chat, stdout=full) as process:
        assert process.wait(PATIENCE) == 1
        assert process.stderr.read() == b"trunkline: standard output: No space left on device\n"


def test_an_output_that_cannot_show_a_character_is_no_problem(chat):
    Path(chat).rename("grüße.jsonl")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run("replay", "grüße.jsonl", broken(1), env=environment)
    assert done.returncode == 0
    assert "----" in done.stdout.decode("ascii")
    done = run("replay", "fällt.jsonl", env=environment)
    assert (done.returncode, done.stderr) == (
        2,
        b"trunkline: f?llt.jsonl: No such file or directory\n",
    )


def test_progress_is_shown_on_a_terminal_and_cleared(chat):
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    screen, terminal = pty.openpty()
    os.set_blocking(screen, False)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trunkline", "replay", "--json", chat],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=environment,
            timeout=PATIENCE,
            check=True,
        )
        shown = os.read(screen, 100_000)
    finally:
        os.close(screen)
        os.close(terminal)
    assert json.loads(done.stdout)["messages"] == 5
    assert b"replaying" in shown
    assert shown.endswith(b"\x1b[2K")
