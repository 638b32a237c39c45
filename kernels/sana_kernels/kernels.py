"""The kernels by name."""

from sana_kernels.recurrence import readout, scan
from sana_kernels.summaries import prepare, summaries

KERNELS = {"prepare": prepare, "summaries": summaries, "scan": scan, "readout": readout}
