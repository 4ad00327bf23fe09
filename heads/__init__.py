"""Heads: small classifiers over stored features, fitted by scikit-learn or Keras, predicting with numpy."""
