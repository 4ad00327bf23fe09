"""The frozen CNNs: the table of backbones, their weights, the engines that run them, the canary that checks them.

Imports ``pipelines.images`` and ``pipelines.sources``. Only the kinds of backbones and ``networks`` know Keras models.
"""

DEFAULT = "efficientnet-lite0"
