"""How the store is kept: one protocol for disks and buckets, files written whole or not at all, Lance tables, the lock.

Imports ``featurestore.errors`` and ``layout``, nothing else of penult. Only ``local`` touches the disk; only ``table``
and ``fragments`` import Lance.
"""

from featurestore.storage import local as local  # it registers itself
