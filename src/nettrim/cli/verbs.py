"""The command and its verbs, in the order in which a newcomer needs them."""

from __future__ import annotations

import typer

from nettrim.cli import bench, demo, evaluate, reproduce, shrink, trim, verify
from nettrim.cli.group import Group
from nettrim.version import __version__

app = typer.Typer(
    name="nettrim",
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nettrim {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", metavar="", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(
        False, "--debug", metavar="", help="Show where an error comes from (a traceback), for bug reports."
    ),
) -> None:
    """Prune networks that are already trained, and get a certificate for every layer.

    New here? [bold]nettrim demo[/bold] trains a small network, trims it and explains every number, in under a minute.

    With a model of your own: [bold]nettrim trim model.onnx --data calibration.npz --epsilon 0.05 -o trimmed[/bold],
    then [bold]nettrim eval trimmed/model.onnx --data test.npz[/bold]
    and [bold]nettrim verify trimmed --data calibration.npz[/bold].

    Exit codes: 0 done, 1 a check failed, 2 something given cannot be used, 3 a share is done and others are missing,
    130 interrupted, 143 ended by SIGTERM.
    """


app.command("demo")(demo.command)
app.command("trim")(trim.command)
app.command("eval")(evaluate.command)
app.command("verify")(verify.command)
app.command("shrink")(shrink.command)
app.command("bench")(bench.command)
app.command("reproduce")(reproduce.command)
