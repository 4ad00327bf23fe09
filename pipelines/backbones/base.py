"""What a backbone is: a frozen network, where its weights are, and how pixels become its input.

A kind of backbone is a subclass of :class:`Backbone`; ``table.register`` adds a member. A backbone gives the engines
an inference graph as a file, or a Keras model that they convert. Only one with a Keras model can be fine-tuned or
exported. TensorFlow runs such ones, and files that were made for it; ONNX Runtime those that were made for it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import BackboneError
from featurestore.spec import Preprocessing
from pipelines.backbones.weights import file_digest

if TYPE_CHECKING:
    import keras

    from pipelines.backbones.table import Tap

Content = tuple[bytes, bytes]  # the two files of OpenVINO's IR: graph and weights


@dataclass(frozen=True)
class Normalization:
    """How pixels of 0 to 255 become a network's input: ``(pixels - mean) / std`` per channel.

    Attributes:
        mean, std: per channel, in the order of ``channels``.
        channels: "rgb" or "bgr".
        name: what a feature set's spec calls it; without a name, the spec holds the numbers.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: str = "rgb"
    name: str = ""

    def __str__(self) -> str:
        """Return what stands in a feature set's spec, and so in its fingerprint."""
        values = asdict(self)
        return values.pop("name") or json.dumps(values, sort_keys=True, separators=(",", ":"))

    def scaled(self, pixels: Any) -> Any:
        """Return float32 pixels (…, 3) of 0 to 255, whose channels are in order, less the mean, by the deviation."""
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def applied(self, pixels: np.ndarray, layout: str) -> np.ndarray:
        """Return RGB pixels (n, s, s, 3) of 0 to 255 as a network's input: float32, (n, 3, s, s) if it is "NCHW"."""
        scaled = self.scaled((pixels[..., ::-1] if self.channels == "bgr" else pixels).astype(np.float32))
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2) if layout == "NCHW" else scaled)


@dataclass(frozen=True)
class Backbone:
    """A frozen network.

    Example:
        >>> class Graph(Backbone):
        ...     def published(self, top: bool) -> Path:
        ...         return Path("/models") / f"{self.name}.xml"
        ...     def graph(self, tap: Tap) -> Path:
        ...         return tap.weights_file
        >>> mine = Graph("mine", 224, 384, Normalization(mean=(127.5,) * 3, std=(127.5,) * 3), "features")
        >>> mine.needs_top("features"), str(mine.published(top=False))  # after table.register(mine): --backbone mine
        (False, '/models/mine.xml')

    Attributes:
        name: what people and feature sets call it.
        input_size: pixels, the side of the square that it was trained with.
        width: how many features its last layer has after pooling, at any input size.
        normalization: of its pixels.
        layer: its last feature layer, which is tapped unless another is asked for.
        layout: of the input of its own graph, "NHWC" or "NCHW".
        batch: how many images its graph takes at once; None if any number.
    """

    name: str
    input_size: int
    width: int
    normalization: Normalization
    layer: str
    layout: str = field(default="NHWC", kw_only=True)
    batch: int | None = field(default=None, kw_only=True)

    def preprocessing(self, tap: Tap) -> Preprocessing:
        """Return how a file's bytes become the network's input; all of it is part of a feature set's identity."""
        return Preprocessing(tap.input_size, str(self.normalization), tap.crop)

    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return every layer that can be tapped, in order, with the shape of its output for one image."""
        raise NotImplementedError

    def needs_top(self, layer: str) -> bool:
        """Return whether a layer exists only in the network with its classifier; such a layer is never pooled."""
        return False

    # -- the published weights; those of a file that a user names are at its path

    def published(self, top: bool) -> Path:
        """Return where the published weights are, or will be once they are fetched.

        Args:
            top: with those of the classifier.

        Raises:
            BackboneError: they come in a package that is not installed.
        """
        raise NotImplementedError

    def published_sha256(self, top: bool) -> str:
        """Return the digest of the published weights, in hex.

        Raises:
            BackboneError: they are not on this machine.
        """
        return file_digest(self.published(top))

    def fetch(self, top: bool) -> None:
        """Bring the published weights onto this machine unless they are there.

        Raises:
            BackboneError: that is refused, or the package that holds them is missing.
        """
        if not (path := self.published(top)).is_file():
            raise BackboneError(f"There is no file {path} with the weights of {self.name}: give `--weights FILE`.")

    def at_hand(self) -> str:
        """Return whether the weights are on this machine: "yes", "no" (fetched on first use) or "extra" (a package)."""
        return "yes" if self.published(top=False).is_file() else "no"

    # -- the network: a graph, or a Keras model

    def graph(self, tap: Tap) -> Path | Content | None:
        """Return a graph that OpenVINO reads; None if the engines have to convert the Keras model.

        Its only input is float32 (n, s, s, 3), or (n, 3, s, s) if ``layout`` says so: pixels after ``normalization``.
        A tensor with the name of the tapped layer is its output: of positions (n, h, w, c) or in the layout of the
        input, or of tokens (n, t, d), both pooled by the engine, or (n, d).
        """
        return None

    @property
    def kind(self) -> str:
        """The kind of file that a network was added from; "" if there is none."""
        return ""

    def model_file(self) -> AbstractContextManager[Path] | None:
        """Return a context with the path of the model that the graph was made from; None if there is none.

        Its input and outputs are those of the graph. An engine that it was made for may run it itself.
        """
        return None

    def network(self, top: bool, input_size: int, pooling: str = "none") -> keras.Model:
        """Return the Keras model with random weights.

        Args:
            top: with the classifier.
            input_size: s, of a float32 input (n, s, s, 3) of pixels as ``normalized`` gives them.
            pooling: of the last layer, "avg", "max" or "none".

        Raises:
            BackboneError: there is no Keras model of this backbone.
            UsageError: it cannot be built for this input size.
        """
        raise BackboneError(
            f"{self.name} is a graph without a Keras model, so it can be neither fine-tuned nor run by `--engine "
            "tensorflow`, and exported as `--format openvino` alone: take another of `penult backbones` for that."
        )

    def normalized(self, pixels: Any) -> Any:
        """Return float pixels of 0 to 255, a Keras tensor (n, s, s, 3), as the Keras model takes them."""
        raise NotImplementedError

    def load(self, network: keras.Model, tap: Tap) -> None:
        """Set the weights of what ``network`` returns, from the tap's weights file.

        Raises:
            BackboneError: the file is damaged or of another network.
        """
        raise NotImplementedError


def near(name: str, names: Iterable[str], everything: str = "`penult backbones`") -> str:
    """Return the end of an error message: the nearest names, or where to see ``everything`` if none is near."""
    lower = {known.lower(): known for known in names}
    nearest = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=5)]
    return f": the nearest names are {', '.join(nearest)}" if nearest else f": see {everything}"
