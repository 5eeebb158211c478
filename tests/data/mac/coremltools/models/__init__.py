import json
import os

import numpy
from PIL import Image


class CompiledMLModel:
    def __init__(self, path, compute_units):
        if not isinstance(path, str):
            raise TypeError('The "path" parameter must be of type "str".')
        import coremltools

        if not isinstance(compute_units, coremltools.ComputeUnit):
            raise TypeError('The "compute_units" parameter must be of type: "coremltools.ComputeUnit".')
        with open(os.path.join(path, "stand_in.json")) as stream:
            self._model = json.load(stream)
        if self._model.get("broken"):
            raise RuntimeError(
                "Error compiling model: Failed to build the model execution plan using a model file"
            )

    def predict(self, data):
        (image,) = data.values()
        if list(data) != ["image"]:
            raise RuntimeError(f"Feature image is required but not specified; got {list(data)}")
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            raise TypeError("Image input, 'image' must be of type PIL.Image.Image in the input dict")
        if image.size != (8, 8):
            raise RuntimeError(f"Image size {image.size} not in allowed set of image sizes")
        scores = numpy.array(self._model["weights"]) @ numpy.asarray(image, float).mean((0, 1))
        shares = numpy.exp((scores - scores.max()) / 255)
        shares /= shares.sum()
        named = dict(zip(self._model["labels"], shares.tolist(), strict=True))
        likeliest = max(named, key=named.get)
        # In no order of its own, as Core ML's dictionaries.
        return {"classLabel": likeliest, "classLabel_probs": dict(sorted(named.items(), reverse=True))}
