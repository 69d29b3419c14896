"""The command line of the engine: one flag per field of `EngineConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import typing
import zlib

from engine.config import EngineConfig, flag_name


def parse_args(arguments: list[str]) -> EngineConfig:
    """Parse the flags into a config. Exits with a message if they are invalid; raises ValueError if a value is."""
    values = vars(_parser().parse_args(arguments))
    values["served_model_name"] = values["served_model_name"] or values["model"]
    # The same after a restart, so that the engine resumes its own items at once, and different on every other host or
    # address.
    address = zlib.crc32(values["listen"].encode())
    values["engine_id"] = values["engine_id"] or f"{socket.gethostname()}-{address:08x}"
    # Secrets may come from the environment, because every user of a host can see command lines.
    values["token"] = values["token"] or os.environ.get("BROS_ENGINE_TOKEN")
    values["redis_url"] = values["redis_url"] or os.environ.get("BROS_REDIS_URL") or None
    return EngineConfig(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bros-batch engine",
        description="Serve one model: compute the items of jobs from Redis and chat requests from a socket.",
    )
    types = typing.get_type_hints(EngineConfig)
    for field in dataclasses.fields(EngineConfig):
        flag = flag_name(field.name)
        kind = types[field.name]
        required = field.default is dataclasses.MISSING and field.name != "served_model_name"
        derived = field.name == "engine_id" or field.default is dataclasses.MISSING
        default = None if derived else field.default
        about = field.metadata["help"] + ("" if default is None else f" (default: {default})")
        if typing.get_origin(kind) is typing.Literal:
            parser.add_argument(flag, choices=typing.get_args(kind), default=default, help=about)
        elif bool in (kind, *typing.get_args(kind)):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=about)
        else:
            scalar = next(t for t in (*typing.get_args(kind), kind) if t in (int, float, str))
            name = scalar.__name__.upper()
            parser.add_argument(
                flag, type=scalar, default=default, required=required, help=about, metavar=name
            )
    return parser
