"""The embedded world: drawn scenes with exact labels, and the tiny CLIPs that know them.

    sprites   textures     what there is: cut-out emoji, some in colours; procedural grounds
    layers                 a scene as placed layers, painted to pixels
    captions               what captions say
    examples               images and captions, for training
    scenes                 images, labels and captions, for everything else
    models    losses       the shapes of the tiny CLIPs, and what training asks of them
    train     package      examples -> checkpoint -> the file shipped in `maskclip.clip.pretrained`
    check                  how well a packed model labels scenes

`train` imports nothing that makes a label: the masks of `scenes` never reach it.
"""
