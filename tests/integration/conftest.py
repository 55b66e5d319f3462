"""What every test of the endpoints, and of whole processes, may ask for."""

from tests.e2e.stack import stack
from tests.integration.command import run
from tests.integration.desk import api

__all__ = ["api", "run", "stack"]
