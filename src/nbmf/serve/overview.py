"""What a server tells a token at a glance: what the token reaches, the tiers, the rollout, models and packs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from nbmf import __version__
from nbmf.codec import kernel
from nbmf.codec.model import Pack
from nbmf.errors import NbmfError
from nbmf.memory import Memory
from nbmf.memory.aging import disk_bytes
from nbmf.serve.auth import Grant
from nbmf.serve.metrics import SIZES_AGE, Metrics

PACKS_MOST: Final = 100  # packs whose cards are told


class Overview:
    """Thread-safe. Figures of the whole store are for those who may see the whole store or its metrics."""

    def __init__(self, memory: Memory, metrics: Metrics) -> None:
        self._memory = memory
        self._metrics = metrics
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._disk: int | None = None
        self._next = 0.0

    def of(self, grant: Grant) -> dict[str, Any]:
        """Raises StoreError."""
        return {
            "version": __version__,
            "kernel": kernel.backend,
            "token": {
                "name": grant.name,
                "namespaces": [list(prefix) for prefix in grant.prefixes],
                "access": "write" if grant.write else "read",
                "metrics": grant.metrics_too,
            },
            "store": self._store(grant) if grant.everything or grant.metrics_too else None,
            "models": self._models(),
            "packs": self._packs(grant),
        }

    def _store(self, grant: Grant) -> dict[str, Any]:
        memory = self._memory
        rollout = memory.policy.rollout
        hot = memory.hot
        raw, stored = self._metrics.written()
        sizes = self._metrics.sizes()
        return {
            "seconds": round(time.monotonic() - self._began, 1),
            "hot": {
                "records": len(hot),
                "bytes": hot.bytes,
                "most_bytes": hot.most,
                "hits": hot.hits,
                "misses": hot.misses,
            },
            "warm": _tier(sizes.get("warm", {})),
            "cold": _tier(sizes.get("cold", {})),
            "index_bytes": memory.recall.bytes,
            "disk_bytes": self._disk_bytes(),
            "written": {"raw_bytes": raw, "stored_bytes": stored},
            "rollout": {
                "percent": rollout.percent,
                "shadow": rollout.shadow,
                "compare_percent": rollout.compare_percent,
                # Tenants are namespaces, which no metric names.
                "tenants": sorted(rollout.tenants) if grant.everything else None,
                "encoders": memory.codecs.metrics.snapshot(),
            },
        }

    def _disk_bytes(self) -> int | None:
        """Bytes of the store's folder, counted now and then."""
        folder = self._memory.parts.folder
        if folder is None:
            return None
        with self._lock:
            if time.monotonic() >= self._next:
                self._disk = disk_bytes(folder)
                self._next = time.monotonic() + SIZES_AGE
            return self._disk

    # -- models and packs ----------------------------------------------------------------------------------------------

    def _models(self) -> list[dict[str, Any]]:
        """The model of new records."""
        model = self._memory.codecs.of_domain("").model
        about = {"id": model.id.hex(), "bytes": len(model.buffer), "profiles": list(model.profiles)}
        return [{"name": str(model.card.get("name", model.path.stem)), **about, "card": model.card}]

    def _packs(self, grant: Grant) -> list[dict[str, Any]]:
        """Of the whole store, for whom it is open; else those learned from tenants that the grant reaches whole.

        Who reaches a part of a tenant is told nothing of its pack, which was learned from the other parts too.
        """
        out = []
        for id, tenant in self._found(grant):
            try:
                pack = self._memory.codecs.of_id(id).pack
            except NbmfError:  # it was dropped meanwhile, or its key is not here
                continue
            if pack is not None:
                out.append(_card(pack, tenant))
            if len(out) == PACKS_MOST:
                break
        return out

    def _found(self, grant: Grant) -> Iterator[tuple[str, str | None]]:
        """Content ids, each with its tenant where that is known."""
        packs = self._memory.codecs.packs
        if packs is None:
            return
        if grant.everything:
            yield from ((path.stem, None) for path in packs.files())
            return
        for prefix in sorted(set(grant.prefixes)):
            if len(prefix) == 1:
                yield from ((id, prefix[0]) for id in packs.of(prefix[0]))


def _tier(parts: dict[str, int]) -> dict[str, Any]:
    sizes = {part: size for part, size in parts.items() if part != "count"}
    return {"records": parts.get("count", 0), "bytes": sum(sizes.values()), "parts": sizes}


def _card(pack: Pack, tenant: str | None) -> dict[str, Any]:
    return {
        "id": pack.id.hex(),
        "model": pack.model_id.hex(),
        "tenant": tenant,
        "bytes": len(pack.buffer),
        "card": pack.card,
    }


__all__ = ["Overview"]
