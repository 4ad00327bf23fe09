"""Where images come from: folders, manifests and tar shards are listed, and every image is read by its URI.

Imports ``featurestore.errors``. Knows bytes, no pixels.
"""
