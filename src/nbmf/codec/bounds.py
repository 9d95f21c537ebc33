"""What fidelity `semantic` keeps of every vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from nbmf.errors import PolicyError

COSINE_MOST: Final = 1 - 2.0**-24  # nearer than this is exact


@dataclass(frozen=True, slots=True)
class Bound:
    """What every vector keeps under fidelity `semantic`: a cosine, a greatest error of its floats, or both.

    `cosine` lies over 0 and is at most 1, which is exact; `max_error` is over 0. With a cosine alone the norm is kept
    within 0.1 %. A vector that cannot be kept so in fewer bytes is kept exactly. Raises PolicyError.
    """

    cosine: float | None = 0.995
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.cosine is None and self.max_error is None:
            raise PolicyError("a bound states a cosine, a greatest error, or both")
        if self.cosine is not None and not (isinstance(self.cosine, (int, float)) and 0 < self.cosine <= 1):
            raise PolicyError(f"a bound's cosine is over 0 and at most 1, not {self.cosine!r}"[:200])
        if self.max_error is not None and not (
            isinstance(self.max_error, (int, float)) and 0 < self.max_error < math.inf
        ):
            raise PolicyError(f"a bound's greatest error is a number over 0, not {self.max_error!r}"[:200])

    @property
    def exact(self) -> bool:
        return self.cosine is not None and self.cosine > COSINE_MOST


DEFAULT: Final = Bound()
