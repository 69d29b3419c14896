"""The server that the checks of this folder use, and how they report. Needs nothing but the standard library."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

URL = os.environ["BROS_URL"]
API = f"{URL}/v1"
KEY = os.environ.get("BROS_API_KEY", "none")
MODEL = os.environ["CLIENTS_MODEL"]  # its name in requests
MODEL_DIR = Path(os.environ["CLIENTS_MODEL_DIR"])  # its tokenizer and weights
INVOICE = "Invoice from ACME Ltd.\nDate: 3 March 2026\nTotal: EUR 12.50"
MAX_SHOWN_CHARS = 400


def run_checks(names: Mapping[str, Any]) -> None:
    """Run every function whose name begins with `check_`, in order, or those named on the command line.

    Prints a line of JSON for each. The exit code says whether all of them succeeded.
    """
    chosen = set(sys.argv[1:])
    checks: dict[str, Callable[[], None]] = {
        name.removeprefix("check_"): value for name, value in names.items() if name.startswith("check_")
    }
    failed = False
    for name, check in checks.items():
        if chosen and name not in chosen:
            continue
        started_s = time.perf_counter()
        error = None
        try:
            check()
        except Exception as problem:
            traceback.print_exc()
            error = f"{type(problem).__name__}: {problem}"[:MAX_SHOWN_CHARS]
            failed = True
        print(
            json.dumps({"check": name, "error": error, "seconds": round(time.perf_counter() - started_s, 2)}),
            flush=True,
        )
    sys.exit(failed)
