"""Grammars: what constrains an output, compiled by llguidance for the model's tokenizer."""
