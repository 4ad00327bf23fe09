"""What predictions are worth: metrics with intervals, calibration, paired tests, learning curves.

Pure functions of numpy arrays. Imports nothing else of penult.
"""
