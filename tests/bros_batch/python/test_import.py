"""What `import bros_batch` costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bros_batch


def modules_after(statements: str) -> set[str]:
    program = f"{statements}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    found = modules_after("import bros_batch")
    assert {name for name in found if name.startswith("bros_batch")} == {"bros_batch"}
    assert not found & {"httpx", "pydantic", "rich", "torch", "pandas", "polars", "pyarrow"}


def test_its_functions_import_no_torch_and_no_table_library() -> None:
    found = modules_after("from bros_batch import Client, Job, ask, map, map_async, RowsFailed, BadInput")
    assert not found & {"torch", "numpy", "pandas", "polars", "pyarrow", "sqlalchemy", "celery", "redis"}


def test_every_name_that_is_listed_exists() -> None:
    names = [name for name in dir(bros_batch) if not name.startswith("_")]
    assert {"Client", "ask", "map", "map_async"} <= set(names)
    assert all(getattr(bros_batch, name) is not None for name in names)
    with pytest.raises(AttributeError, match="module 'bros_batch' has no attribute 'mapp'"):
        bros_batch.mapp  # noqa: B018
