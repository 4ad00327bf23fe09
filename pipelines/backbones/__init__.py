"""The frozen CNNs: the table of backbones, their weights, the engines that run them, the canary that checks them.

Imports ``pipelines.images`` and ``pipelines.sources``. Only the kinds of backbones and ``networks`` know Keras models.
"""

DEFAULT = "efficientnet-lite0"
PUBLISHED = "imagenet"  # in place of a weights file: the backbone's own weights
MIN_INPUT_SIZE, MAX_INPUT_SIZE = 32, 2048  # pixels; no network of the table was trained below 224 or above 600
