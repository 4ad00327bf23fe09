"""From bytes to pixels: containers are checked, images decoded by the rules "rgb8-v1", views of them drawn.

Imports ``pipelines.sources``. Every way in which an image can be wrong ends in an ``ImageError``.
"""
