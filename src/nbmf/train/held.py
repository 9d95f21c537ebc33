"""Following the networks' training by records that are never trained on, and stopping when these gain no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from nbmf.codec.counting import Records
from nbmf.train import dense
from nbmf.train.feed import Shelf
from nbmf.train.net import Net

LOOKED_AT: Final = 200_000  # raw bytes of records, at even distances


class Watch:
    """What held-back records cost at every report, and the networks at their best, kept in the file `best_file`.

    `last`, `best` and `without`, the cost without networks, are bits per raw byte; `over` once `patience` reports
    brought no new best.
    """

    def __init__(self, coder: Any, records: Records, patience: int, best_file: Path) -> None:
        share = min(1.0, LOOKED_AT / max(1, records.raw_bytes))
        numbers = np.arange(len(records))
        chosen = numbers[((numbers + 1) * share).astype(int) > (numbers * share).astype(int)]
        self._shelf = Shelf(coder, records.select(chosen if len(chosen) else numbers[:1]))
        self._patience = patience
        self._file = best_file
        self._since = 0
        self.last, self.best, self.best_step = 0.0, float("inf"), 0
        self.without = 0.0
        if best_file.is_file():  # of the same run, before it was killed
            saved = torch.load(best_file, weights_only=True, map_location="cpu")
            self.best, self.best_step = saved["best"], saved["step"]

    @property
    def over(self) -> bool:
        return self._since >= self._patience

    def look(self, net: Net, step: int) -> None:
        """Measures the networks after `step` steps."""
        records = self._shelf.records
        before, after = dense.measure(net, self._shelf, np.zeros(len(records), np.int64))
        self.without, self.last = (float(bits.sum()) / max(1, records.raw_bytes) for bits in (before, after))
        self._since += 1
        if self.last < self.best:
            self.best, self.best_step, self._since = self.last, step, 0
            partial = self._file.with_suffix(".tmp")
            torch.save({"net": net.state_dict(), "best": self.best, "step": step}, partial)
            partial.replace(self._file)

    def restore(self, net: Net) -> None:
        """Makes the networks what they were at their best, where that was ever looked at."""
        if not self._file.is_file():
            return
        saved = torch.load(self._file, weights_only=True, map_location=str(net.rows.weight.device))
        net.load_state_dict(saved["net"])
