"""Beam without what it does over and over: of a run of a few images this takes a third of the time.

It builds a parser of options for each look at one, fifty of them a run, and inspects each method of each DoFn twelve
times for states and timers, of which penult has none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from pipelines.embedding import embed

import_beam = embed._import_beam


@cache
def quickly() -> Callable[..., None]:
    """Import Beam as penult does, and replace the two."""
    run = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.transforms import userstate

    view_as = PipelineOptions.view_as

    def same_view(self: PipelineOptions, kind: type) -> Any:
        """All views of some options share their values; one of each kind will do."""
        views = self.__dict__.setdefault("_views", {})
        if kind not in views:
            views[kind] = view_as(self, kind)
            views[kind].__dict__["_views"] = views
        return views[kind]

    PipelineOptions.view_as = same_view
    userstate.get_dofn_specs = lambda _: (set(), set())
    return run


def install() -> None:
    """Have runs of this process import Beam so."""
    embed._import_beam = quickly
