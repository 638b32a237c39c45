"""Programs beside the tests, for what cannot be done in a process that interprets kernels."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def printed(program: str, *arguments: object, sources: Sequence[str] = ("kernels",)) -> Any:
    """The JSON in the last line of what a program prints that sees the source roots named, and no others."""
    path = os.pathsep.join(str(ROOT / source) for source in sources)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(program)), *map(str, arguments)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])
