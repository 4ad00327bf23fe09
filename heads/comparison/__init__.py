"""Compare heads: what to try, the fits, those that were done before, the winner.

Imports families, solvers, evaluation and ``heads.train``; ``heads.reporting`` shows what comes out.
"""
