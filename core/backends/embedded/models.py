"""Trained models in SQLite, in a separate file."""

import sqlite3
from collections.abc import Sequence

from core.backends.embedded.database import Schema
from core.backends.embedded.store import Row, SqliteStore
from core.domain.model_codec import model_of_text, text_of_model
from core.domain.trained_models import ModelKey, TrainedModel

SCHEMA = Schema(
    version=1,
    statements=(
        """
        CREATE TABLE models (
            tenant   TEXT NOT NULL,
            name     TEXT NOT NULL,
            document TEXT NOT NULL,             -- JSON object
            PRIMARY KEY (tenant, name)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE bases (
            tenant TEXT NOT NULL,
            base   TEXT NOT NULL,
            PRIMARY KEY (tenant, base)
        ) WITHOUT ROWID
        """,
    ),
)

_KEY = "tenant = ? AND name = ?"


class SqliteModelStore(SqliteStore[ModelKey, TrainedModel]):
    """`core.ports.ModelStore`. `create`, `delete` and `add_base` are fsynced."""

    async def create(self, model: TrainedModel) -> bool:
        statement = "INSERT INTO models VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        return await self._write_row(statement, (*_key_of(model.key), text_of_model(model)))

    async def list(self, tenant: str) -> Sequence[TrainedModel]:
        statement = "SELECT document FROM models WHERE tenant = ? ORDER BY name"
        return await self._read_rows(statement, (tenant,), _model_of)

    async def delete(self, key: ModelKey) -> bool:
        return await self._write_row(f"DELETE FROM models WHERE {_KEY}", _key_of(key))

    async def add_base(self, tenant: str, base: str) -> None:
        statement = "INSERT INTO bases VALUES (?, ?) ON CONFLICT DO NOTHING"
        await self._write_row(statement, (tenant, base))

    async def bases(self, tenant: str) -> Sequence[str]:
        statement = "SELECT base FROM bases WHERE tenant = ? ORDER BY base"
        return await self._read_rows(statement, (tenant,), lambda row: str(row[0]))

    def _select(self, connection: sqlite3.Connection, key: ModelKey) -> TrainedModel | None:
        statement = f"SELECT document FROM models WHERE {_KEY}"
        row = connection.execute(statement, _key_of(key)).fetchone()
        return None if row is None else _model_of(row)

    def _update(self, connection: sqlite3.Connection, state: TrainedModel) -> None:
        statement = f"UPDATE models SET document = ? WHERE {_KEY}"
        connection.execute(statement, (text_of_model(state), *_key_of(state.key)))


def _model_of(row: Row) -> TrainedModel:
    return model_of_text(row[0])


def _key_of(key: ModelKey) -> tuple[str, str]:
    return (key.tenant, key.name)
