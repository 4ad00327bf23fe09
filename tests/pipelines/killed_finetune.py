"""Fine-tune in a process of its own, and die by SIGKILL after the first epoch. Run by test_finetune.py.

python killed_finetune.py STORE HEAD FOLDER-OF-WEIGHTS
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

from test_finetune import GENTLE, VIEWS

import seeded
from faults.child import strike_at
from pipelines.finetuning import finetune

if __name__ == "__main__":
    store, head, folder = sys.argv[1:]
    strike_at("pipelines.finetuning.checkpoint:save", "after", 1, signal.SIGKILL)
    options = replace(GENTLE, learning_rate=1e-4, schedule="cosine", epochs=3, augmentation=VIEWS)
    with seeded.small(Path(folder)):
        finetune.finetune(store, head, options)
