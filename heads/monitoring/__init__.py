"""What changed in the data between two trainings: drift of new images, near-copies between splits.

Imports families, solvers and evaluation; works on features in memory and knows no store.
"""
