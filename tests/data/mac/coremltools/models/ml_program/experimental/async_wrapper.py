"""The part of coremltools 9.0's ``async_wrapper`` that the agent uses, with the other stand-in's arithmetic."""

import json
import os

import numpy

import coremltools
from coremltools.models.compute_plan import MLComputePlan


class MLModelAsyncWrapper:
    @staticmethod
    def from_spec_or_path(
        spec_or_path, weights_dir, compute_units=None, function_name=None, optimization_hints=None, device=None
    ):
        if not isinstance(spec_or_path, str) or not isinstance(weights_dir, str):
            raise TypeError('The "spec_or_path" and "weights_dir" parameters must be of type "str"')
        if not isinstance(compute_units, coremltools.ComputeUnit):
            raise TypeError('The "compute_units" parameter must be of type "ComputeUnit"')
        if device is None or device.session is None:
            raise ValueError("Device is not prepared for debugging.")
        return RemoteMLModelAsyncWrapper(spec_or_path, compute_units, device)


class RemoteMLModelAsyncWrapper:
    def __init__(self, path, unit, device):
        self._path, self._unit, self.device = path, unit, device
        self.load_duration_in_nano_seconds = self.last_predict_duration_in_nano_seconds = None

    async def load(self):
        with open(os.path.join(self._path, "Data/com.apple.CoreML/model.mlmodel"), "rb") as stream:
            content = stream.read()
        if b"classify" in content or b"imageType" in content:
            raise RuntimeError("Incompatible output format detected")  # as the app on the phone says
        with open(os.path.expanduser("~/stand_in.json")) as stream:
            self._weights = json.load(stream)["weights"]
        self.load_duration_in_nano_seconds = 41_000_000

    async def predict(self, inputs, state=None):
        (values,) = inputs.values()
        if values.dtype not in (numpy.float16, numpy.float32, numpy.float64, numpy.int32):
            raise ValueError(f"{values.dtype} is not supported")
        if values.shape != (1, 3, 8, 8) or list(inputs) != ["image"] or not self.device.session.is_alive:
            raise RuntimeError(f"MultiArray shape {values.shape} does not match the shape (1, 3, 8, 8)")
        scores = numpy.array(self._weights) @ values[0].mean((1, 2)) / 255
        shares = numpy.exp(scores - scores.max())
        self.last_predict_duration_in_nano_seconds = 2_500_000 + int(values.sum()) % 1000
        return {"probabilities": (shares / shares.sum())[None].astype(numpy.float32)}

    async def retrieve_compute_plan(self):
        return MLComputePlan(self._unit.name)
