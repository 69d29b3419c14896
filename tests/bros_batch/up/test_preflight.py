"""The checks before a start; each failure is one sentence."""

from __future__ import annotations

import os
import shutil
import socket

import pytest

from bros_batch.settings import DEMO_MODEL_DIR, Settings
from bros_batch.up.preflight import StartupError, check_data_dir, check_exposure, check_model, choose_port
from tests.factories_text import make_text_model


def sentence(call, *arguments, **options) -> str:
    with pytest.raises(StartupError) as error:
        call(*arguments, **options)
    assert str(error.value).endswith(".")
    return str(error.value)


def test_a_model_directory_must_be_complete(tmp_path):
    model = make_text_model(tmp_path / "model")
    assert "lacks *.safetensors;" in sentence(check_model, str(model))
    check_model(str(model), needs_weights=False)
    (model / "model.safetensors").touch()
    check_model(str(model))
    (model / "tokenizer.json").unlink()
    assert "lacks tokenizer.json;" in sentence(check_model, str(model))


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/model", "model", "a/b/c"])
def test_a_path_that_does_not_exist_is_rejected(name):
    assert sentence(check_model, name).startswith(f"There is no model at {name}; set --model")


def test_a_name_on_the_hub_passes():
    check_model("Qwen/Qwen3-0.6B")


def test_a_missing_demo_model_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("bros_batch.up.preflight.DEMO_MODEL_DIR", tmp_path / "model")
    assert "demo model is missing" in sentence(check_model, str(tmp_path / "model"))
    assert DEMO_MODEL_DIR.name == "model"


def test_the_data_directory_is_made_private(tmp_path):
    check_data_dir(tmp_path / "a" / "data")
    assert (tmp_path / "a" / "data").stat().st_mode & 0o777 == 0o700


def test_an_existing_data_directory_is_made_private(tmp_path):
    data = tmp_path / "data"
    (data / "run").mkdir(parents=True)
    data.chmod(0o755)
    check_data_dir(data)
    assert data.stat().st_mode & 0o777 == 0o700


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    tmp_path.chmod(0o755)
    assert "holds other files" in sentence(check_data_dir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_file_is_rejected_as_data_directory(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in sentence(check_data_dir, tmp_path / "file")


@pytest.mark.skipif(os.getuid() == 0, reason="root can write everywhere")
def test_a_directory_that_cannot_be_created_is_reported():
    assert "cannot be used: " in sentence(check_data_dir, "/proc/data")


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 1024**2)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "has only 5 MB left" in sentence(check_data_dir, tmp_path / "data")


def test_other_machines_need_a_key():
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_exposure(Settings(host=host))
    for host in ("0.0.0.0", "::", "192.168.1.2", "box.lan"):
        assert "set BROS_API_KEY" in sentence(check_exposure, Settings(host=host))
        check_exposure(Settings(host=host, api_key="secret"))
        check_exposure(Settings(host=host, insecure=True))


def test_a_busy_port_is_reported():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert sentence(choose_port, "127.0.0.1", port).startswith(f"Port {port} on 127.0.0.1 is in use;")
    assert choose_port("127.0.0.1", 0) > 0
    assert "Cannot listen on 192.0.2.1:0" in sentence(choose_port, "192.0.2.1", 0)
