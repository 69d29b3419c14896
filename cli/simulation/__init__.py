"""Commands that need no server: `simulate` and `plan`."""
