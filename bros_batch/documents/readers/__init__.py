"""Tables as users have them, read row by row in bounded memory: one module per format."""
