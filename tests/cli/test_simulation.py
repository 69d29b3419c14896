"""`bros-batch simulate` and `bros-batch plan`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from cli.main import main

LOAD = ("--rt", "cpu-mini-chat", "--rt-rate", "3", "--be", "cpu-mini", "--requests", "120")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "100"})


def test_policies_side_by_side():
    result = run("simulate", *LOAD)
    assert result.exit_code == 0, result.output
    first = result.stdout.splitlines()[0]
    assert first.split() == ["bros", "priority", "fcfs"]
    for title in (
        "SLO attainment",
        "TTFT s, p50 90 99",
        "TPOT ms, p50 90 99",
        "output tokens/s",
        "documents/h",
    ):
        assert title in result.stdout
    assert "unfinished" not in result.stdout, "a row appears only if it has a value"


def test_json_is_one_document_and_the_same_again():
    arguments = ("simulate", *LOAD, "--policy", "bros", "--policy", "fcfs", "--seed", "3", "--json")
    first, second = run(*arguments), run(*arguments)
    assert first.stdout == second.stdout
    document = json.loads(first.stdout)
    assert [report["policy"] for report in document["policies"]] == ["bros", "fcfs"]
    bros = document["policies"][0]
    assert bros["rt"]["num_succeeded"] + bros["be"]["num_succeeded"] == 120
    assert set(bros["rt"]["ttft"]) == {"p50_s", "p90_s", "p99_s"}
    assert document["options"]["seed"] == 3


def test_a_trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"arrival_s": 0.1 * i, "lane": lane, "prompt_tokens": 50, "output_tokens": 5}) + "\n"
            for i in range(10)
            for lane in ("rt", "be")
        )
    )
    result = run("simulate", "--trace", str(path), "--json", "--policy", "priority")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["policies"][0]["be"]["num_succeeded"] == 10
    path.write_text(path.read_text() + "nonsense\n")
    result = run("simulate", "--trace", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "trace.jsonl, line 21:" in result.stderr


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    result = run("simulate", *LOAD, "--policy", "bros", "--plot", str(path))
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("simulate", *LOAD, "--plot", "plot.png")
    assert result.exit_code == 2
    assert "pip install 'bros-batch[benchmarks]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "there is no load; use --rt, --be or --trace."),
        (("--rt", "azure-conv"), "did you mean azure-2023-conv?"),
        (("--rt", "sharegpt-8k"), "has no rate"),
        (("--be", "cpu-mini", "--rt-rate", "2"), "--rt-rate needs a workload; use --rt too."),
        (("--be", "cpu-mini", "--trace", "t.jsonl"), "use either --trace, or --rt and --be."),
        (
            ("--be", "cpu-mini", "--be-rate", "2", "--be-in-flight", "3"),
            "--be-rate and --be-in-flight exclude each other",
        ),
        (("--trace", "/nonexistent.jsonl"), "/nonexistent.jsonl: No such file or directory."),
        (("--be", "cpu-mini", "--device", "tpu"), "there is no device 'tpu'"),
        (("--be", "cpu-mini", "--device", "step_s=1,speed=3"), "'speed' is not a coefficient"),
        (("--be", "cpu-mini", "--kv-tokens", "8"), "less than one block"),
        (("--be", "cpu-mini", "--policy", "lifo"), "'lifo' is not one of"),
        (("--be", "cpu-mini", "--be-rate", "inf"), "inf is not a finite number"),
        (("--be", "cpu-mini", "--duration", "nan"), "nan is not a finite number"),
        (("--be", "cpu-mini", "--ttft-ms", "0"), "0.0 is not in the range"),
    ],
)
def test_a_usage_error_is_one_sentence(arguments, sentence):
    result = run("simulate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


PLAN = ("plan", "--rt", "cpu-mini-chat", "--rt-rate", "3", "--be", "cpu-mini", "--duration", "20")


def test_a_plan():
    result = run(*PLAN, "--be-documents-per-hour", "20000")
    assert result.exit_code == 0, result.output
    for fleet in ("hybrid", "split: chat", "split: bulk"):
        assert fleet in result.stdout
    assert "of a split fleet" in result.stdout
    assert "Tried 1 engine, be only" in result.stderr


def test_a_plan_as_json():
    result = run(*PLAN, "--be-tokens-per-day", "2e7", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    split = document["split"]
    assert split["num_engines"] == split["rt_only"]["num_engines"] + split["be_only"]["num_engines"]
    assert document["hybrid"]["attainment"] >= 0.95
    assert document["hybrid"]["be_tokens_per_s"] >= 2e7 / 86400
    assert not result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "use either --be-tokens-per-day or --be-documents-per-hour"),
        (("--be-tokens-per-day", "1", "--be-documents-per-hour", "1"), 2, "to say how much bulk there is"),
        (("--be-tokens-per-day", "1e6", "--device", "tpu"), 2, "there is no device"),
        (("--be-tokens-per-day", "1e6", "--rt", "chats"), 2, "there is no workload 'chats'"),
        (("--be-tokens-per-day", "1e6", "--ttft-ms", "1"), 1, "allow a longer TTFT"),
    ],
)
def test_impossible_plans(arguments, code, sentence):
    result = run(*PLAN, *arguments)
    assert result.exit_code == code
    assert sentence.lower() in " ".join(result.stderr.split()).lower()


def test_simulation_needs_no_torch():
    code = (
        "import sys; from cli.main import main;"
        "main(['simulate', '--be', 'cpu-mini', '--requests', '5', '--json'], standalone_mode=False);"
        "print(sorted({'torch', 'numpy', 'fastapi', 'sqlalchemy'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
