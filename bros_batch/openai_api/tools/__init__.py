"""Tools of a chat request: their definitions, the choice among them, and the messages that carry calls and results."""
