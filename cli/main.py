"""The `bros-batch` command: what there is, loaded only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from cli.failure import Failure, explained

# Section -> command -> (where it is, its one line of help). `--help` reads this table and imports nothing.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Bulk": {
        "submit": ("cli.jobs.submit:submit", "Send a file of documents as a job."),
        "list": ("cli.jobs.list_jobs:list_jobs", "List jobs, newest first."),
        "status": ("cli.jobs.status:status", "Show how far a job is."),
        "results": ("cli.jobs.results:results", "Fetch what a job has finished so far."),
        "errors": ("cli.jobs.results:errors", "Show the lines of a job that failed, and why."),
        "cancel": ("cli.jobs.control:cancel", "Stop a job; finished lines stay."),
        "pause": ("cli.jobs.control:pause", "Start no more lines of a job."),
        "resume": ("cli.jobs.control:resume", "Go on with a paused job."),
        "retry": ("cli.jobs.control:retry", "Run a job's failed lines again."),
    },
    "Chat": {
        "chat": ("cli.chat:chat", "Ask the model, in the fast lane."),
    },
    "This machine": {
        "demo": ("cli.demo:demo", "See it all work, on 300 documents, in a minute."),
        "up": ("cli.up:up", "Run every service, until Ctrl-C."),
        "doctor": ("cli.doctor:doctor", "Say what works, what does not, and the mend."),
    },
    "Without a machine": {
        "simulate": ("cli.simulation.simulate:simulate", "Replay a load on a simulated engine."),
        "plan": ("cli.simulation.plan:plan", "Say how many engines a load needs."),
    },
    "One service each": {
        "engine": ("cli.service:engine", "Run the engine, which computes."),
        "worker": ("cli.service:worker", "Run the worker, which moves jobs along."),
        "beat": ("cli.service:beat", "Run the clock, which wakes the worker."),
        "web": ("cli.service:web", "Run the API and the dashboard."),
        "db": ("cli.database:db", "Look after the database."),
    },
}
COMMANDS = {name: place for section in SECTIONS.values() for name, place in section.items()}


class LazyGroup(click.Group):
    """Knows its commands by name; imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in commands.items()], col_max=12)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # `bros-batch list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Failure("", 1) from None
        except KeyboardInterrupt:
            raise Failure("", 130) from None
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            raise explained(error) from None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="COMMAND ...",
    epilog="BROS_URL and BROS_API_KEY say which service to talk to; `bros-batch COMMAND --help` says more.",
)
@click.version_option(package_name="bros-batch", prog_name="bros-batch")
@click.option("--debug", is_flag=True, envvar="BROS_DEBUG", help="Show where an error came from.")
def main(debug: bool) -> None:
    """Bulk LLM document jobs and interactive chat on the same GPU."""


if __name__ == "__main__":
    main()
