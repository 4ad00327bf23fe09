"""How heads are fitted, many at once: linear ones share each pass over the features, dense nets the matrix.

Imports ``heads.base``. Knows rows and columns, no store and no families.
"""
