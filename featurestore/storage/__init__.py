"""How the store is kept: one protocol for disks and buckets, files written whole or not at all, Lance tables, the lock.

Imports ``featurestore.errors`` and ``layout``, nothing else of penult. Only ``local`` touches the disk for the store,
only ``objects`` a bucket; only ``table``, ``versions`` and ``fragments`` import Lance.
"""

from featurestore.storage import local as local  # it registers itself
from featurestore.storage import objects as objects  # it too
