"""The lines of an input file, and the requests that they become."""
