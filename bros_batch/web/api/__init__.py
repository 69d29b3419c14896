"""The routes of the HTTP API, one file per family, with what they alone need."""
