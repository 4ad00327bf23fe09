"""Heads: small classifiers over stored features: fitted many at once, predicting with numpy."""
