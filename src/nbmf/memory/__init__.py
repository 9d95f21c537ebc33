"""The front door of a store: `Memory`, what goes in and what comes out."""

from nbmf.memory.items import DeleteOp, GetOp, Item, ListNamespacesOp, MemoryOp, PutOp, SearchOp
from nbmf.memory.memory import Memory

__all__ = ["DeleteOp", "GetOp", "Item", "ListNamespacesOp", "Memory", "MemoryOp", "PutOp", "SearchOp"]
