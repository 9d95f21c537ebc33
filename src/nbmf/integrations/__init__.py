"""NBMF inside what agents already use. Each module needs the extra of its name, and says so where it is missing."""

from __future__ import annotations

from nbmf.errors import NbmfError


class MissingExtra(NbmfError, ImportError):
    """A module of this package was imported without the extra that it needs; the message names the extra."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"nbmf.integrations.{module} needs nbmf[{extra}]: pip install 'nbmf[{extra}]'")


__all__ = ["MissingExtra"]
