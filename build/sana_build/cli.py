"""`sana-build`: parse, resolve, then call one plain function. Heavy imports wait until a command needs them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sana_build.calibrate_command import calibrate
from sana_build.search_command import search
from sana_runtime.errors import SanaError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ABOUT = """Compile SANA-Streaming into engines and a Triton model repository.

[bold]Build and serve the model that runs on any CPU:[/]

  sana-build --model tiny --gpu cpu --output out/repo

  sana-build serve out/repo

  sana-stream input.mp4 --prompt "Turn the video into a pencil drawing" -o out.mp4

[bold]Build for a card that is not in this machine:[/]

  sana-build --model sana-streaming --policy mpq --gpu rtx5090 --output out/rtx5090

A build prints its plan first, checks every engine (on a CPU against PyTorch, for a card the precision of
every layer), and replaces the output folder only when all of it has succeeded."""


@app.callback(invoke_without_command=True, help=ABOUT)
def root(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Named model, for example tiny or sana-streaming.")] = None,
    gpu: Annotated[str, typer.Option(help="Machine that will run the engines.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for the model repository.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="File, folder, hub id or random:SEED. \\[default: the model's own]")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Precision policy. \\[default: the target's own]")] = None,
    backend: Annotated[
        str | None, typer.Option(help="Engines to build, where a card has a choice. \\[default: the target's own]")
    ] = None,
    gdn: Annotated[str, typer.Option(help="GDN cores: native operators, or plugin for our kernels (RTX).")] = "native",
    streams: Annotated[int, typer.Option(help="Streams the server holds at once.")] = 4,
    calibration: Annotated[
        Path | None, typer.Option(help="Ranges from `sana-build calibrate`. \\[default: measured on the shipped clip]")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps finished engines. \\[default: ~/.cache/sana-build]")
    ] = None,
) -> None:
    if context.invoked_subcommand:
        return
    if model is None or output is None:
        raise typer.BadParameter("a build needs --model and --output", ctx=context)
    from sana_build.build import build
    from sana_build.plan import resolve

    console = _console()
    plan = resolve(model, checkpoint, gpu, policy, output, streams, calibration, cache, backend, gdn)
    console.print(plan.table())
    build(plan, console)


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="Named model, for example sana-streaming.")],
    gpu: Annotated[str, typer.Option(help="Card, or rtx for all RTX cards.")] = "cpu",
    policy: Annotated[
        str | None, typer.Option(help="Policy by name, or a .toml file. \\[default: the target's own]")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Check that these weights fit the model.")] = None,
    backend: Annotated[str | None, typer.Option(help="Engines, as in a build. \\[default: the target's own]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what a precision policy makes of a model on a card: cost, roofline, engines. Builds nothing.

    sana-build plan --model sana-streaming --policy mpq --gpu rtx5090
    """
    from sana_build.plan_report import plan_report

    report = plan_report(model, policy, gpu, checkpoint, backend)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        from sana_build.plan_tables import render

        render(report, _console())


@app.command()
def verify(
    golden: Annotated[Path, typer.Option(help="Folder with config.json and the arrays of sections a to i.")],
) -> None:
    """Compare the model definitions with recorded outputs of the original implementation.

    One line per array group: name, relative error, limit, ok or FAIL. Exits 1 if any group fails.
    """
    from sana_export.verify import report, run

    if not report(run(golden), _console()):
        raise typer.Exit(1)


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(help="A repository that sana-build wrote.")],
    http: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    grpc: Annotated[int, typer.Option(help="gRPC port, the one clients stream to.")] = 8001,
    metrics: Annotated[int, typer.Option(help="Prometheus port.")] = 8002,
) -> None:
    """Run a built repository in the bundled Triton server, and restart it if a part of it dies.

    Listens on 127.0.0.1. Ctrl-C or SIGTERM lets running streams finish, then stops cleanly.
    """
    from sana_build.server import Ports
    from sana_build.supervisor import serve as run_server

    run_server(repository, Ports(http, grpc, metrics), _console().print)


@app.command()
def doctor() -> None:
    """Print what this machine can build and serve, and what to install for the rest."""
    from sana_build.doctor import inspect, render

    render(inspect(), _console())


app.command()(calibrate)
app.command()(search)


@app.command("write-checkpoint")
def write_checkpoint(
    output: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    model: Annotated[str, typer.Option(help="Named model whose shapes to write.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Write a checkpoint with random weights in the released layout, to try the import path on."""
    from sana_export.checkpoint import write_random
    from sana_export.configs import MODELS
    from sana_runtime.errors import choose

    write_random(choose("--model", model, MODELS), seed, output)
    _console().print(f"wrote {output}")


def _console() -> "Console":
    from rich.console import Console

    return Console()


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: a refusal is one sentence on stderr and exit code 1."""
    try:
        app(args=arguments)
    except SanaError as error:
        print(f"sana-build: {error}", file=sys.stderr)
        raise SystemExit(1) from None
