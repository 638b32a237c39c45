"""The text_encoder of the ensemble; everything it runs is in the repository's own sana_runtime.zip."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "sana_runtime.zip"))

from sana_runtime.triton_backend import StageModel

TritonPythonModel = partial(StageModel, "text_encoder")
