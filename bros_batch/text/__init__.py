"""Text to token ids and back: tokenizer, templates, incremental decoding and stop strings."""
