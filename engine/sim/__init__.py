"""The simulator: the engine's own loop and scheduler on a virtual clock, with synthetic or recorded traces."""
