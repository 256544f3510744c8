"""Writes the modules of encoders (products, normalisations, activations) with the operators of a target."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper

from tasks.export.encoder_description import FeedForward, Linear, Norm, Rotation, Step, Table, Values
from tasks.export.graph_builder import MICROSOFT_DOMAIN, GraphBuilder
from tasks.inference.packed_shapes import PACK_TOKENS

# Operator and attributes of each activation, by the name that transformers gives it.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
}
FUSED_GATE_WIDTHS = (1280, 2560, 5120)  # all that BiasSplitGelu computes
BIASED_ACTIVATIONS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}


@dataclass(frozen=True)
class Target:
    """What a graph is written for.

    Attributes:
        row: tokens of a row into which sentences are packed; 0: each sentence is a row.
        fused: ONNX Runtime's own operators for attention, embeddings and biased activations.
        fused_norm: ONNX Runtime's operator for sum and normalisation. It is fast on GPUs; on CPUs (1.31) it takes
            several times as long as its parts.
        rotated_features: how many features RotaryEmbedding may rotate as one head; 0: those of a head. On GPUs (1.31)
            it starts a block of threads for each head of each token, with a thread for each feature, at most 1,024;
            with 64 it takes ten times as long as its memory traffic.
        fused_gate: ONNX Runtime's operator for a gated GELU, which only its CUDA provider computes.
        products: type of products, attention and activations.
        residual: type of the residual stream and normalisations.
    """

    row: int = 0
    fused: bool = False
    fused_norm: bool = False
    rotated_features: int = 0
    fused_gate: bool = False
    products: type = np.float32
    residual: type = np.float32


PORTABLE_TARGET = Target()
CPU_TARGET = Target(fused=True)
FP32_RESIDUAL_TARGET = Target(PACK_TOKENS, fused=True, fused_norm=True, rotated_features=512, products=np.float16)
CUDA_TARGET = replace(FP32_RESIDUAL_TARGET, residual=np.float16)
CUDA_ONLY_TARGET = replace(CUDA_TARGET, fused_gate=True)


class ModuleWriter:
    """Adds modules to a new graph; weights keep torch's names."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.model = onnx.ModelProto()
        self.model.graph.name = "encoder"
        self.builder = GraphBuilder(self.model.graph)
        self.add, self.constant = self.builder.add, self.builder.constant

    def steps(self, steps: tuple[Step, ...], tensor: str, dtype: type, flat: bool = False) -> tuple[str, type]:
        """Apply steps to a tensor of a type, flat if it is [B, K]; return the result and its type."""
        for step in steps:
            wanted = self.target.residual if isinstance(step, Norm) else self.target.products
            tensor, dtype = self.cast(tensor, dtype, wanted), wanted
            if isinstance(step, Norm):
                tensor = self.normalise(step, tensor)
            elif isinstance(step, Linear):
                tensor = self.flat_linear(step, tensor) if flat else self.linear(step, tensor)
            else:
                tensor = self.activate(step, tensor)
        return tensor, dtype

    def product(self, linear: Linear, tensor: str) -> str:
        """Multiply by the weights."""
        weight = convert(linear.weight.T, self.target.products)
        return self.add("MatMul", [tensor, self.builder.weight(f"{linear.name}.weight", weight)])

    def linear(self, linear: Linear, tensor: str) -> str:
        """Multiply by the weights and add the bias."""
        return self.add_bias(linear, self.product(linear, tensor))

    def flat_linear(self, linear: Linear, tensor: str) -> str:
        """Multiply [B, K] by the weights and add the bias, with an operator that int8 leaves alone."""
        weight = self.builder.weight(f"{linear.name}.weight", convert(linear.weight, self.target.products))
        biases = [] if linear.bias is None else [self.bias(linear, self.target.products)]
        return self.add("Gemm", [tensor, weight, *biases], transB=1)

    def add_bias(self, linear: Linear, tensor: str) -> str:
        """Add the bias, if there is one, to a product."""
        return tensor if linear.bias is None else self.add("Add", [tensor, self.bias(linear, self.target.products)])

    def activate(self, activation: str, tensor: str) -> str:
        """Apply an activation."""
        operator, attributes = ACTIVATIONS[activation]
        return self.add(operator, [tensor], **attributes)

    def activate_biased(self, activation: str, linear: Linear, product: str) -> str:
        """Add the bias to a product and apply an activation, in one operator if the target has it.

        On a GPU the fused operator takes two thirds of the plain one's time (ONNX Runtime 1.31.1 on an H200), so it
        gets a bias of zeros where there is none.
        """
        dtype, fused = self.target.products, BIASED_ACTIVATIONS.get(activation)
        if not (fused and self.target.fused and (linear.bias is not None or self.target.fused_norm)):
            return self.activate(activation, self.add_bias(linear, product))
        bias = self.constant(np.zeros(len(linear.weight)), dtype) if linear.bias is None else self.bias(linear, dtype)
        return self.add(fused, [product, bias], domain=MICROSOFT_DOMAIN)

    def normalise(self, norm: Norm, tensor: str) -> str:
        """Normalise over features."""
        scale, shift = self.norm(norm)
        return self.add(
            "LayerNormalization", [tensor, scale, shift][: 3 if shift else 2], axis=-1, epsilon=norm.epsilon
        )

    def cast(self, tensor: str, dtype: type, wanted: type) -> str:
        """Convert a tensor from a type to another, if they differ."""
        if dtype is wanted:
            return tensor
        return self.add("Cast", [tensor], to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))

    def norm(self, norm: Norm) -> list[str]:
        """Add the weights of a normalisation; the name of an absent shift is empty."""
        weights = {"weight": norm.scale, "bias": norm.shift}
        return ["" if each is None else self.weight(f"{norm.name}.{part}", each) for part, each in weights.items()]

    def bias(self, linear: Linear, dtype: type) -> str:
        """Add the bias of a product."""
        assert linear.bias is not None
        return self.builder.weight(f"{linear.name}.bias", convert(linear.bias, dtype))

    def table(self, table: Table) -> str:
        """Add an embedding."""
        return self.weight(table.name, table.values)

    def weight(self, name: str, values: Values) -> str:
        """Add a weight in the residual type."""
        return self.builder.weight(name, convert(values, self.target.residual))


