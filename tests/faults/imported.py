"""What processes of the battery need; imported once, by the one that they are forked from.

Of penult no more than ``faults.child`` imports: a function that is to strike is wrapped before others import it.
"""

import logging
import warnings

logging.disable(logging.WARNING)  # Beam's, about clients that penult does not use
import apache_beam  # noqa: E402, F401

logging.disable(logging.NOTSET)
import jinja2  # noqa: E402, F401
import lance  # noqa: E402, F401
import rich.progress  # noqa: E402, F401
import scipy.cluster.hierarchy  # noqa: E402
import scipy.optimize  # noqa: E402
import scipy.stats  # noqa: E402, F401
import typer  # noqa: E402, F401

from faults import child  # noqa: E402, F401

warnings.filterwarnings("ignore", "lance is not fork-safe")  # it is until something of it has run
