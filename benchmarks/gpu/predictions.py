"""What loss, step and views took on a GPU before, and what was predicted, beside what the rows say.

    python -m benchmarks.gpu.predictions

Before: one H200, commit 00359b8. Predicted: calculated from it, with products at 700 TFLOP/s and
each pass over scores, and each sum into the gradients of targets, at the memory's bandwidth. Of the
step: what pooling, additions and half of the ReLUs took is gone, and the host where it was slower.
"""

from __future__ import annotations

import sys

from benchmarks.harness import ROOT
from benchmarks.report.goals import GOALS, judge
from benchmarks.report.rows import Rows, read_rows, table

# Label of a goal -> before, and predicted.
PREDICTED = {
    "GPU, B = 256, D = 1024, against torch.compile": ("0.44x", "3.5x"),
    "GPU, B = 1024, D = 2048, against torch.compile": ("0.68x", "1.45x"),
    "GPU, B = 1024, D = 2048, against the original": ("2.3x", "5.0x"),
    "GPU, B = 1024, D = 2048, of the product peak": ("36 %", "76 %"),
    "GPU, B = 4096, D = 2048, of the product peak": ("46 %", "71 %"),
    "GPU, B = 4096, extra memory, of the original's": ("0.006x", "0.045x"),
    "GPU, B = 4096, least memory, of the product peak": ("1.8 %", "57 %"),
    "GPU, B = 4096, least memory, of the original's": ("0.001x", "0.004x"),
    "GPU, B = 65,536, D = 2048": ("39.4 s", "19 s"),
    "GPU, B = 256, extra memory, of torch.compile's": ("4.6x", "1.3x"),
    "GPU, float32, B = 1024, D = 2048, against the original": ("0.95x", "3x"),
    "GPU, B = 256, D = 1024, host": ("6.4 ms", "0.45 ms"),
    "GPU, 256 of 256² to 128², kernel": ("0.48 ms", "0.1 ms"),
    "GPU, 256 of 256² to 128², drawing included": ("1.24 ms", "0.25 ms"),
    "GPU, 256 of 32², drawing included": ("not measured", "0.1 ms"),
    "GPU, imagenet128, batch 480": ("2,873 images/s", "3,450 images/s"),
    "GPU, imagenet128, batch 480, of the product peak": ("50 %", "60 %"),
    "GPU, cifar10, batch 200": ("5,112 images/s", "9,000 images/s"),
    "GPU, stl10, batch 200": ("2,611 images/s", "3,750 images/s"),
    "GPU, imagenet128, batch 480, peak memory": ("27.1 GB", "22 GB"),
    "GPU, digits, 600 steps": ("24 s", "6 s"),
}


def compared(rows: Rows) -> str:
    """Goals on a GPU: what was before, what was predicted, what the rows say."""
    goals = {label: goal for block in GOALS.values() for label, goal in block.items()}
    body = [
        [label, goals[label].text, *known, *judge(goals[label], rows)]
        for label, known in PREDICTED.items()
    ]
    return table(["", "goal", "before", "predicted", "measured", ""], body)


def main() -> int:
    print(compared(read_rows(ROOT)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
