"""Check JSON schemas with known instances: which compile, and whether their grammars agree with the instances.

    python -m benchmarks.schemas FILE [--model-dir DIR]

Each line of FILE is `{"name": ..., "schema": ..., "tests": [{"valid": true, "data": ...}, ...]}`. A grammar fixes the
order of properties, so an instance counts as accepted if the matcher accepts it in its own order or in the order in
which its schema first names the properties.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from bros_batch.openai_api.schema_check import schema_problem
from bros_batch.settings import DEMO_MODEL_DIR
from engine.wire.json_schemas import compilable_text

# With little indentation, because outputs have at most 20 characters of white space in a row.
LAYOUTS: tuple[dict[str, Any], ...] = ({}, {"separators": (",", ":")}, {"indent": 1})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "--model-dir", type=Path, default=Path(DEMO_MODEL_DIR), help="a folder with a tokenizer.json"
    )
    options = parser.parse_args()
    tokenizer = LLTokenizer((options.model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    slowest_s = 0.0
    for line in options.file.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        counts["schemas"] += 1
        begun_s = time.perf_counter()
        problem = schema_problem(case["schema"])
        slowest_s = max(slowest_s, time.perf_counter() - begun_s)
        if problem is not None:
            counts["refused"] += 1
            print(f"refused  {case['name']}: {problem}")
            continue
        counts["compiled"] += 1
        matcher = LLMatcher(
            tokenizer, LLMatcher.grammar_from_json_schema(compilable_text(json.dumps(case["schema"])))
        )
        for index, test in enumerate(case["tests"]):
            verdict = _verdict(tokenizer, matcher, case["schema"], test["data"])
            counts[f"{'valid' if test['valid'] else 'invalid'} instances"] += 1
            counts[f"{'valid' if test['valid'] else 'invalid'} instances {verdict}"] += 1
            if (verdict == "rejected") == test["valid"]:
                print(
                    f"WRONG    {case['name']}: instance {index} is valid: {test['valid']}, but was {verdict}"
                )
    for name, count in sorted(counts.items()):
        print(f"{count:6}  {name}")
    print(f"slowest check: {slowest_s * 1000:.1f} ms")


def _verdict(tokenizer: LLTokenizer, matcher: LLMatcher, schema: Any, data: Any) -> str:
    if _accepts_all_layouts(tokenizer, matcher, data):
        return "accepted"
    ranks: dict[str, int] = {}
    _rank_names(schema, ranks)
    return (
        "accepted in another order"
        if _accepts_all_layouts(tokenizer, matcher, _ordered(data, ranks))
        else "rejected"
    )


def _accepts_all_layouts(tokenizer: LLTokenizer, matcher: LLMatcher, data: Any) -> bool:
    verdicts = {
        _accepts(tokenizer, matcher, json.dumps(data, ensure_ascii=False, **layout)) for layout in LAYOUTS
    }
    assert len(verdicts) == 1, "white space changes the verdict"
    return verdicts == {True}


def _accepts(tokenizer: LLTokenizer, matcher: LLMatcher, text: str) -> bool:
    matcher = matcher.deep_copy()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def _rank_names(schema: Any, ranks: dict[str, int]) -> None:
    if isinstance(schema, dict):
        for name in schema.get("properties", ()) if isinstance(schema.get("properties"), dict) else ():
            ranks.setdefault(name, len(ranks))
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _rank_names(part, ranks)


def _ordered(data: Any, ranks: dict[str, int]) -> Any:
    if isinstance(data, list):
        return [_ordered(each, ranks) for each in data]
    if isinstance(data, dict):
        names = sorted(data, key=lambda name: ranks.get(name, len(ranks)))
        return {name: _ordered(data[name], ranks) for name in names}
    return data


if __name__ == "__main__":
    main()
