"""The switch of the enumeration, and a stage for it on the servers of this run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib import import_module

import pytest

from shared import settings as settings_module
from shared.embedded.postgres import Postgres
from shared.embedded.valkey import Valkey
from shared.ids import Ids
from tests.faults.enumerate import Enumeration, variables


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plan", default="", help="run one plan: send:17:die_after,31:err_before")


@pytest.fixture(scope="module")
def enumeration(valkey: Valkey, postgres: Postgres) -> Iterator[Enumeration]:
    """One stage for all plans of a module: connections are opened once."""
    schema = f"f{Ids().object_id('sup')[4:]}"
    settings = settings_module.load(variables(valkey.url, postgres.url, schema), None)
    asyncio.run(import_module("shared.migrate").apply(settings))
    with Enumeration(settings) as made:
        yield made
