"""The kernels by name."""

from sana_kernels.recurrence import readout, scan
from sana_kernels.summaries import row_norms, summaries

KERNELS = {"row_norms": row_norms, "summaries": summaries, "scan": scan, "readout": readout}
