"""The dense profile's networks in PyTorch: what `quantize.py` turns into integers and the kernel runs.

Once a byte, embeddings of fifteen contexts are summed and pass two gated recurrent layers (of the kind of minGRU, Feng
et al. 2024: gates and new values come of the input alone, so that a stretch of text is one matrix product) and a middle
layer. Once a bit, a small network looks at all inputs of the mixer and at what the middle layer says, and adds a
correction to the mixer's logit. Both are trained together on what the mixture leaves: the loss is the bits that the
codec would spend.

Values are floats in the kernel's units: an activation of 1 is 127, a state of 1 is 32,768, a logit is in nats.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

ROWS: Final = 36690  # of the embedding: the kernel's D_ROWS
CONTEXTS: Final = 15
HASHED: Final = slice(1, 8)  # the contexts with rows for many: words, orders, keys
# Of those rows while training, so that what holds for every source is learned before what is told by a word.
DROPPED: Final = 0.45
INPUTS: Final = 72  # of the bit network, the first 32 are logits
LOGITS: Final = 32
TOTAL: Final = 31  # the input that is the mixer's own logit
UNITS: Final = (64, 32)  # of the bit network's two layers
LOGIT_UNIT: Final = 340.0  # of an input, and of what is inside the bit network
MASS_UNIT: Final = 128.0  # of the inputs that are masses
STRETCH: Final = 170.0  # the mixer's logit units in a nat
# What a weight is held to, so that its integer fits: of the byte network's maps and new values, of the bit network.
HELD: Final = 5.8
HELD_VALUES: Final = 2.9  # ... and of the maps to what the bit network adds
HELD_BITS: Final = 3.99
HELD_MASSES: Final = 1.5


def _doubled(keep: Tensor, h: Tensor) -> Tensor:
    """h[t] += keep[t] h[t - 1] for t = 1, 2, … in place, in log2 T steps over all of t (Hillis and Steele 1986)."""
    keep, by = keep.clone(), 1
    while by < len(h):
        h[by:] += keep[by:] * h[:-by]
        keep[by:] = keep[by:] * keep[:-by]
        by *= 2
    return h


class _Scan(torch.autograd.Function):
    """h[t] = keep[t] h[t - 1] + new[t], element by element, over the first dimension."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, new: Tensor, before: Tensor) -> Tensor:
        if new.is_cuda:  # where a launch costs more than the arithmetic
            h = new.clone()
            h[0] += keep[0] * before
            _doubled(keep, h)
            ctx.save_for_backward(keep, h, before)
            return h
        h = torch.empty_like(new)
        last = before
        for t in range(len(new)):
            torch.addcmul(new[t], keep[t], last, out=h[t])
            last = h[t]
        ctx.save_for_backward(keep, h, before)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        keep, h, before = ctx.saved_tensors
        (grad,) = grads
        if grad.is_cuda:
            new = _doubled(keep.roll(-1, 0).flip(0), grad.flip(0)).flip(0)
        else:
            new = torch.empty_like(grad)
            carried = torch.zeros_like(before)
            for t in range(len(grad) - 1, -1, -1):
                torch.add(grad[t], carried, out=new[t])
                torch.mul(new[t], keep[t], out=carried)
        gate = torch.empty_like(keep)
        torch.mul(new[1:], h[:-1], out=gate[1:])
        torch.mul(new[0], before, out=gate[0])
        return gate, new, None


