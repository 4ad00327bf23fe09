"""Show what came out: the HTML report with its charts, TensorBoard event files.

Imports everything else of ``heads``; nothing there imports this package.
"""
