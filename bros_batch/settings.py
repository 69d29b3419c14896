"""Settings of all services, from `BROS_*` environment variables or a TOML file.

`BROS_CONFIG` names the file. Environment variables take precedence over it.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bros_batch.invalid_value import expectation
from bros_batch.model_names import ModelNames
from bros_batch.webhook_url import check_host_entry

# Browsers send origins in lower case, without a path.
ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+")
DEMO_MODEL_DIR = Path(__file__).parent / "demo" / "model"


class SettingsError(Exception):
    """A setting cannot be used; the message names it and says why."""


class Settings(BaseSettings):
    """The settings that the services share: times in seconds, sizes in bytes. Made once per process and immutable."""

    model_config = SettingsConfigDict(env_prefix="BROS_", extra="ignore", frozen=True)

    data_dir: Path = Path("bros-data")
    database_url: str = ""
    redis_url: str = ""
    engine_url: str = ""
    engine_token: str | None = None

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_key: str | None = None
    insecure: bool = False
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins, such as https://chat.example, whose pages may use the API from a browser"
    )

    model: str = str(DEMO_MODEL_DIR)
    served_model_name: str = ""
    model_aliases: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="ALIAS=NAME pairs: other names under which clients may ask for the served model"
    )
    max_model_len: int | None = Field(None, ge=1)

    max_connections: int = Field(1000, ge=1, description="Connections that the web server holds at once")
    max_upload_bytes: int = 16 * 1024**3
    max_body_bytes: int = 32 * 1024**2
    max_line_bytes: int = 16 * 1024**2
    default_max_tokens: int | None = Field(
        None,
        ge=1,
        description="Output limit of requests that set none, in place of the model's and the endpoint's",
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="Whether the sampling parameters in the model's generation_config.json are the defaults",
    )
    stream_comment_s: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Time after which a stream that sends nothing else sends a comment; 0 sends none",
    )
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "mistral", "json"] = Field(
        "auto",
        description="The form in which the model writes tool calls; auto takes it from its chat template",
    )
    reasoning_parser: Literal["auto", "think", "mistral", "none"] = Field(
        "auto", description="The marks around the model's reasoning; auto takes them from its chat template"
    )
    embeddings: bool = Field(
        False,
        description="Whether a model that was not made for embeddings makes them of its last hidden states",
    )
    strict: bool = Field(
        False, description="Whether request fields that are not known are an error; else they are ignored"
    )
    file_retention_s: float = Field(
        30 * 24 * 3600.0,
        ge=0,
        le=100 * 366 * 24 * 3600.0,
        description="How long files are kept, uploads and results alike; 0 keeps them until they are deleted",
    )
    row_retention_s: float = Field(
        30 * 24 * 3600.0,
        ge=0,
        le=100 * 366 * 24 * 3600.0,
        description="How long the rows of a job are kept after it has ended; 0 keeps them",
    )
    max_stored_bytes: int = Field(
        0,
        ge=0,
        description="Bytes of all rows and files above which those of the jobs that ended first go; 0: no limit",
    )

    webhook_url: str = Field(
        "",
        description="URL that is called when a job or a response in the background has ended, unless another is named",
        pattern=r"^(https?://\S+)?$",
    )
    webhook_secret: str | None = Field(
        None, repr=False, description="Secret that signs webhook calls: whsec_BASE64"
    )
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        ("public",),
        description="What jobs may name as their webhook: 'public' for every public address, host names, *.NAME, "
        "addresses and networks. The URL above may lead anywhere",
    )

    ingest_group_lines: int = Field(2000, ge=1, description="Lines that ingest commits at a time")
    queue_s: float = Field(
        4.0,
        gt=0,
        le=3600,
        description="Seconds of work that wait in a model's stream, by the rate of its engines",
    )
    queue_max_items: int = Field(4000, ge=1, description="Number of items that may wait in a model's stream")
    max_attempts: int = Field(
        3, ge=1, description="Number of times that an item may be lost before it fails with engine_lost"
    )
    claim_timeout_s: float = Field(
        60.0, gt=0, description="Idle time after which another engine takes over an item"
    )
    lost_after_s: float = Field(
        60.0, gt=0, description="Time after which a queued item that is missing from Redis counts as lost"
    )
    lease_s: float = Field(30.0, gt=0, description="How long a silent ingest or finalize run keeps its job")
    pump_interval_s: float = Field(1.0, gt=0)
    sweep_interval_s: float = Field(15.0, gt=0)
    visibility_timeout_s: int = Field(60, ge=1)
    restart_after_s: float = Field(
        60.0, gt=0, description="Time after which `up` restarts a service that runs but does not answer"
    )

    def __init__(self, **values: Any) -> None:
        """Read the settings; `values` take precedence. Raises SettingsError."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            raise SettingsError(f"The setting {_shown_name(name)} {expectation(first)}.") from None

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("model_aliases", "allowed_origins", "webhook_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_serializer("model_aliases", "allowed_origins", "webhook_hosts")
    def _joined(self, value: tuple[str, ...]) -> str:
        return ",".join(value)

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} must be an origin such as https://chat.example:8443, or *")
        return value

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            check_host_entry(entry)
        return value

    @model_validator(mode="after")
    def _aliases_name_the_served_model(self) -> Settings:
        for pair in self.model_aliases:
            alias, separator, name = pair.partition("=")
            setting = f"The setting {_shown_name('model_aliases')} is not valid"
            if not alias or not separator:
                raise SettingsError(f"{setting}: the model alias {pair!r} must have the form ALIAS=NAME.")
            if name != self.model_name:
                raise SettingsError(
                    f"{setting}: the model alias {pair!r} must name the served model, which is {self.model_name!r}."
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        config = os.environ.get("BROS_CONFIG")
        if not config:
            return sources
        values = _read_file(Path(config), settings_cls.model_fields.keys())
        return (*sources, InitSettingsSource(settings_cls, values))

    @property
    def model_name(self) -> str:
        """The name that clients use: `served_model_name`, the demo model's name, or `model`."""
        if self.served_model_name:
            return self.served_model_name
        return "bros-demo" if Path(self.model) == DEMO_MODEL_DIR else self.model

    @property
    def model_names(self) -> ModelNames:
        """The served model's name and its aliases."""
        return ModelNames(self.model_name, tuple(pair.partition("=")[0] for pair in self.model_aliases))

    @property
    def files_dir(self) -> Path:
        """The directory that holds the bytes of all files, each under its id."""
        return self.data_dir / "files"

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'bros.db'}"

    @property
    def resolved_redis_url(self) -> str:
        return self.redis_url or f"unix://{self.data_dir / 'run' / 'redis.sock'}"

    @property
    def resolved_engine_url(self) -> str:
        """`unix:///path` or `tcp://host:port` of the engine's socket for chat."""
        return self.engine_url or f"unix://{self.data_dir / 'run' / 'engine.sock'}"


def _shown_name(name: str) -> str:
    """The environment variable of a setting, and its flag where that is named differently."""
    return f"BROS_{name.upper()}" + (" (--model-alias)" if name == "model_aliases" else "")


def _read_file(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Read the settings in a TOML file. Raises SettingsError if it cannot be read or has others than `names`."""
    file = f"The settings file {path} (BROS_CONFIG)"
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # neither TOML nor, perhaps, UTF-8
        raise SettingsError(f"{file} is not valid TOML: {error}.") from None
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name.lower(), names, 1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise SettingsError(f"{file} has an unknown setting '{name}'{hint}")
    return values


@cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
