"""What api and worker stand on: words first, then tools, then the doors to the stores."""
