"""Addresses as bytes, in the order of archives: the records in and below a namespace stand together."""

from __future__ import annotations

from typing import NamedTuple

from nbmf.errors import CorruptRecord, PolicyError
from nbmf.store.base import Namespace


class Address(NamedTuple):
    """A record's address as bytes, in the order of an index: every prefix of segments is a range."""

    namespace: bytes
    key: bytes


def address(namespace: Namespace, key: str) -> Address:
    """Segments end in a zero byte, which none has inside, so the namespaces below one start with its bytes."""
    return Address(flat(namespace), key.encode("utf-8", "surrogatepass"))


def flat(namespace: Namespace) -> bytes:
    """Raises PolicyError for a zero byte: `("a\\0b",)` must not be taken for `("a", "b")`."""
    if any("\0" in segment for segment in namespace):
        raise PolicyError("a namespace's segment cannot hold U+0000")
    return "".join(f"{segment}\0" for segment in namespace).encode("utf-8", "surrogatepass")


def unflat(namespace: bytes) -> Namespace:
    return tuple(text(namespace[:-1]).split("\0"))


def text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CorruptRecord("a text is not UTF-8") from None


__all__ = ["Address", "address", "flat", "text", "unflat"]
