"""The command line: stdout is data, stderr is messages, exit codes are 0, 1 (failed), 2 (usage), 130/143 (interrupted).

Nothing here imports torch until a command runs, so `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from transfuse.cli.describe import describe
from transfuse.cli.evaluate import evaluate
from transfuse.cli.fine_tune import fit_answer, fit_classify, fit_tag
from transfuse.cli.fit import fit_app
from transfuse.cli.fit_multimodal import fit_multimodal
from transfuse.cli.fit_text import fit_encode
from transfuse.cli.importance import importance
from transfuse.cli.longest import longest
from transfuse.cli.messages import Stopped, say, stoppable
from transfuse.cli.options import Seed, check_ours
from transfuse.cli.regroup import compare, regroup
from transfuse.cli.use import inspect, predict
from transfuse.errors import ConfigError, DataError, TransfuseError

app = typer.Typer(
    help="Transformers you train on your own text, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the other kind takes a third of a second to import
)
fit_app.command("encode")(fit_encode)
fit_app.command("classify")(fit_classify)
fit_app.command("tag")(fit_tag)
fit_app.command("answer")(fit_answer)
fit_app.command("multimodal")(fit_multimodal)
app.add_typer(fit_app, name="fit")
for command in (predict, evaluate, inspect, regroup, compare, describe, importance, longest):
    app.command()(command)

_options = {"debug": False}


def run() -> None:
    """Entry point: every expected failure becomes one line on stderr and an exit code."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (DataError, ConfigError) as error:
        _fail(error, 2)
    except TransfuseError as error:
        _fail(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Stopped as stopped:
        _fail(stopped.interrupted, 128 + stopped.interrupted.signal_number)
    except KeyboardInterrupt as error:
        _fail(error, 130)
    except (OSError, MemoryError) as error:
        _fail(error, 1)
    except Exception as error:  # ours to mend; the reader is told so, and how to see where
        _fail(error, 1, f"unexpected {type(error).__name__}: {error} (--debug before the command shows where)")


@app.callback(invoke_without_command=True)
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    import transfuse

    _options["debug"] = debug
    if version:
        typer.echo(f"transfuse {transfuse.__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the model and the picture go.")] = Path("runs/demo"),
    seed: Seed = 0,
) -> None:
    """Train a small real model, dates in twenty languages to ISO 8601, and show that it works."""
    from transfuse.cli.demo import folders_of, run_demo

    for folder in folders_of(out):
        check_ours(folder)
    with stoppable():
        run_demo(out, seed, say, typer.echo)


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    say(f"warning: {message}")


def _fail(error: BaseException, code: int, message: str | None = None) -> None:
    if _options["debug"]:
        traceback.print_exception(error)
    say(f"transfuse: {message or str(error) or type(error).__name__}")
    sys.exit(code)
