"""Converts what web and workers need of a GGUF file, and prints the directory that holds it.

    python -m engine.gguf_files FILE           # converts
    python -m engine.gguf_files FILE --check   # only checks the file, and prints nothing

The engine converts the weights by itself.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
from pathlib import Path

from engine.gguf_files.header import read_header
from engine.gguf_files.place import gguf_file


def main() -> int:
    """Returns the exit status: 2, and the reason as the last line of stderr, if the file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m engine.gguf_files")
    parser.add_argument("file")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        file = gguf_file(arguments.file)
        if file is None:
            raise ValueError(f"{arguments.file} is not a GGUF file")
        read_header(file.path)  # a damaged file is told of before torch is loaded, which takes seconds
        gc.disable()  # it would look at what the import makes again and again, for a process that soon ends
        from engine.gguf_files.convert import check_file, text_directory

        if arguments.check:
            with tempfile.TemporaryDirectory() as scratch:
                check_file(file, Path(scratch))
        else:
            print(text_directory(file))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
