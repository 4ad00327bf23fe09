"""Published evaluations of frozen features, on stored ones, one module per source.

Imports ``heads.evaluation``, solvers and estimators. ``table`` lists them all and makes any of them.
"""
