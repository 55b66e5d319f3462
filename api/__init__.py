"""The HTTP API: submit jobs, control them, follow them. Never talks to Graph."""
