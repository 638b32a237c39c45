"""Serve a built repository, edit the shipped clip through it, and stop the server: what `make demo` runs."""

import asyncio
from pathlib import Path

from rich.console import Console

from sana_build.server import Ports, TritonServer
from sana_client.chunks import Prompts
from sana_client.display import Bar, figures
from sana_client.run import Job, run
from sana_client.session import Limits

OUT = Path("out")
CLIP = Path(__file__).parents[1] / "assets" / "big-buck-bunny.mp4"
PROMPTS = Prompts("Show the video through a thermal camera", ((2.0, "Freeze the scene in cold blue ice"),))
"""Another instruction from the third chunk on."""


def main() -> None:
    with TritonServer(OUT / "repo", Ports.free(), OUT / "demo-server.log") as server, Bar() as bar:
        job = Job(
            source=str(CLIP),
            output=OUT / "demo.mp4",
            prompts=PROMPTS,
            server=server.grpc_url,
            model="sana_streaming",
            seed=0,
            transport="auto",
            limits=Limits(),
            side_by_side=False,
            sheet=OUT / "demo.png",
        )
        report = asyncio.run(run(job, bar))
    with (OUT / "demo-latency.txt").open("w") as file:
        for console in (Console(), Console(file=file, width=100)):
            console.print(figures(report))
    print(f"look at {OUT}/demo.mp4 and {OUT}/demo.png")


if __name__ == "__main__":
    main()
