"""The command `sana-gateway`: serve the page and the protocols in front of a model server, or check vectors."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sana_client.errors import ClientError

if TYPE_CHECKING:
    from sana_client.gateway.folder import OwnFolder

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Host = Annotated[str, typer.Option(help="Address to listen on; one that others can reach needs --tokens.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of the page and the protocols; 0 takes a free one.")]
Tokens = Annotated[Path | None, typer.Option(metavar="TOML", help="Who may call, one table per name.")]
Media = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Videos that every caller may edit, as samples.")]
Framing = Annotated[str, typer.Option(help="How large frames go out: documented, or current (header and bytes).")]


@app.command()
def serve(
    triton: Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC address of the model server.")],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    tokens: Tokens = None,
    media: Media = None,
    framing: Framing = "documented",
) -> None:
    """Serve the page, the WebSocket protocol and the HTTP protocol for a model server that runs already."""
    run(triton, host, port, tokens, media, framing, lambda folder: nullcontext())


@app.command()
def up(
    repository: Annotated[Path, typer.Argument(help="A repository that sana-build wrote.")],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    tokens: Tokens = None,
    media: Media = None,
    framing: Framing = "documented",
) -> None:
    """Start the model server over a repository, and the gateway in front of it, and end both together."""
    from sana_client.gateway.model_server import free_ports, model_server

    ports = free_ports()
    server = partial(model_server, repository, ports)
    run(f"127.0.0.1:{ports['grpc']}", host, port, tokens, media, framing, server)


@app.command()
def check(
    vectors: Annotated[Path, typer.Option(help="Recorded vectors, a JSON file.")],
) -> None:
    """Compare camera sampling, framing and delta-gzip with recorded vectors. Exits 1 if any section fails."""
    from sana_client.gateway.check import check_file

    failed = 0
    for outcome in check_file(vectors):
        failed += bool(outcome.failures)
        print(outcome.line())
    if failed:
        raise typer.Exit(1)


def run(
    triton: str,
    host: str,
    port: int,
    tokens: Path | None,
    media: Path | None,
    framing: str,
    model_server: Callable[["OwnFolder"], AbstractContextManager[object]],
) -> None:
    """Serve until a signal, in a folder that is gone afterwards."""
    from sana_client.errors import choose
    from sana_client.gateway import serve
    from sana_client.gateway.folder import own_folder
    from sana_client.gateway.framing import FRAMINGS
    from sana_client.gateway.settings import Settings

    choose("framing", framing, FRAMINGS)
    with own_folder() as folder:
        settings = Settings(folder.path, triton, host=host, port=port, tokens=tokens, media=media, framing=framing)
        serve.log_to_stderr()
        serve.run(settings, model_server(folder), lambda address: print(f"open {address}", flush=True))


def main() -> None:
    """Entry point of `sana-gateway`: an error is one sentence on stderr and exit code 1."""
    try:
        app()
    except ClientError as error:
        sys.exit(f"sana-gateway: {error}")
