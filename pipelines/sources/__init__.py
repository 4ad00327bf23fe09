"""Where images come from: folders, prefixes, manifests, tars and tables are listed, and every image is read by its URI.

Imports ``featurestore.errors`` and ``featurestore.storage.buckets``. Knows bytes, no pixels.
"""
