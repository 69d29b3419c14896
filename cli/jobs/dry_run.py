"""`submit --dry-run`: rows, tokens, rejected rows, the first prompt and the time to finish, without a job."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import safe, time_left
from bros_batch.forecast_text import effect_on_chats, reused_rows
from cli.failure import USAGE_ERROR, Failure
from cli.output import note, print_json

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client

# Of more lines than this, or of more bytes, a random sample is sent.
SAMPLE_LINES = 3000
SAMPLE_BYTES = 4 * 1024**2
MAX_SAMPLED_BYTES = 1024**2
MAX_LINE_BYTES = 8 * 1024**2
MAX_PROMPT_CHARS = 2000
SHOWN_REJECTED = 5
UTF8_BOM = b"\xef\xbb\xbf"


def show_forecast(client: Client, lines: Iterable[bytes], body: Mapping[str, Any], as_json: bool) -> None:
    """Read all lines, and print what the job with this body over them would be."""
    sampler = Sampler()
    for number, line in enumerate(_whole(lines), start=1):
        sampler.add(number, line)
    sampled = sampler.sample()
    if not sampled:
        size = f"{MAX_LINE_BYTES // 1024**2} MiB"
        problem = f"Every row is larger than {size}." if sampler.rows else "The file is empty."
        raise Failure(problem, USAGE_ERROR)
    answer = client.post("/v1/batches/forecast", {**_job(body), "rows": sampler.rows, "lines": sampled})
    if as_json:
        print_json(answer)
    else:
        click.echo(_report(answer))
    note("Nothing was submitted.")


def _job(body: Mapping[str, Any]) -> dict[str, Any]:
    job = {name: body[name] for name in ("endpoint", "priority", "defaults")}
    job["fresh"] = bool(body.get("fresh"))
    id_field = (body.get("source") or {}).get("id_field")
    return job if id_field is None else {**job, "id_field": id_field}


@dataclass(slots=True)
class Sampler:
    """A random sample of lines in bounded memory. The first line is always in it, and no very long one.

    Each line draws a number, and those below a threshold are kept. When they become too many, the threshold is halved.
    """

    rows: int = 0
    _threshold: float = 1.0
    _size: int = 0
    _first: tuple[int, bytes] | None = None
    _kept: list[tuple[float, int, bytes]] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, number: int, line: bytes) -> None:
        self.rows += 1
        if self._first is None and len(line) <= MAX_LINE_BYTES:
            self._first = (number, line)
            return
        drawn = self._random.random()
        if drawn >= self._threshold or len(line) > MAX_SAMPLED_BYTES:
            return
        self._kept.append((drawn, number, line))
        self._size += len(line)
        while len(self._kept) >= SAMPLE_LINES or self._size > SAMPLE_BYTES:
            self._threshold /= 2
            self._kept = [each for each in self._kept if each[0] < self._threshold]
            self._size = sum(len(each[2]) for each in self._kept)

    def sample(self) -> list[dict[str, Any]]:
        """The first line, then the others in random order, so that any beginning of the list is a sample as well."""
        chosen = [] if self._first is None else [self._first]
        chosen += [(number, line) for _, number, line in sorted(self._kept)]
        return [{"row": number, "line": _text(number, line)} for number, line in chosen]


def _whole(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield whole lines; of a very long one, which comes in pieces, no more than shows that it is long."""
    line = b""
    is_first = True
    for piece in pieces:
        if len(line) <= MAX_LINE_BYTES:
            line += piece
        if not piece.endswith(b"\n"):
            continue
        yield line.removeprefix(UTF8_BOM) if is_first else line
        line, is_first = b"", False
    if line:
        yield line.removeprefix(UTF8_BOM) if is_first else line


def _text(number: int, line: bytes) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        return json.dumps({"_error": f"Row {number}: this is not valid UTF-8."})


def _report(answer: Mapping[str, Any]) -> str:
    rows, sampled, rejected = answer["rows"], answer["sampled"], answer["rejected"]
    is_exact = sampled == rows
    about = "" if is_exact else "about "
    looked_at = "" if is_exact else f"; {sampled:,} of them were looked at"
    found = [("model", answer["model"]), ("rows", f"{rows:,}{looked_at}")]
    if rejected["rows"]:
        found.append(("rejected", f"{about}{rejected['rows']:,}"))
        found += [("", each["message"]) for each in rejected["data"][:SHOWN_REJECTED]]
    tokens = f"{about}{answer['input_tokens']:,} in, about {answer['output_tokens']:,} out"
    found.append(("tokens", tokens))
    found += [("reused", reused)] if (reused := reused_rows(answer["reused_rows"])) else []
    nothing_runs = rejected["rows"] == rows
    if nothing_runs:
        which = "every row" if is_exact else "every row that was looked at"
        time = f"none: {which} is rejected, so nothing would be computed"
    elif answer["forecast"] is None:
        time = "not known yet: no engine has computed bulk; `--first 20` shows how fast it is"
    else:
        time = f"{time_left(answer['forecast'])} from now, with the jobs and chats of now"
    found.append(("time", time))
    if not nothing_runs and (effect := effect_on_chats(answer["chats"])):
        found.append(("chats", effect))
    lines = [f"{name and name + ':':<9} {safe(value)}" for name, value in found]
    if answer["first"] is not None:
        first = answer["first"]
        text = first["prompt"]
        if text is None:
            text = json.dumps(first["request"], ensure_ascii=False, indent=2)
        cut = " ..." if len(text) > MAX_PROMPT_CHARS else ""
        lines += [
            "",
            f"The {'prompt' if first['prompt'] is not None else 'request'} of row {first['row']}:",
            "",
        ]
        lines.append(safe(text[:MAX_PROMPT_CHARS]) + cut)
    return "\n".join(lines)
