"""The main job: plan what is missing, embed it in Beam, commit once; and which source lists and labels which image.

Imports backbones, images and sources. Only ``beam`` imports Apache Beam.
"""
