"""Import circles: no module may import itself by way of others, not even in a function or for type checking.

Import-linter checks the same for folders, and which packages may import which others; see pyproject.toml.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

PACKAGES = ("engine", "bros_batch", "cli", "migrations", "benchmarks", "training", "tests")


def circle(*packages: str) -> list[str]:
    """A circle of modules, each imported by the next; empty if there is none."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_no_import_circle() -> None:
    found = circle(*PACKAGES)
    assert not found, f"each of these is imported by the next: {', '.join(found)}"


@pytest.mark.parametrize(
    "back",
    [
        "import circular.a",
        "from circular import a",
        "def f():\n    from circular import a\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circular.a import A\n",
    ],
    ids=["import", "from", "in a function", "for type checking"],
)
def test_every_kind_of_import_can_close_a_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: str
) -> None:
    package = tmp_path / "circular"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("import circular.b\n")
    (package / "b.py").write_text("import circular.c\n")
    (package / "c.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert circle("circular") == []
    (package / "c.py").write_text(back)
    assert set(circle("circular")) == {"circular.a", "circular.b", "circular.c"}
