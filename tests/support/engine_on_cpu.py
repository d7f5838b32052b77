"""A stand-in for TensorRT's run time where there is no GPU: an "engine" is an ONNX graph, which ONNX Runtime runs.

Builds are never made with this, only what runs engines is. Everything it offers exists in the real library under the
same name (``test_trt.py`` checks that), and it is as strict: a context runs only the shapes it was given, within a
profile, with a workspace that is large enough.
"""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

WORKSPACE = 3 << 20


class Runtime:
    def __init__(self, logger):
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan):
        if not plan.startswith(b"engine:"):
            self.logger.log(Logger.ERROR, "the plan  is\ndamaged")
            return None
        return ICudaEngine(plan.removeprefix(b"engine:"))


class ILogger:
    pass


class Logger:
    INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"


class ICudaEngine:
    batches = (1, 8)

    def __init__(self, model):
        graph = onnx.load_model_from_string(model).graph
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._inputs = {
            i.name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in i.type.tensor_type.shape.dim)
            for i in graph.input
        }
        self._outputs = {o.name: None for o in graph.output}
        self._specs = {t.name: t for t in (*self.session.get_inputs(), *self.session.get_outputs())}
        # Engines list tensors in an order of their own.
        self._names = sorted(self._specs)
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(self.batches)

    def get_tensor_name(self, number):
        return self._names[number]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._specs[name].type

    def get_tensor_shape(self, name):
        return [side if isinstance(side, int) else -1 for side in self._specs[name].shape]

    def get_tensor_profile_shape(self, name, number):
        rest = self.get_tensor_shape(name)[1:]
        return [(1, *rest), (self.batches[number], *rest), (self.batches[number], *rest)]

    def create_execution_context(self, how):
        return IExecutionContext(self, how)

    def create_runtime_config(self):
        return IRuntimeConfig()


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache


class IRuntimeCache:
    content = b""

    def deserialize(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"kernels;"


class IExecutionContext:
    made = 0

    def __init__(self, engine, how):
        assert how == ExecutionContextAllocationStrategy.USER_MANAGED or how.strategy == how.strategy
        IExecutionContext.made += 1
        self.engine = engine
        self.profile = None
        self.shapes = {}
        self.addresses = {}
        self.workspace = 0

    def set_optimization_profile_async(self, number, stream):
        self.profile = number
        return True

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))

    def update_device_memory_size_for_shapes(self):
        assert len(self.shapes) == len(self.engine._inputs)
        return WORKSPACE

    def set_device_memory(self, address, size):
        assert address
        assert size >= WORKSPACE
        self.workspace = size

    def is_stream_capturable(self, stream):
        return True

    def set_tensor_address(self, name, address):
        assert address % 256 == 0
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert self.workspace
        binding = self.engine.session.io_binding()
        batch = next(iter(self.shapes.values()))[0]
        for name, shape in self.shapes.items():
            kind = nptype(self.engine.get_tensor_dtype(name))
            binding.bind_input(name, "cpu", 0, kind, shape, self.addresses[name])
        for name in self.engine._outputs:
            shape = (batch, *self.engine.get_tensor_shape(name)[1:])
            kind = nptype(self.engine.get_tensor_dtype(name))
            binding.bind_output(name, "cpu", 0, kind, shape, self.addresses[name])
        try:
            self.engine.session.run_with_iobinding(binding)
        except Exception:
            return False
        return True


def nptype(kind):
    return {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}[kind]


TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
