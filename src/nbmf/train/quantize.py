"""The trained networks as the integers of the dense profile's sections (docs/spec/model.md)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.train.net import LOGIT_UNIT, LOGITS, MASS_UNIT, STRETCH, Net

ACTIVATION: Final = 127.0  # of an activation of 1, and of a matrix row's largest weight
DENSE_ONE: Final = 1024  # of a weight of the bit network
SCALE_ONE: Final = 2.0**19  # of a row's scale: shifted by 4, then by 15
Sections = dict[str, NDArray[Any]]


def _array(x: Any) -> NDArray[np.float64]:
    return np.asarray(x.detach().cpu().double().numpy(), np.float64)


def _int16(x: NDArray[np.float64]) -> NDArray[np.int16]:
    return np.clip(np.round(x), -32768, 32767).astype(np.int16)


def _weights(x: NDArray[np.float64], one: float = DENSE_ONE) -> NDArray[np.int16]:
    return np.clip(np.round(x * one), -4095, 4095).astype(np.int16)


def _rows(weight: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Rows of int8 and what each is to be multiplied by to give the weights again."""
    unit = np.maximum(np.abs(weight).max(1), 1e-9) / ACTIVATION
    return np.round(weight / unit[:, None]).astype(np.int8), unit


def _affine(linear: Any, out: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    """A map whose inputs are activations; `out` is one of each output's units. Weights, then [scales, biases]."""
    weights, unit = _rows(_array(linear.weight))
    scale = unit / ACTIVATION * out * SCALE_ONE
    return weights, _int16(np.stack([scale, _array(linear.bias) * out]))


def sections(net: Net) -> Sections:
    """The sections of a model file that hold the networks. `Net.hold` must hold."""
    width, middle = net.width, net.middle.out_features
    # The kernel's tables give sigma(t); tanh(t) is 2 sigma(2t) - 1.
    gates = np.repeat([STRETCH, 2 * STRETCH], width)
    made: Sections = {"dense_rows": np.clip(np.round(_array(net.rows.weight) * ACTIVATION), -127, 127).astype(np.int8)}
    for i, layer in enumerate(net.layers, 1):
        made[f"dense_layer{i}"], made[f"dense_scale{i}"] = _affine(layer.map, gates)
    made["dense_middle"], made["dense_mid_scale"] = _affine(net.middle, np.full(middle, ACTIVATION))
    made["dense_context"], made["dense_ctx_scale"] = _affine(net.context, np.full(net.context.out_features, LOGIT_UNIT))
    made["dense_byte"], unit = _rows(_array(net.byte.weight))
    made["dense_byte_scal"] = _weights(unit / ACTIVATION * LOGIT_UNIT * 64)
    made["dense_node"] = _int16(_array(net.node.weight) * LOGIT_UNIT)
    first = _array(net.first.weight)
    first[:, LOGITS:] *= LOGIT_UNIT / MASS_UNIT
    made["dense_first"] = _weights(first)
    made["dense_second"] = _weights(_array(net.second.weight))
    made["dense_second_b"] = _int16(_array(net.second.bias) * LOGIT_UNIT)
    # A bias of the last layer is multiplied by DENSE_ONE in the kernel: it is in units of 1/LOGIT_UNIT.
    third = _array(net.third.weight)[0] * DENSE_ONE
    made["dense_third"] = np.clip(np.round(np.append(third, _array(net.third.bias) * LOGIT_UNIT)), -4095, 4095).astype(
        np.int16
    )
    made["dense_skip"] = _weights(_array(net.skip.weight))
    return made
