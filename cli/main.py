"""The `bros-batch` command and its table of subcommands, each imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from cli.failure import Failure, failure_of

# Section -> command -> (module and attribute, one line of help). `--help` reads this table and imports no command.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Bulk jobs": {
        "submit": ("cli.jobs.submit:submit", "Submit a table, documents or requests as a job."),
        "ask": ("cli.jobs.ask:ask", "Answer questions about every row of a file, with probabilities."),
        "list": ("cli.jobs.list_jobs:list_jobs", "List jobs, newest first."),
        "status": ("cli.jobs.status:status", "Show or watch the progress of a job."),
        "log": ("cli.jobs.log:show_log", "Show what happened to a job, calls of its webhook included."),
        "results": ("cli.jobs.results:results", "Fetch the results of a job, finished or not."),
        "errors": ("cli.jobs.results:errors", "Show the failed items of a job and their errors."),
        "cancel": ("cli.jobs.control:cancel", "Cancel a job; finished items keep their results."),
        "pause": ("cli.jobs.control:pause", "Pause a job."),
        "resume": ("cli.jobs.control:resume", "Resume a paused job."),
        "rerun": ("cli.jobs.rerun:rerun", "Compute rows of a job again: the failed ones, or some by number."),
        "export": ("cli.jobs.transfer:export_job", "Write a job with everything to a zip file."),
        "import": ("cli.jobs.transfer:import_job", "Bring an exported job to this server."),
    },
    "Chat": {
        "chat": ("cli.chat:chat", "Ask the model a question, or chat interactively."),
    },
    "Local setup": {
        "demo": ("cli.demo:demo", "Try bulk and chat together on 300 generated documents."),
        "up": ("cli.up:up", "Run all services on this machine."),
        "doctor": ("cli.doctor:doctor", "Check the installation and suggest fixes."),
        "completion": ("cli.completion:completion", "Print the completion script for a shell."),
    },
    "Capacity planning": {
        "simulate": (
            "cli.simulation.simulate:simulate",
            "Simulate an engine under a load and compare policies.",
        ),
        "plan": ("cli.simulation.plan:plan", "Estimate how many engines a load needs."),
    },
    "Single services": {
        "engine": ("cli.services:engine", "Run the engine."),
        "worker": ("cli.services:worker", "Run the Celery worker."),
        "beat": ("cli.services:beat", "Run Celery beat, the periodic scheduler."),
        "web": ("cli.services:web", "Run the web server: API and dashboard."),
        "db": ("cli.database:db", "Create or upgrade the database."),
        "keys": ("cli.keys:keys", "Create, list and revoke API keys."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A command group that imports a command only when it runs."""

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

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            suggestion = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command: {args[0]!r}.{suggestion}", ctx)
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
            raise failure_of(error) from None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="COMMAND ...",
    epilog="Set BROS_URL and BROS_API_KEY to use another server. Run `bros-batch COMMAND --help` for the options of a "
    "command.",
)
@click.version_option(package_name="bros-batch", prog_name="bros-batch")
@click.option("--debug", is_flag=True, envvar="BROS_DEBUG", help="Show a traceback when a command fails.")
def main(debug: bool) -> None:
    """Run bulk LLM document jobs and interactive chat on the same GPU."""


if __name__ == "__main__":
    main()
