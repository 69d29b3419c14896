"""All services on one machine: their supervisor, the checks before they start, and `doctor`."""
