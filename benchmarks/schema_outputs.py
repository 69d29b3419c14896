"""Does everything that a model writes under a JSON schema fit it, by an independent validator?

    python -m benchmarks.schema_outputs [--families demo,llama,gemma2] [--outputs 200] [--seconds S] [--schemas FILE]

Draws outputs at temperature 1 from the demo model and from tiny models of random weights, under 60 schemas: those of
the engine's tests, alone, as a property of an object, and as the items of an array. FILE, with lines as for
`benchmarks.schemas`, replaces them by its first 60 schemas that compile. `jsonschema` validates each output that has an
end, formats included. The others were stopped by their length. Schemas take turns, so after S seconds of a family each
has had about equally many outputs.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
from transformers import AutoTokenizer

from bros_batch.openai_api.schema_check import schema_problem
from bros_batch.settings import DEMO_MODEL_DIR
from engine.core.terms import Grammar, SamplingParams
from engine.wire.json_schemas import compilable_text
from tests.engine.runner.driver import Driver, load_runner
from tests.factories_grammars import SCHEMAS
from tests.factories_models import make_model, make_tokenizer

NUM_SCHEMAS = 60
NUM_TOGETHER = 32  # requests in a step
NUM_PROMPT_TOKENS = 8
NUM_BLOCKS = 1024


def own_schemas() -> list[dict[str, Any]]:
    """Return the schemas of the tests, each in three places."""
    found = []
    for schema in SCHEMAS:
        definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
        part = {name: value for name, value in schema.items() if name != "$defs"}
        found += [
            schema,
            {
                **definitions,
                "type": "object",
                "properties": {"first": part, "second": {"type": "boolean"}},
                "required": ["first"],
                "additionalProperties": False,
            },
            {**definitions, "type": "array", "items": part, "minItems": 1, "maxItems": 2},
        ]
    return found


def schemas_of(file: Path) -> list[dict[str, Any]]:
    schemas = [json.loads(line)["schema"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [each for each in schemas if schema_problem(each) is None][:NUM_SCHEMAS]


def outputs(
    model: Path, schemas: list[dict[str, Any]], number: int, max_tokens: int, seconds: float | None
) -> Counter[str]:
    """Count what became of outputs under the schemas in turn, within the time. Prints those that do not fit theirs."""
    counts: Counter[str] = Counter()
    tokenizer = AutoTokenizer.from_pretrained(model)
    runner = load_runner(model, dtype="float32", num_kv_blocks=NUM_BLOCKS, max_num_seqs=NUM_TOGETHER)
    max_tokens = min(max_tokens, runner.info.max_model_len - NUM_PROMPT_TOKENS)
    rng = random.Random(0)
    begun_s = time.monotonic()
    try:
        for first in range(0, number, NUM_TOGETHER):
            if seconds is not None and time.monotonic() - begun_s > seconds:
                break
            driver = Driver(runner, seed=first)
            drawn = []
            for i in range(first, min(first + NUM_TOGETHER, number)):
                schema = schemas[i % len(schemas)]
                sampling = SamplingParams(
                    max_tokens=max_tokens,
                    seed=i,
                    grammar=Grammar("json_schema", compilable_text(json.dumps(schema))),
                )
                drawn.append(
                    (schema, driver.add([rng.randrange(3, 250) for _ in range(NUM_PROMPT_TOKENS)], sampling))
                )
            driver.run(max_tokens)
            for schema, request in drawn:
                text = str(tokenizer.decode(request.output, skip_special_tokens=True))
                verdict = _verdict(schema, text, request.finished)
                counts[verdict] += 1
                if verdict not in ("valid", "stopped by length"):
                    print(f"{verdict}: {text!r} under {json.dumps(schema)[:500]}")
    finally:
        runner.close()
    return counts


def _verdict(schema: dict[str, Any], text: str, finished: str | None) -> str:
    if finished is None:
        return "stopped by length"
    if finished != "stop":
        return f"failed ({finished})"
    try:
        value = json.loads(text, parse_float=Decimal)
    except ValueError:
        return "not JSON"
    schema = json.loads(
        json.dumps(schema), parse_float=Decimal
    )  # 0.3 is a multiple of 0.1, but not as a float
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    checker = kind(schema, format_checker=kind.FORMAT_CHECKER)
    return "valid" if checker.is_valid(value) else "INVALID"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default="demo,llama,gemma2", help="of models (%(default)s)")
    parser.add_argument("--outputs", type=int, default=200, help="of each family (%(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each family at most")
    parser.add_argument("--max-tokens", type=int, default=200, help="of each output (%(default)s)")
    parser.add_argument("--schemas", type=Path, metavar="FILE")
    options = parser.parse_args()
    schemas = own_schemas() if options.schemas is None else schemas_of(options.schemas)
    print(f"{len(schemas)} schemas")
    for family in options.families.split(","):
        with tempfile.TemporaryDirectory(prefix="bros-schema-outputs-") as directory:
            model = Path(DEMO_MODEL_DIR)
            if family != "demo":
                model = make_tokenizer(make_model(family, Path(directory)))
            counts = outputs(model, schemas, options.outputs, options.max_tokens, options.seconds)
        print(
            f"{family:8}", ", ".join(f"{count} {what}" for what, count in sorted(counts.items())), flush=True
        )


if __name__ == "__main__":
    main()
