"""The page about GPUs, made from the result files of `python -m benchmarks.gpu`.

python -m benchmarks.gpu.page [--results benchmarks/results]      # writes gpu.md there
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import brief

INTRODUCTION = """# The engine on a GPU

`python -m benchmarks.gpu.page` makes this page from `gpu-*.json` in this directory. `benchmarks/gpu/README.md` explains
the figures and how to run the benchmark.
"""
NO_RUN = """
No run has been committed yet. On a machine with a GPU, from the root of the repository:

    python -m benchmarks.gpu --minutes 4.5 --models llama-8b --parts ceilings,steps,kernels
    python -m benchmarks.gpu --minutes 4 --models llama-8b --parts correctness,hybrid
    python -m benchmarks.gpu.page
"""


def page(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page about runs by file name, the newest first."""
    if not documents:
        return INTRODUCTION + NO_RUN
    newest_first = sorted(documents, key=lambda name: name.removesuffix(".json")[-15:], reverse=True)
    return INTRODUCTION + "".join(_run(name, documents[name]) for name in newest_first)


def _run(name: str, document: Mapping[str, Any]) -> str:
    result = document["result"]
    device, settings = result.get("device", {}), result.get("settings", {})
    state = "sound" if result.get("is_sound") else "NOT SOUND"
    lines = [
        f"\n## {device.get('name', 'unnamed device')}: `{name}`\n",
        f"Driver {device.get('driver') or 'unknown'}, torch {document['machine']['packages'].get('torch')}; "
        f"`--minutes {settings.get('minutes', '?')} --models {','.join(settings.get('models', []))}`; weights in "
        f"{'float8' if settings.get('quantization') == 'fp8' else '16 bits'}; {state}.\n",
    ]
    targets = result.get("targets", [])
    rows = [
        (row["name"], "" if row["figure"] is None else f"{row['figure']:.3g}", row["wanted"], row["state"])
        for row in targets
    ]
    lines += _table(("target", "figure", "wanted", "state"), rows)
    for part, content in result["parts"].items():
        lines.append(f"\n### {part} ({content.get('elapsed_s', 0):.0f} s)\n")
        lines += _table(
            ("measurement", "figures"), [(key, _cell(content["figures"][key])) for key in content["figures"]]
        )
        for word, key in (("Cut for lack of time", "skipped"), ("Wrong", "mismatches")):
            lines += [f"\n{word}: {'; '.join(content[key])}.\n"] if content[key] else []
        lines += [f"\nFailed: {title}: {reason}\n" for title, reason in content["failed"].items()]
    missing = [part for part in settings.get("parts", []) if part not in result["parts"]]
    if missing:
        lines.append(f"\nThe run ended before these parts: {', '.join(missing)}.\n")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return brief(value).replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["Nothing was measured."]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    directory = parser.parse_args().results
    path = directory / "gpu.md"
    path.write_text(
        page({found.name: json.loads(found.read_text()) for found in directory.glob("gpu-*.json")})
    )
    print(path)


if __name__ == "__main__":
    main()
