"""How linear heads are fitted, many at once: every C, class weight and fold shares each pass over the features.

Imports ``heads.base``. Knows rows and columns, no store and no families.
"""
