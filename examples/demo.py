"""Serve a built repository, edit the shipped clip through it, and stop the server: what `make demo` runs."""

import subprocess
import sys
from pathlib import Path

from sana_build.server import Ports, TritonServer

ROOT = Path(__file__).parents[1]
OUT = Path("out")
PROMPT = "Turn the scene into a warm watercolor painting"


def main() -> int:
    """Return the exit code of `sana-stream`."""
    with TritonServer(OUT / "repo", Ports.free(), OUT / "demo-server.log") as server:
        print(f"tritonserver is ready at {server.grpc_url}")
        command = [
            str(Path(sys.executable).with_name("sana-stream")),
            str(ROOT / "assets" / "big-buck-bunny.mp4"),
            *("--prompt", PROMPT),
            *("--output", str(OUT / "demo.mp4")),
            *("--contact-sheet", str(OUT / "demo.png")),
            *("--url", server.grpc_url),
        ]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
