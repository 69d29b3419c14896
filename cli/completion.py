"""`bros-batch completion`: the script by which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands and options.

    \b
        bash:  echo 'eval "$(bros-batch completion bash)"' >> ~/.bashrc
        zsh:   echo 'eval "$(bros-batch completion zsh)"' >> ~/.zshrc
        fish:  bros-batch completion fish > ~/.config/fish/completions/bros-batch.fish

    In zsh, that line must come after the one with compinit.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    program = "bros-batch"
    click.echo(kind(context.find_root().command, {}, program, "_BROS_BATCH_COMPLETE").source())
