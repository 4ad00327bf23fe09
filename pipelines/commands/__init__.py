"""The command line: each file parses one command or a group of them, calls one public function, and prints.

Commands are listed in the order of the help. Imports every other package when a command runs, and nothing heavy before.
"""

from pipelines.commands.base import app, main

# isort: off
from pipelines.commands import demo, embed, status, forget, label, train, compare, trial, finetune, promote, champion
from pipelines.commands import retrain, predict, export, maintenance, backbones, lists
# isort: on

__all__ = [
    "app", "backbones", "champion", "compare", "demo", "embed", "export", "finetune", "forget", "label", "lists",
    "main", "maintenance", "predict", "promote", "retrain", "status", "train", "trial",
]  # fmt: skip
