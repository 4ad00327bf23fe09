"""A command in this process, as its entry point runs it."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import commands


def penult(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command; what came of it, as of a process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["penult", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
    return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    """The object that ends what a command printed with ``--json``."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
