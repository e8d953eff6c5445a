"""Routes as servers and frameworks send them, written by numpy: what the decoders are held against."""

import base64
import io

import numpy as np


def encode(values):
    """The bytes of a tensor in base64, in C order."""
    return base64.b64encode(np.ascontiguousarray(values.numpy()).tobytes()).decode()


def encode_npy(values):
    """A `.npy` file in base64."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values.numpy()))
    return base64.b64encode(file.getvalue()).decode()


def encode_envelope(routes):
    """NeMo-RL's form, `nrlre1:<dtype>:<SxLxK>:<base64>`."""
    return f"nrlre1:{str(routes.dtype).removeprefix('torch.')}:{'x'.join(map(str, routes.shape))}:{encode(routes)}"
