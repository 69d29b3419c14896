"""The demo: a small trained model that reads documents, and the generator of its synthetic documents."""
