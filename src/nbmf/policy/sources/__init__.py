"""Stores to migrate from, each read as a sequence of items that is the same every time."""

from nbmf.policy.sources.base import DEFAULT_NAMESPACE, Incoming, Item, Source, Unreadable, parse_namespace
from nbmf.policy.sources.detect import KINDS, StoreSource, detect, open_source

__all__ = [
    "DEFAULT_NAMESPACE",
    "KINDS",
    "Incoming",
    "Item",
    "Source",
    "StoreSource",
    "Unreadable",
    "detect",
    "open_source",
    "parse_namespace",
]
