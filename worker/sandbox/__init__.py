"""A pretended Graph API in a process of its own; nothing on the sending path imports it."""
