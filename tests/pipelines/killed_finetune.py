"""Fine-tune in a process of its own, and die by SIGKILL after the first epoch. Run by test_finetune.py.

python killed_finetune.py STORE HEAD
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace

from test_finetune import GENTLE, VIEWS

from faults.child import strike_at
from pipelines.finetuning import finetune

if __name__ == "__main__":
    store, head = sys.argv[1:]
    strike_at("pipelines.finetuning.checkpoint:save", "after", 1, signal.SIGKILL)
    finetune.finetune(store, head, replace(GENTLE, learning_rate=1e-4, schedule="cosine", epochs=3, augmentation=VIEWS))
