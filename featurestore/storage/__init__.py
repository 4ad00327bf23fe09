"""How the store is kept on disk: files written whole or not at all, Lance tables with strict commits, the lock.

Imports ``featurestore.errors`` and nothing else of penult. Only ``table`` imports Lance.
"""
