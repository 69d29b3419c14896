"""The `bros-batch` command line: thin commands that call the HTTP API or start services."""
