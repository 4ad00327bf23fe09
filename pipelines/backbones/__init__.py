"""The frozen CNNs: the table of backbones, their weights, the engines that run them, the canary that checks them.

Imports ``pipelines.images`` and ``pipelines.sources``. Only ``networks`` and ``lite`` build Keras backbones.
"""

DEFAULT = "efficientnet-lite0"
