"""The protocol between engines and other processes, and the client. The only part of the engine that others import."""
