"""Train the last layers of a backbone further, together with a head, on the images themselves.

Imports embedding, prediction and training. Only ``trainer`` computes a gradient through a CNN.
"""
