"""A transformers model as one ONNX file, its 8-bit form, and running either."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from cache_tools.errors import CometError

INPUTS = ("input_ids", "attention_mask")
LARGEST_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB; the rest is for the graph


class Logits(nn.Module):
    """A model as a function of tensors alone: `input_ids` and `attention_mask` [B, L] int64 to its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_onnx(model: PreTrainedModel, path: Path) -> None:
    """Writes a float32 model; batch and length stay free.

    Raises CometError when it is too large for one file or torch cannot export it.
    """
    size = sum(tensor.nbytes for tensor in model.parameters())
    if size > LARGEST_BYTES:
        raise CometError(
            f"{model.name_or_path}: {size / 2**30:.1f} GiB of weights, but an ONNX file holds less than 2 GiB; export "
            "a smaller model"
        )
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])  # padded, so that no path for unpadded batches is taken
    batch, length = Dim("batch"), Dim("length")
    try:
        with quiet_exporter():
            program: Any = torch.onnx.export(
                Logits(model).eval(),
                (mask.clone(), mask),  # any tokens will do
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise CometError(f"{model.name_or_path}: torch cannot export a {type(model).__name__} ({reason})") from error
    onnx.save(without_traces(program.model_proto), path)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter warns of its own future and of packages it can do without; what it wrote is judged by running it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def without_traces(proto: Any) -> Any:
    """The same model without the stack traces of the exporter, which name folders of this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    return proto


def write_int8(source: Path, path: Path) -> None:
    """Writes a float32 ONNX model with the weights of its matrices and embeddings in 8 bits.

    Activations are quantised as the model runs, each tensor by its own range. Weights are unsigned: of signed ones the
    sums overflow on x86 processors without VNNI, and the model would say something else there than here.
    """
    folded = path.with_name(f"{path.name}.folded")
    try:
        # A tied head is the transposed embedding: only as a matrix of its own can it be quantised for multiplying.
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantize_dynamic(folded, path, per_channel=True, weight_type=QuantType.QUInt8)
    finally:
        folded.unlink(missing_ok=True)


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU, on as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: Any, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits: [B, classes], or [B, L, classes or vocabulary]. Both inputs [B, L]."""
    (logits,) = session.run(["logits"], dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
    return logits
