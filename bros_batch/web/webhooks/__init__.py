"""Webhooks: whom they may call, what they say, and how they are delivered."""
