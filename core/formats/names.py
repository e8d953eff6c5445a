"""The classes and functions that dumps name in their pickles; none of them is ever imported or called."""

from __future__ import annotations

STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
}
TENSOR = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
TENSOR_OF_DTYPE = "torch._utils._rebuild_tensor_v3"
TYPED = "torch._tensor._rebuild_from_type_v2"
JAGGED = "torch.nested._internal.nested_tensor._rebuild_njt"
STRIDED = "torch._utils._rebuild_nested_tensor"
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
TORCH = {
    "torch.Tensor",
    "torch.Size",
    "torch.device",
    "torch.jagged",
    "torch.strided",
    "torch.storage.UntypedStorage",
    "torch.storage._load_from_bytes",
    "torch.serialization._get_layout",
    "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_parameter",
    "torch.nested._internal.nested_tensor.NestedTensor",
    "torch._dynamo.decorators._DimRange",
    *(f"torch.{name}" for name in (*STORAGES, *DTYPES, *FLOATS)),
    *TENSOR,
    TENSOR_OF_DTYPE,
    TYPED,
    JAGGED,
    STRIDED,
}

ARRAY = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"})
BUFFER = frozenset({"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"})
SCALAR = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"})
ENCODED = "_codecs.encode"
NUMPY = {"numpy.ndarray", "numpy.dtype", ENCODED, *ARRAY, *BUFFER, *SCALAR}

EMPTY = frozenset({"builtins.bytes", "__builtin__.bytes"})  # what protocol 2 calls for no bytes at all
DICTS = frozenset({"collections.OrderedDict", "collections.defaultdict"})
PYTHON = {
    *DICTS,
    *EMPTY,
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "bytearray")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "complex", "slice")),
    "uuid.UUID",
    "datetime.datetime",
}

CONSOLIDATED = "tensordict._reductions._rebuild_tensordict_files_consolidated"
MADE = "tensordict._reductions._make_td"
STACK = "tensordict.tensorclass.NonTensorStack"
SINGLE = "tensordict.tensorclass.NonTensorData"
TENSORDICT = {
    CONSOLIDATED,
    MADE,
    STACK,
    SINGLE,
    "tensordict._td.TensorDict",
    "tensordict.tensordict.TensorDict",
    "tensordict.TensorDict",
    "tensordict._lazy.LazyStackedTensorDict",
    "tensordict.utils._LockedSchema",
}

PROTO = frozenset({"verl.protocol.DataProto"})
SKYRL = "skyrl.backends.skyrl_train.training_batch", "skyrl_train.training_batch"
REBUILT = frozenset(f"{module}._rebuild_tensor_batch" for module in SKYRL)
BATCH = frozenset(f"{module}.{name}" for module in SKYRL for name in ("TrainingInputBatch", "TensorBatch"))
ELSEWHERE = frozenset({"slime.utils.tensor_store.TensorRef"})  # a tensor that the run keeps in a file of its own
FRAMEWORKS = {*ELSEWHERE, *PROTO, *REBUILT, *BATCH, *(f"{module}.TensorList" for module in SKYRL)}

NAMES = frozenset({*TORCH, *NUMPY, *PYTHON, *TENSORDICT, *FRAMEWORKS})
