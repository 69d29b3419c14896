"""The web process: the HTTP API, authentication, and the dashboard."""
