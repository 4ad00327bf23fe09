"""Jobs over images: embed, train, compare, predict, fine-tune, export, and the command line that starts them.

Imports ``heads`` and ``featurestore``. Heavy libraries are imported when a job needs them.
"""
