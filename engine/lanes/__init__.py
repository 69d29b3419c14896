"""How requests enter the engine, over its socket or pulled from Redis, and how their results leave it."""
