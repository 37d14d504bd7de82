"""The pictures of README and docs: `python -m tools.pictures [NAME ...]`, all by default.

Photos come with scikit-image (chelsea and coffee are CC0), drawn scenes from the embedded world.
`student` needs the run folder of a training first; CONTRIBUTING.md has its command, and those of
the pictures that are not drawn here.
"""
