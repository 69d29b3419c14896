"""OpenAI's Responses API as data: its requests become chat requests, and chat answers become its objects and events."""
