"""The shared suite over the warm tiers."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from conformance import Conformance, Medium

from nbmf.store.base import Tier
from nbmf.store.postgres import PostgresTier
from nbmf.store.sqlite import SQLiteTier


class SQLiteMedium(Medium):
    def __init__(self, folder: Path, key: bytes | None = None) -> None:
        self.folder = folder
        self.key = key
        self.plain = key is None

    def open(self) -> Tier:
        return SQLiteTier(self.folder / "warm.db", self.key)

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())


class TestSQLite(Conformance):
    @pytest.fixture
    def medium(self, tmp_path: Path) -> Medium:
        return SQLiteMedium(tmp_path)


class TestEncryptedSQLite(Conformance):
    @pytest.fixture
    def medium(self, tmp_path: Path) -> Medium:
        pytest.importorskip("apsw")
        return SQLiteMedium(tmp_path, bytes(range(32)))


class PostgresMedium(Medium):
    def __init__(self, url: str, schema: str) -> None:
        self.url = url
        self.schema = schema

    def open(self) -> Tier:
        return PostgresTier(self.url, self.schema)


class TestPostgres(Conformance):
    numbers = count()

    @pytest.fixture
    def medium(self, postgres: str) -> Medium:
        return PostgresMedium(postgres, f"conformance_{next(self.numbers)}")
