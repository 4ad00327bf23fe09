"""The kinds of heads, one module per kind of fit: linear, nearest neighbours, kernel machines, dense nets.

Imports ``heads.base`` and ``heads.solvers``. ``heads.registry`` holds the table of all families.
"""