class Layer(nn.Module):
    """Gates and new values of `width` units from as many inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.map = nn.Linear(width, 2 * width)
        with torch.no_grad():
            self.map.bias[:width] = torch.linspace(-3, 1, width)  # memories of many lengths

    def forward(self, x: Tensor, going_on: Tensor, before: Tensor) -> Tensor:
        gate, value = self.map(x).chunk(2, -1)
        gate = torch.sigmoid(gate)
        return _Scan.apply((1 - gate) * going_on, gate * torch.tanh(value), before)


class Net(nn.Module):
    """Both networks. `forward` takes a stretch of T bytes of B records side by side."""

    def __init__(self, width: int = 128, middle: int = 128, dropped: float = DROPPED) -> None:
        super().__init__()
        ones, twos = UNITS
        self.width, self.dropped = width, dropped
        self.rows = nn.EmbeddingBag(ROWS, width, mode="sum")
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))
        self.middle = nn.Linear(width, middle)
        self.context = nn.Linear(middle, ones)
        self.byte = nn.Embedding(256, middle)
        self.node = nn.Embedding(256, ones)
        self.first = nn.Linear(INPUTS, ones, bias=False)
        self.second = nn.Linear(ones, twos)
        self.third = nn.Linear(twos, 1)
        self.skip = nn.Embedding(256, LOGITS)
        with torch.no_grad():
            self.rows.weight.mul_(0.05)
            self.byte.weight.mul_(0.02)
            self.node.weight.mul_(0.1)
            self.third.weight.mul_(0.1)
            self.third.bias.zero_()
            self.skip.weight.zero_()

    def begin(self, streams: int) -> Tensor:
        """The state before the first byte: [2, streams, width]."""
        return self.rows.weight.new_zeros(2, streams, self.width)

    def forward(
        self, inputs: Tensor, node: Tensor, rows: Tensor, first: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What to add to the mixer's logit of each bit, in nats [T, B, 8], and the state after.

        inputs [T, B, 8, 72] of `scaled`; node [T, B, 8], 1…255; rows [T, B, 15]; first [T, B], 1 where a record begins.
        """
        length, streams = first.shape
        y = self._embedded(rows.reshape(length * streams, CONTEXTS)).view(length, streams, self.width)
        going_on = (1 - first)[..., None]
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            h = layer(y, going_on, before)
            after.append(h[-1].detach())
            y = (y + h) / 2
        middle = self.middle(y).clamp(0, 1)
        units = self.first(inputs) + self.node(node) + self.context(middle)[:, :, None]
        # The kernel holds units to 12, which none comes near.
        units = self.second(units.relu()).relu()
        out = self.third(units)[..., 0]
        out = out + (self.skip(node) * inputs[..., :LOGITS]).sum(-1)
        out = out + (middle @ self.byte.weight.T).gather(-1, node)
        return out, torch.stack(after)

    def _embedded(self, rows: Tensor) -> Tensor:
        if not self.training:
            return self.rows(rows).clamp(-1, 1)
        kept = torch.ones(rows.shape, device=rows.device)
        kept[:, HASHED] = (torch.rand(len(rows), 7, device=rows.device) >= self.dropped) / (1 - self.dropped)
        return self.rows(rows, per_sample_weights=kept).clamp(-1, 1)

    @torch.no_grad()
    def hold(self) -> None:
        """Holds the weights to what their integers can be."""
        for name, parameter in self.named_parameters():
            if name.startswith("layers.") and name.endswith("weight"):
                parameter[: self.width].clamp_(-HELD, HELD)
                parameter[self.width :].clamp_(-HELD_VALUES, HELD_VALUES)
            elif name.split(".")[0] in ("first", "second", "third", "skip"):
                parameter.clamp_(-HELD_BITS, HELD_BITS)
                if name == "first.weight":
                    parameter[:, LOGITS:].clamp_(-HELD_MASSES, HELD_MASSES)
            elif name.startswith("rows"):
                parameter.clamp_(-1, 1)
            elif name == "middle.weight":
                parameter.clamp_(-HELD, HELD)
            elif name in ("context.weight", "byte.weight"):
                parameter.clamp_(-HELD_VALUES, HELD_VALUES)


def scaled(inputs: Tensor) -> Tensor:
    """The kernel's int16 inputs [..., 72] as floats."""
    x = inputs.float()
    x[..., :LOGITS] /= LOGIT_UNIT
    x[..., LOGITS:] /= MASS_UNIT
    return x


def bits(out: Tensor, inputs: Tensor, bit: Tensor) -> Tensor:
    """What each bit costs once the mixer's logit is corrected by `out`, in nats."""
    logit = (out + inputs[..., TOTAL] * (LOGIT_UNIT / STRETCH)).clamp(-12, 12)
    return nn.functional.binary_cross_entropy_with_logits(logit, bit, reduction="none")
