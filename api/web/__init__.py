"""The pages a browser gets: one document, one script, one style sheet; data come from the API."""
