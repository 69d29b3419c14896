"""OpenAI's API as data: requests that clients write, and responses and files that they read."""
