"""What nearly every test imports; in one process, from which those of the mutants are forked."""

import os

os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow's banners; a forked process has an output of its own

import apache_beam  # noqa: E402, F401
import jinja2  # noqa: E402, F401
import keras  # noqa: E402, F401
import lance  # noqa: E402, F401
import pytest  # noqa: E402, F401
import rich.progress  # noqa: E402, F401
import scipy.cluster.hierarchy  # noqa: E402
import scipy.optimize  # noqa: E402
import scipy.stats  # noqa: E402, F401
import sklearn.datasets  # noqa: E402, F401
import typer.testing  # noqa: E402, F401
