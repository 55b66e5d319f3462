"""The sending pool: claims chunks, calls Graph, reports what it came to. Never serves users."""
