"""`drumbeat config`: every variable, checked, explained, or as a file to begin with."""

from __future__ import annotations

import sys

import cyclopts

from shared import settings

config = cyclopts.App(name="config", help="The variables that every process reads.")


@config.command
def check() -> None:
    """Read the variables and `.env` as a process would; 2 with every fault at once."""
    made = settings.load()
    sys.stderr.writelines(f"{warning}\n" for warning in made.warnings)
    sys.stdout.write("the settings are complete\n")


@config.command
def docs() -> None:
    """Print every variable with its default, range and meaning, as a Markdown table."""
    sys.stdout.write(settings.table())


@config.command
def example() -> None:
    """Print a `.env` to begin with: every variable, its default commented out."""
    sys.stdout.write(settings.example())
