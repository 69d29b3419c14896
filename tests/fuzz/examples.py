"""How many examples the tests draw, and where those that failed are kept."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

# `scripts/fuzz` sets both.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
CORPUS = os.environ.get("FUZZ_CORPUS")

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=CORPUS is None,  # without a corpus, every machine draws the same examples
    database=DirectoryBasedExampleDatabase(CORPUS) if CORPUS else None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
