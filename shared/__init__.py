"""What api and worker both stand on: words first, then tools, then the doors to Redis and PostgreSQL."""
