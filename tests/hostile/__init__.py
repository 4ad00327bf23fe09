"""Hostile files: images, tars and stores that somebody made to do harm, or that are what no penult would write.

``test_<part>.py`` runs a handful under pytest; ``python -m faults`` runs all of them beside the faults of a store.
"""
