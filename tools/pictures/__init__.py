"""The pictures of README and docs: `python -m tools.pictures [NAME ...]`, all by default.

Photos come with scikit-image (chelsea and coffee are CC0), drawn scenes from the embedded world.
CONTRIBUTING.md has the commands of pictures that are not drawn here.
"""
