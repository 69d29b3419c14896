"""Run `bros-batch` as `python -m cli`."""

from cli.main import main

main(prog_name="bros-batch")
