"""A tiny trained document reader and the synthetic documents it was trained on."""
