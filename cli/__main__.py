"""`python -m cli` is `bros-batch`."""

from cli.main import main

main(prog_name="bros-batch")