def fused_gate_width(part: FeedForward) -> int:
    """Return the width to which BiasSplitGelu needs a gated GELU padded; 0 if it would be more than an eighth wider."""
    features = len(part.widen.weight)
    if not part.gate or part.activation != "gelu":
        return 0
    return next((width for width in FUSED_GATE_WIDTHS if features <= width <= features * 9 / 8), 0)


def stack_gate(gate: Linear, widen: Linear, width: int) -> Linear:
    """Return the products of a gated activation as one, of which each half is padded with zeros to a width."""

    def pad(values: Values) -> Values:
        return np.pad(values, [(0, width - len(values)), *[(0, 0)] * (values.ndim - 1)])

    parts = (gate, widen)
    biases = [np.zeros(width, np.float32) if part.bias is None else pad(part.bias) for part in parts]
    weight = np.concatenate([pad(part.weight) for part in parts])
    return Linear(f"{widen.name}.gated", weight, np.concatenate(biases))


def rotation_tables(rotation: Rotation, positions: int) -> tuple[Values, Values]:
    """Return the cosines and sines [positions, D / 2] of a rotation, as torch rounds them."""
    angles = torch.arange(positions, dtype=torch.float)[:, None] * torch.from_numpy(rotation.frequencies)
    return angles.cos().numpy(), angles.sin().numpy()


def convert(values: Values, dtype: type) -> NDArray[np.generic]:
    """Return values in fp32 or fp16, by torch: NumPy takes 30 times as long."""
    converted = torch.from_numpy(values).to(torch.float16 if dtype is np.float16 else torch.float32)
    return converted.contiguous().numpy()
