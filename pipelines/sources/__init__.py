"""Where images come from: folders, manifests, tar shards and tables of images are listed, and every image is read by its URI.

Imports ``featurestore.errors``. Knows bytes, no pixels.
"""
