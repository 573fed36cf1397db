"""The command line: ``plugalign compare``, ``fit``, ``values`` and others.

Each command is a module of `plugalign.commands`, which parses its options and hands over to what
does the work. That is imported when the command runs: ``plugalign --help`` loads neither torch nor
transformers.
"""

from __future__ import annotations

import io
import sys

import typer

from plugalign.commands import options
from plugalign.commands.account import account
from plugalign.commands.bench import bench
from plugalign.commands.capabilities import capabilities
from plugalign.commands.compare import compare
from plugalign.commands.console import fail, message_of
from plugalign.commands.feedback import feedback
from plugalign.commands.fit import fit
from plugalign.commands.judge import judge
from plugalign.commands.maxim import maxim
from plugalign.commands.methods import methods
from plugalign.commands.trace import trace
from plugalign.commands.tune import tune
from plugalign.commands.values import values

INTERRUPTED = 130  # what typer returns where a command was stopped by Ctrl-C

app = typer.Typer(
    help="Plug-in alignment: steer a Hugging Face language model while it decodes.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    compare,
    fit,
    judge,
    tune,
    feedback,
    bench,
    values,
    capabilities,
    maxim,
    trace,
    account,
    methods,
):
    app.command()(command)


def main() -> None:
    """The console entry: an error is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or pipe that has not all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options.check_arguments(arguments)
        status = app(arguments, prog_name="plugalign", standalone_mode=False)
    except typer.TyperException as error:  # an option that is unknown, or of another type
        fail(error.format_message() + options.value_of(getattr(error, "param", None), arguments))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        fail(message_of(error))
    else:
        if status == INTERRUPTED:
            fail(
                "interrupted; what was done is kept, and the same command goes on with it (with "
                "--resume where it has that)"
            )
        raise SystemExit(status)
    raise SystemExit(2)
