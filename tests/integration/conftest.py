"""What every test of the endpoints may ask for."""

from tests.integration.desk import api

__all__ = ["api"]
