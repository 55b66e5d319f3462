"""What every test of whole processes may ask for."""

from tests.e2e.stack import stack

__all__ = ["stack"]
