"""Shared fixtures: the real models and data, found through TERSOR_DATA."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

DATA = Path(os.environ.get("TERSOR_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data")).resolve()


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that was measured or fitted before, by anyone else, is found again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERSOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _short_races() -> Iterator[None]:
    """No test asserts a time: the races of a search need not be long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tersor.search.ROUNDS", 10)
        patch.setattr("tersor.search.STARTS", 1)
        patch.setattr("tersor.search.FINAL_ROUNDS", 20)
        patch.setattr("tersor.search.REPEATS", 0)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with trained models and data; skips where it is absent."""
    if not (DATA / "loaders.py").exists():
        pytest.skip(f"no trained models and data at {DATA}; set TERSOR_DATA")
    return DATA


@pytest.fixture(scope="session")
def loaders(shared_data: Path) -> ModuleType:
    """The module that loads them."""
    if str(shared_data) not in sys.path:
        sys.path.insert(0, str(shared_data))
    return importlib.import_module("loaders")
