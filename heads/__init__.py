"""Heads: small classifiers on stored features, fitted many at once, predicting with numpy alone.

``heads.registry`` lists the families and fits one of them, ``heads.train`` fits and scores one head,
``heads.comparison`` many. Imports ``featurestore``; a head never touches an image.
"""
