from types import SimpleNamespace


class MLCPUComputeDevice:
    pass


class MLNeuralEngineComputeDevice:
    pass


def operation(kind, name):
    return SimpleNamespace(operator_name=kind, outputs=[SimpleNamespace(name=name)])


class MLComputePlan:
    """Two operators: the first on the Neural Engine where that is allowed; and a constant."""

    def __init__(self, unit):
        self._unit = unit
        operations = [operation("const", "w"), operation("ios15.conv", "y"), operation("ios15.softmax", "z")]
        main = SimpleNamespace(block=SimpleNamespace(operations=operations))
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions={"main": main}))

    @classmethod
    def load_from_path(cls, path, compute_units):
        if not path.endswith(".mlmodelc"):
            raise ValueError("The path must be the location of the mlmodelc directory.")
        return cls(compute_units.name)

    def get_compute_device_usage_for_mlprogram_operation(self, one):
        if one.operator_name == "const":
            return None
        fast = one.operator_name.endswith("conv") and self._unit == "ALL"
        device = MLNeuralEngineComputeDevice() if fast else MLCPUComputeDevice()
        return SimpleNamespace(preferred_compute_device=device, supported_compute_devices=[device])

    def get_estimated_cost_for_mlprogram_operation(self, one):
        return SimpleNamespace(weight=0.75 if one.operator_name.endswith("conv") else 0.25)
