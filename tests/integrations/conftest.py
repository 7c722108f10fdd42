from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(params=[pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")])
def anyio_backend(request):
    """aiogram and python-telegram-bot know asyncio alone."""
    return request.param


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/bot.db"


@pytest.fixture
def sqlite_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/bot.db"


@pytest.fixture(scope="session")
def offline():
    """The module `offline_telegram`, which is a program as well."""
    path = Path(__file__).with_name("offline_telegram.py")
    spec = spec_from_file_location("offline_telegram", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
