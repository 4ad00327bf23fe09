"""The import of Keras and TensorFlow, without the banners that TensorFlow prints."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

_importing = threading.Lock()


def import_tensorflow() -> Any:
    """Return TensorFlow; the first call takes seconds."""
    with _importing:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if os.path.expanduser("~") == "~":  # noqa: PTH111 (there is no home, and TensorFlow would make a folder "~")
            os.environ.setdefault("KERAS_HOME", "/tmp/.keras")  # Keras's own choice if there is no home
        with _silent_stderr() if "tensorflow" not in sys.modules else contextlib.nullcontext():
            import tensorflow

    return tensorflow


def import_keras() -> Any:
    """Return Keras on TensorFlow; the first call takes seconds."""
    import_tensorflow()
    with _importing:
        import keras

    return keras


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Redirect file descriptor 2 to the null device: TensorFlow's C++ writes to it before it reads any log level."""
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
