"""URLs: which adapter they stand for, and what of them may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.backends import (
    Adapter,
    AdapterOptions,
    hide_password,
    open_adapter,
    register_adapter,
    resolve_adapter,
)
from trunkline.errors import ConfigurationError
from trunkline.fsm import FSMStore
from trunkline.fsm.memory import MemoryFSMAdapter
from trunkline.persistence import PersistenceStore
from trunkline.signal import SignalAdapter, SignalStore
from trunkline.signal.memory import MemorySignalAdapter

STORES = [PersistenceStore, FSMStore, SignalStore]

OPTIONS = AdapterOptions()

#: Any text that could have been pasted where a password belongs, escaped or not. What is no letter
#: is kept apart by a mark that stands nowhere else, so that a part of it is found again.
PASSWORDS = st.lists(st.sampled_from(["SeCrEt", *"@:/?#[]%&=+ \n\\\"'{}"]), min_size=1).map("".join)


@pytest.mark.parametrize("url", ["memory://", "Memory://", "memory+anything://"])
def test_the_scheme_chooses_the_adapter_whatever_its_case_and_driver(url):
    assert isinstance(open_adapter("signal", url, OPTIONS), MemorySignalAdapter)


def test_an_adapter_that_is_given_is_taken():
    adapter = MemorySignalAdapter()
    assert resolve_adapter(SignalAdapter, None, adapter, OPTIONS) is adapter


def test_a_url_and_an_adapter_are_one_too_many():
    with pytest.raises(ConfigurationError, match="a URL or an adapter, not both"):
        resolve_adapter(SignalAdapter, "memory://", MemorySignalAdapter(), OPTIONS)


def test_neither_a_url_nor_an_adapter_is_too_little():
    with pytest.raises(ConfigurationError, match=r"give a URL, such as 'sqlite:///bot\.db'"):
        resolve_adapter(SignalAdapter, None, None, OPTIONS)


def test_an_adapter_of_another_store_is_refused():
    with pytest.raises(ConfigurationError, match="needs a SignalAdapter, not MemoryFSMAdapter"):
        resolve_adapter(SignalAdapter, None, MemoryFSMAdapter(), OPTIONS)


def test_an_unknown_scheme_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigurationError, match="known are memory://, postgresql://") as refused:
        open_adapter("persistence", "mysql://bot:hunter2@host/db", OPTIONS)
    assert "'mysql://bot:***@host/db'" in str(refused.value)


def test_a_scheme_that_another_store_has_is_refused():
    with pytest.raises(ConfigurationError, match="no persistence adapter for 'redis://host'"):
        open_adapter("persistence", "redis://host", OPTIONS)


@pytest.mark.parametrize("url", ["bot.db", "", "sqlite:bot.db", 42, b"sqlite://"])
def test_what_is_no_url_is_refused_with_one_that_is(url):
    with pytest.raises(ConfigurationError, match=r"looks like 'sqlite:///bot\.db', not"):
        open_adapter("fsm", url, OPTIONS)


def test_the_password_of_a_url_without_slashes_is_not_shown():
    with pytest.raises(ConfigurationError) as refused:
        open_adapter("fsm", "postgresql:bot:hunter2@host/db", OPTIONS)
    assert "hunter2" not in str(refused.value)


class CloudSignalAdapter(MemorySignalAdapter):
    """Somebody else's adapter."""

    @classmethod
    def from_url(cls, url, options):
        adapter = cls()
        adapter.url, adapter.namespace = url, options.namespace  # type: ignore[attr-defined]
        return adapter


def test_a_registered_adapter_opens_the_urls_of_its_scheme():
    register_adapter("cloud", CloudSignalAdapter)
    store = SignalStore("cloud://keys", namespace="shop")
    assert (store._adapter.url, store._adapter.namespace) == ("cloud://keys", "shop")  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="no fsm adapter"):
        FSMStore("cloud://keys")


@pytest.mark.parametrize("wrong", [CloudSignalAdapter(), Adapter, str, None])
def test_what_is_not_a_class_of_adapters_is_not_registered(wrong):
    with pytest.raises(ConfigurationError, match="subclasses a store's contract"):
        register_adapter("cloud", wrong)


@pytest.mark.parametrize("namespace", ["", "x" * 101, "☃" * 34, "a\0b", "\ud800", None, 42])
@pytest.mark.parametrize("store", STORES)
def test_a_namespace_that_no_database_can_store_is_refused(store, namespace):
    with pytest.raises(ConfigurationError, match="namespace"):
        store("memory://", namespace=namespace)


def test_a_namespace_beside_an_adapter_that_has_another_is_refused():
    adapter = CloudSignalAdapter.from_url("cloud://keys", AdapterOptions(namespace="shop"))
    assert SignalStore(adapter=adapter, namespace="shop")._adapter is adapter
    with pytest.raises(ConfigurationError, match="the adapter has the namespace 'shop'"):
        SignalStore(adapter=adapter, namespace="another")


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
