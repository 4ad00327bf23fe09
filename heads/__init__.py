"""Heads: small classifiers over stored features, fitted by a sweep engine, scikit-learn or Keras, predicting with numpy."""
