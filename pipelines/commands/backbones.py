"""The commands on networks: ``penult backbones``, ``backbones add``, ``backbones import`` and ``backbones bench``."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated

import typer

from pipelines.commands.base import STORE, Json, Store, app, print_json, with_storage_options

MaybeStore = Annotated[PurePath | None, STORE]


@app.command()
@with_storage_options
def backbones(
    name: Annotated[str | None, typer.Argument(help="A backbone, to list its layers.")] = None,
    store: MaybeStore = None,
    as_json: Json = False,
) -> None:
    """List the backbones, with a store its own too, or the layers of one of them."""
    from featurestore.store import FeatureStore
    from pipelines.backbones import foreign, kept, networks
    from pipelines.backbones import table as known
    from pipelines.commands import output

    own = {} if store is None else foreign.names(FeatureStore(store).path)
    if name is None:
        rows = [row._asdict() for row in known.table(tuple(own.values()))]
    else:
        kept.check_place(name, store)
        layers = own[name].layers() if name in own else networks.layers(name)
        rows = [{"layer": layer, "shape": list(shape)} for layer, shape in layers]
    output.table(rows)
    print_json(as_json, rows)


@app.command("backbones add")
@with_storage_options
def add(
    name: Annotated[str, typer.Argument(help="What it will be called.")],
    model: Annotated[
        Path,
        typer.Argument(help="An ONNX, OpenVINO (.xml), LiteRT or Keras file, or a SavedModel's folder."),
    ],
    spec: Annotated[Path, typer.Option(help="How pixels become its input, and which output to take: a TOML file.")],
    store: Store,
    unproved: Annotated[
        bool, typer.Option("--unproved", help="Take a spec without a reference picture and its vector.")
    ] = False,
    no_copy: Annotated[
        bool, typer.Option("--no-copy", help="Leave the model where it is; the store still keeps its graph.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a network of your own to the store, then embed with --backbone NAME.

    A picture and its vector, which the spec names, must give the same vector here. If they do not, the usual
    mistakes are tried, and the message says which one it is.
    """
    from pipelines.backbones import addition
    from pipelines.commands import output

    added = addition.add(store, name, model, spec, unproved, not no_copy)
    output.added_backbone(added)
    print_json(as_json, added.to_json())


@app.command("backbones import")
def bring(
    source: Annotated[str, typer.Argument(help="timm:NAME, or hf:ID with an ID or a folder of Hugging Face.")],
    to: Annotated[Path, typer.Option(help="The folder to make: model.onnx, spec.toml, ref.png, ref.npy.")],
    random: Annotated[bool, typer.Option("--random", help="Draw the weights with a fixed seed: to try.")] = False,
    pooling: Annotated[
        str | None, typer.Option(help="Of hf: cls, avg or pooler, where the type of the model leaves it open.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a network of timm or transformers where torch is, for `penult backbones add` here or elsewhere.

    The folder has its proof: a picture, and the vector that torch computes with the network's own transform.
    """
    from pipelines.backbones import importing
    from pipelines.commands import output

    made = importing.bring(source, to, random, pooling)
    output.imported_backbone(made)
    print_json(as_json, made.to_json())


@app.command("backbones bench")
@with_storage_options
def bench(
    name: Annotated[str, typer.Argument(help="A backbone of the table, or one of the store's own.")],
    store: MaybeStore = None,
    seconds: Annotated[float, typer.Option(help="How long to measure each precision and batch size.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Measure how many images per second a backbone takes on this machine, by precision and batch size.

    Without reading and decoding. The last column is what a million images would take.
    """
    from pipelines.backbones import speed
    from pipelines.commands import output

    rows = speed.measure(name, store, seconds)
    output.table(rows)
    print_json(as_json, rows)
