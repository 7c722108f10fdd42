"""URLs: which adapter they stand for, and what of them may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.backends import choose_adapter, hide_password
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMStore
from trunkline.persistence import PersistenceStore
from trunkline.signal import SignalStore

STORES = [PersistenceStore, FSMStore, SignalStore]

SCHEMES = {"memory": lambda url: ("memory", url), "sqlite": lambda url: ("sqlite", url)}

#: Any text that could have been pasted where a password belongs, escaped or not. What is no letter
#: is kept apart by a mark that stands nowhere else, so that a part of it is found again.
PASSWORDS = st.lists(st.sampled_from(["SeCrEt", *"@:/?#[]%&=+ \n\\\"'{}"]), min_size=1).map("".join)


def test_the_scheme_chooses_the_adapter():
    assert choose_adapter("memory://", None, SCHEMES) == ("memory", "memory://")
    assert choose_adapter("sqlite:///a.db", None, SCHEMES) == ("sqlite", "sqlite:///a.db")


@pytest.mark.parametrize("url", ["SQLite:///a.db", "sqlite+pysqlite:///a.db"])
def test_the_case_of_a_scheme_and_its_driver_do_not_matter(url):
    assert choose_adapter(url, None, SCHEMES) == ("sqlite", url)


def test_an_adapter_that_is_given_is_taken():
    adapter = ("mine", "")
    assert choose_adapter(None, adapter, SCHEMES) is adapter


def test_a_url_and_an_adapter_are_one_too_many():
    with pytest.raises(ConfigurationError, match="a URL or an adapter, not both"):
        choose_adapter("memory://", ("mine", ""), SCHEMES)


def test_neither_a_url_nor_an_adapter_is_too_little():
    with pytest.raises(ConfigurationError, match=r"give a URL, such as 'sqlite:///bot\.db'"):
        choose_adapter(None, None, SCHEMES)


def test_an_unknown_scheme_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigurationError, match="known are memory://, sqlite://") as refused:
        choose_adapter("mysql://bot:hunter2@host/db", None, SCHEMES)
    assert "'mysql://bot:***@host/db'" in str(refused.value)


@pytest.mark.parametrize("url", ["bot.db", "", "sqlite:bot.db", 42, b"sqlite://"])
def test_what_is_no_url_is_refused_with_one_that_is(url):
    with pytest.raises(ConfigurationError, match=r"looks like 'sqlite:///bot\.db', not"):
        choose_adapter(url, None, SCHEMES)


def test_the_password_of_a_url_without_slashes_is_not_shown():
    with pytest.raises(ConfigurationError) as refused:
        choose_adapter("postgresql:bot:hunter2@host/db", None, SCHEMES)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("url", ["mysql://bot:hunter2@host/db", "postgres:bot:hunter2@host"])
def test_no_store_shows_the_password_of_a_url_it_does_not_know(store, url):
    with pytest.raises(ConfigurationError) as refused:
        store(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://bot:hunter2@host:5432/db", "postgresql://bot:***@host:5432/db"),
        ("postgresql://bot@host/db", "postgresql://bot@host/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://host:5432", "postgresql://host:5432"),
        ("postgresql://one:1,two:2/db", "postgresql://one:1,two:2/db"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgresql://bot:hunter2@[::1]:5432/db", "postgresql://bot:***@[::1]:5432/db"),
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        # Characters that should have been escaped.
        ("postgresql://bot:hun@ter2@host/db", "postgresql://bot:***@host/db"),
        ("postgresql://bot:hun/ter2@host/db", "postgresql://bot:***@host/db"),
        ("postgresql://bot:hun?ter2@host/db", "postgresql://bot:***@host/db"),
        ("postgresql://bot:hun?t=er2@host/db?x=1", "postgresql://bot:***@host/db?x=1"),
        ("postgresql://bot:[hunter2@host/db", "postgresql://bot:***@host/db"),
        # The host was forgotten.
        ("postgresql://bot:hunter2", "postgresql://bot:***"),
        # Options that libpq takes in the query.
        ("postgresql://host/db?password=hunter2&a=b", "postgresql://host/db?password=***&a=b"),
        ("postgresql://host/db?sslpassword=hunter2", "postgresql://host/db?sslpassword=***"),
        (
            "postgresql://bot:hunter2@host/db?application_name=bot@host",
            "postgresql://bot:***@host/db?application_name=bot@host",
        ),
        # Files.
        ("sqlite:///bot.db", "sqlite:///bot.db"),
        ("sqlite:///C:/Users/bot@home/bot.db", "sqlite:///C:/Users/bot@home/bot.db"),
        ("sqlite:///file:bot.db?mode=ro&uri=true", "sqlite:///file:bot.db?mode=ro&uri=true"),
        ("memory://", "memory://"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert hide_password(url) == shown


@given(PASSWORDS, st.sampled_from(["host/db", "host:5432/db", "[::1]/db", "/db?host=/run"]))
def test_whatever_the_password_nothing_of_it_is_shown(password, rest):
    shown = hide_password(f"postgresql://bot:{password}@{rest}")
    assert "SeCrEt" not in shown
    assert shown == f"postgresql://bot:***@{rest}"
