"""The client of the HTTP API, and what the command line and Python do with it."""
