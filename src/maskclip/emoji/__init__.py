"""The embedded world: drawn scenes with exact labels, for what must work offline and at once.

    sprites                cut-out emoji, some in colours
    layers                 they and procedural grounds as placed layers, painted to pixels
    captions               what captions say
    scenes                 images with labels and captions, one by one and as a data set

The tiny CLIPs of the package know this world. They were trained by `tools/emoji_clip` of the
repository, which uses everything here but `scenes`: no mask reaches a training.
"""
