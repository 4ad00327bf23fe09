"""Show what came out: HTML reports of a comparison and of a night, their charts, TensorBoard event files.

Imports everything else of ``heads``; nothing there imports this package.
"""
