"""Apply each migration once, whoever else is trying; touches nothing outside our own schema."""

from __future__ import annotations

import asyncio
import sys
from importlib.resources import files
from typing import Any, Final

import asyncpg

from shared import settings as settings_module
from shared.connect import open_postgres
from shared.errors import ArchiveError, DrumbeatError, SettingsError
from shared.settings import Settings

# Any number that only we use; the schema's name is hashed in beside it.
_LOCK: Final = 0x6472756D
_FOLDER: Final = files("shared") / "sql" / "migrations"


def steps() -> list[tuple[str, str]]:
    """Return every migration as (version, SQL of its `up` part), oldest first."""
    names = sorted(item.name for item in _FOLDER.iterdir() if item.name.endswith(".sql"))
    return [(name.split("_")[0], _up((_FOLDER / name).read_text("utf-8"))) for name in names]


def _up(text: str) -> str:
    return text.split("-- migrate:up", 1)[1].split("-- migrate:down", 1)[0]


async def apply(settings: Settings, *, check: bool = False) -> list[str]:
    """Apply what is missing and return its versions; with `check` only return them.

    Raises:
        ArchiveError: PostgreSQL refused, or was lost.
    """
    pool = await open_postgres(settings, size=2)
    schema = settings.database_schema
    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK, schema
            )
            have = await _applied(connection, schema)
            missing = [step for step in steps() if step[0] not in have]
            if check:
                return [version for version, _ in missing]
            quoted = '"' + schema.replace('"', '""') + '"'
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations (version text PRIMARY KEY)"
            )
            for version, sql in missing:
                await connection.execute(sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (version) VALUES ($1)", version
                )
            return [version for version, _ in missing]
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise ArchiveError(f"migration failed: {type(error).__name__}: {error}") from error
    finally:
        await pool.close()


async def require_current(settings: Settings, pool: asyncpg.Pool[Any]) -> None:
    """Refuse a schema that this code is ahead of; one that is ahead of this code will do.

    Raises:
        SettingsError: it says what to run.
        ArchiveError: PostgreSQL refused, or was lost.
    """
    try:
        async with pool.acquire() as connection:
            have = await _applied(connection, settings.database_schema)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise ArchiveError(f"the schema cannot be read: {type(error).__name__}") from error
    missing = [version for version, _ in steps() if version not in have]
    if missing:
        raise SettingsError(
            f"DATABASE_SCHEMA: {settings.database_schema} is older than this release, it lacks "
            f"{', '.join(missing)}: run `drumbeat migrate`"
        )


async def _applied(connection: asyncpg.pool.PoolConnectionProxy, schema: str) -> set[str]:
    found = await connection.fetchval(
        "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'schema_migrations'", schema
    )
    if not found:
        return set()
    return {
        row["version"] for row in await connection.fetch("SELECT version FROM schema_migrations")
    }


def main() -> int:
    """Migrate, as `python -m shared.migrate [--check]`; exit 1 when --check finds work."""
    check = "--check" in sys.argv[1:]
    try:
        done = asyncio.run(apply(settings_module.load(), check=check))
    except DrumbeatError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if error.code == "bad_settings" else 3
    word = "missing" if check else "applied"
    sys.stdout.write(f"{word}: {', '.join(done) or 'nothing'}\n")
    return 1 if check and done else 0


if __name__ == "__main__":
    sys.exit(main())
