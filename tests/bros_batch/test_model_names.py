"""Names of the served model: its own, and the aliases of the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bros_batch.documents.lines import LineReader
from bros_batch.model_names import ModelNames
from bros_batch.request_error import RequestError
from bros_batch.settings import Settings, SettingsError
from bros_batch.up.service_commands import environment
from tests.bros_batch.world import CHAT, batch_line

GPT = "gpt-4o-mini"


def test_the_error_for_another_model_names_the_ways_out() -> None:
    names = Settings(served_model_name="m", model_aliases=("a=m", "b=m")).model_names
    assert [names.resolve(name) for name in ("m", "a", "b")] == ["m"] * 3
    with pytest.raises(RequestError) as caught:
        names.resolve(GPT, "defaults.model")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "defaults.model")
    for part in (f"'{GPT}'", "'m'", "(also as a, b)", f"--model-alias '{GPT}=m'"):
        assert part in caught.value.message
    assert "bros-batch submit" not in caught.value.message
    with pytest.raises(RequestError) as caught:
        names.resolve(GPT, in_file=True)
    assert "`bros-batch submit --model m`" in caught.value.message
    with pytest.raises(RequestError) as caught:
        names.resolve("x" * 100_000)
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("pair", [GPT, f"{GPT}=", "=m", f"{GPT}=other"])
def test_an_alias_that_does_not_name_the_served_model_is_an_error(pair: str) -> None:
    with pytest.raises(
        SettingsError,
        match=r"^The setting BROS_MODEL_ALIASES \(--model-alias\) is not valid: the model alias",
    ):
        Settings(served_model_name="m", model_aliases=(pair,))


def test_aliases_come_from_the_environment_and_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = (f"{GPT}=m", "gpt-4o=m")
    given = Settings(served_model_name="m", model_aliases=pairs)
    assert Settings(served_model_name="m").model_names.aliases == ()
    for name, value in environment(given).items():
        if name.startswith("BROS_MODEL") or name == "BROS_SERVED_MODEL_NAME":
            monkeypatch.setenv(name, value)
    assert Settings().model_aliases == pairs
    monkeypatch.delenv("BROS_MODEL_ALIASES")
    config = tmp_path / "bros.toml"
    config.write_text('model_aliases = ["gpt-4o-mini=m", "gpt-4o=m"]\n')
    monkeypatch.setenv("BROS_CONFIG", str(config))
    assert Settings().model_names.aliases == (GPT, "gpt-4o")


def test_a_batch_line_may_name_an_alias() -> None:
    models = Settings(served_model_name="m", model_aliases=(f"{GPT}=m",)).model_names
    line = json.dumps(batch_line("a", model=GPT)).encode()
    assert LineReader(CHAT, models, None).read(line, 1).error_code is None
    item = LineReader(CHAT, ModelNames("m"), None).read(line, 1)
    assert item.error_message is not None
    assert f"--model-alias '{GPT}=m'" in item.error_message
