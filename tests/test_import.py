"""What an import of trunkline gives, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import trunkline


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after `statement`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


HEAVY = {"sqlalchemy", "rich", "redis", "trio", "uvloop", "matplotlib", "hypothesis"}


def test_importing_trunkline_imports_nothing_heavy():
    modules = modules_after("import trunkline")
    assert "trunkline" in modules
    assert not modules & (HEAVY | {"asyncio", "anyio", "structlog"})


def test_importing_the_router_imports_no_database_and_no_rich():
    modules = modules_after("from trunkline import SessionRouter")
    assert "anyio" in modules
    assert not modules & HEAVY


def test_the_router_is_the_same_wherever_it_is_imported_from():
    from trunkline import routing

    for name in ("PruneResult", "Resolution", "Route", "RouteRecord", "SessionKey"):
        assert getattr(trunkline, name) is getattr(routing, name)
    assert trunkline.SessionRouter is routing.SessionRouter


def test_every_public_name_can_be_imported_and_is_listed():
    for name in trunkline.__all__:
        assert getattr(trunkline, name) is not None
        assert name in dir(trunkline)
    namespace: dict[str, object] = {}
    exec("from trunkline import *", namespace)
    assert set(trunkline.__all__) <= set(namespace)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trunkline' has no attribute 'Ruoter'"):
        trunkline.Ruoter  # noqa: B018


def test_the_version_is_that_of_the_package():
    assert trunkline.__version__ == version("trunkline")
