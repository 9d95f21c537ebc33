"""LangGraph: long-term memory in an NBMF store, and checkpoints that NBMF has made small."""

from __future__ import annotations

from nbmf.integrations.langgraph_serializer import NBMFSerializer
from nbmf.integrations.langgraph_store import AsyncNBMFStore, NBMFStore

__all__ = ["AsyncNBMFStore", "NBMFSerializer", "NBMFStore"]
