"""The engine's command line: flags for every field of the config, defaults, and values from the environment."""

from __future__ import annotations

import dataclasses

import pytest

from engine.command_line import parse_args
from engine.config import EngineConfig, flag_name

REQUIRED = ["--model", "m", "--listen", "unix:///run/engine.sock"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("BROS_ENGINE_TOKEN", "BROS_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_those_of_the_config():
    config = parse_args(REQUIRED)
    expected = EngineConfig(model="m", served_model_name="m", listen="unix:///run/engine.sock")
    assert config == dataclasses.replace(expected, engine_id=config.engine_id)


def test_flags_set_fields():
    flags = ["--served-model-name", "n", "--max-num-seqs", "7", "--no-kv-sharing", "--policy", "fcfs"]
    config = parse_args([*REQUIRED, *flags, "--be-share", "0.5", "--async-scheduling"])
    assert (config.served_model_name, config.max_num_seqs, config.kv_sharing) == ("n", 7, False)
    assert (config.policy, config.be_share, config.async_scheduling) == ("fcfs", 0.5, True)


def test_the_engine_id_is_the_same_after_a_restart_and_differs_by_address():
    assert parse_args(REQUIRED).engine_id == parse_args(REQUIRED).engine_id
    assert parse_args(REQUIRED).engine_id != parse_args([*REQUIRED, "--listen", "unix:///other"]).engine_id
    assert parse_args([*REQUIRED, "--engine-id", "e"]).engine_id == "e"


def test_secrets_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("BROS_ENGINE_TOKEN", "secret")
    monkeypatch.setenv("BROS_REDIS_URL", "redis://r")
    config = parse_args(REQUIRED)
    assert (config.token, config.redis_url) == ("secret", "redis://r")
    assert parse_args([*REQUIRED, "--token", "other"]).token == "other"


def test_the_help_describes_every_flag(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(EngineConfig):
        assert flag_name(field.name) in shown
    assert "number of tokens per KV block (default: 16)" in shown
