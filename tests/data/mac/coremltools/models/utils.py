import json
import os
import shutil
from collections import defaultdict
from types import SimpleNamespace


def load_spec(path):
    if not os.path.exists(os.path.join(path, "stand_in.json")):  # one of edgekit's own, for the phone
        return SimpleNamespace(description=SimpleNamespace(input=[SimpleNamespace(name="image")]))
    with open(os.path.join(path, "stand_in.json")) as stream:
        model = json.load(stream)
    defined = defaultdict(str)  # a map of protobuf gives nothing for a key that it lacks
    if model.get("told", True):
        defined["labels"] = json.dumps(model["labels"])
    return SimpleNamespace(
        description=SimpleNamespace(
            input=[SimpleNamespace(name="image")],
            predictedFeatureName="classLabel",
            metadata=SimpleNamespace(userDefined=defined),
        )
    )


def compile_model(model, destination_path=None):
    if not model.endswith(".mlpackage"):
        raise ValueError(
            f"Invalid model file path: '{model}'.Expected a file with .mlpackage or .model extension. "
        )
    if not destination_path.endswith(".mlmodelc"):
        raise ValueError("Invalid destination path")
    shutil.copytree(model, destination_path)
    return destination_path
