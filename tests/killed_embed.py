"""Embed a corpus in a process of its own, and die by SIGKILL at a named point. Run by test_kill.py.

python killed_embed.py CORPUS STORE "featurestore.tables:Table.commit" before|after NTH
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from conftest import CountingEngine
from pipelines import worker
from pipelines.embed import EmbedOptions, embed


def die_at(point: str, when: str, nth: int) -> None:
    """Wrap the function at ``point`` so that its ``nth`` call kills this process."""
    module_name, path = point.split(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if when == "before" and calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if when == "after" and calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    corpus, store, *kill = sys.argv[1:]
    worker.open_engine = lambda *_args, **_options: CountingEngine(batch_size=8)  # type: ignore[assignment]
    if kill:
        die_at(kill[0], kill[1], int(kill[2]))
    print("ready", flush=True)
    embed(corpus, store, EmbedOptions(shard_images=7))
