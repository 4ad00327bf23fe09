"""Where images come from: folders, manifests, tar shards and tables are listed, and every image is read by its URI.

Imports ``featurestore.errors``. Knows bytes, no pixels.
"""
