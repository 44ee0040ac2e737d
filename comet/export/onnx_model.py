"""Write a transformers model as one ONNX file, quantise it to 8 bits, run either."""

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

from cache_tools.errors import CometError, first_line

INPUTS = ("input_ids", "attention_mask")
LARGEST_BYTES = 2**31 - 2**24  # the limit of protobuf is 2 GiB; 16 MiB are left for the graph


class Logits(nn.Module):
    """A model as a function of tensors alone: `input_ids` and `attention_mask` [B, L] int64 to its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_onnx(model: PreTrainedModel, path: Path) -> None:
    """Write a float32 model with dynamic batch size and length.

    Raises CometError if it is too large for one file or torch cannot export it.
    """
    size = sum(tensor.nbytes for tensor in model.parameters())
    if size > LARGEST_BYTES:
        raise CometError(
            f"{model.name_or_path}: {size / 2**30:.1f} GiB of weights, but an ONNX file holds less than 2 GiB; export "
            "a smaller model"
        )
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])  # padded, else the export would take a path for unpadded batches
    batch, length = Dim("batch"), Dim("length")
    try:
        with _quiet_exporter():
            program: Any = torch.onnx.export(
                Logits(model).eval(),
                (mask.clone(), mask),  # any tokens
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise CometError(
            f"{model.name_or_path}: torch cannot export {type(model).__name__} ({first_line(error)})"
        ) from error
    onnx.save(_without_traces(program.model_proto), path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings: of deprecations and optional packages. Its result is checked by running it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _without_traces(proto: Any) -> Any:
    """Remove the exporter's stack traces, which contain paths of this machine; in place, returns the model."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    return proto


def write_int8(source: Path, path: Path) -> None:
    """Quantise the matrices and embeddings of a float32 ONNX model to 8 bits.

    Activations are quantised at run time, each tensor by its own range. Weights are unsigned: sums of signed ones
    overflow on x86 processors without VNNI, which would change the outputs there.
    """
    folded = path.with_name(f"{path.name}.folded")
    try:
        # A tied head is the transposed embedding; folding gives it a matrix of its own, which can be quantised.
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantize_dynamic(folded, path, per_channel=True, weight_type=QuantType.QUInt8)
    finally:
        folded.unlink(missing_ok=True)


def open_session(path: Path) -> Any:
    """Open an onnxruntime session on the CPU with as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: Any, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits [B, classes] or [B, L, classes or vocabulary] of two inputs [B, L]."""
    (logits,) = session.run(["logits"], dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
    return logits
