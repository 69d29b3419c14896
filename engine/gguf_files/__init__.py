"""GGUF files as models: which file a model name means, and its conversion into a model directory."""
