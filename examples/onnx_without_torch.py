"""Label photos with a file of `maskclip export`: numpy, Pillow and ONNX Runtime, and no PyTorch.

python examples/onnx_without_torch.py model.onnx photo.jpg labels.png
"""

import json
import sys

try:
    import numpy as np
    import onnxruntime
    from PIL import Image
except ImportError as error:
    sys.exit(f"{error.name} is not installed: pip install numpy pillow onnxruntime")

model, photo, out = sys.argv[1:4]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}

image = Image.open(photo).convert("RGB")
scale = about["short_side"] / min(image.size)  # the size that the model is made for
small = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
pixels = np.asarray(small).transpose(2, 0, 1)[None]  # (1, 3, H, W) uint8
labels, scores = session.run(["labels", "scores"], {"images": np.ascontiguousarray(pixels)})

found = Image.fromarray(labels[0].astype(np.uint8))  # a palette has 256 classes at most
found = found.resize(image.size, Image.Resampling.NEAREST)
found.putpalette([value for color in about["palette"] for value in color])
found.save(out)
for label, name in enumerate(about["classes"]):
    share = (labels == label).mean()
    if share:
        print(f"{name}: {share:.1%}, score {scores[labels == label].mean():.2f}")
