"""SQLAlchemy column types whose values lie in the database as blobs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Final

from nbmf.codec.codec import Codec
from nbmf.errors import FormatError, PolicyError, UnsupportedValue
from nbmf.integrations import MissingExtra

try:
    from sqlalchemy import Dialect, LargeBinary
    from sqlalchemy.ext.mutable import MutableDict, MutableList
    from sqlalchemy.sql import operators
    from sqlalchemy.types import TypeDecorator
except ImportError:
    raise MissingExtra("sqlalchemy", "sqlalchemy") from None

# What may be done to a column in SQL: all else would compare blobs, and be wrong without a word.
WITH_NULL: Final = frozenset({operators.is_, operators.is_not, operators.eq, operators.ne})


@lru_cache(maxsize=1)
def _codec() -> Codec:
    return Codec()


class _Blob(TypeDecorator[Any]):
    """`None` is NULL. A column's blobs name their model, so each can be read as long as that is there."""

    impl = LargeBinary
    kinds: ClassVar[tuple[type, ...]]

    def __init__(self, codec: Codec | None = None) -> None:
        super().__init__()
        self.codec = codec

    class comparator_factory(TypeDecorator.Comparator[Any]):
        """Refuses what would compare blobs; IS NULL and IS NOT NULL stay."""

        def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
            if op in WITH_NULL and other and other[0] is None:
                return super().operate(op, *other, **kwargs)
            name = getattr(op, "__name__", str(op)).rstrip("_")
            raise PolicyError(f"{name}: a column of blobs is compared with NULL alone, since SQL cannot read it")

        def reverse_operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
            return self.operate(op, *other, **kwargs)

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        """The blob of a value. Raises UnsupportedValue, OutputLimit."""
        if value is None:
            return None
        if not isinstance(value, self.kinds):
            raise UnsupportedValue(f"$: a column of {type(self).__name__} does not hold {type(value).__name__}")
        if isinstance(value, MutableDict | MutableList):  # as a plain one, which is what comes back
            value = dict(value) if isinstance(value, MutableDict) else list(value)
        return (self.codec or _codec()).encode(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """The value of a blob. Raises FormatError, CorruptRecord, UnknownModel, OutputLimit."""
        if value is None:
            return None
        out = (self.codec or _codec()).decode(bytes(value))
        if not isinstance(out, self.kinds):
            raise FormatError(f"a column of {type(self).__name__} does not hold {type(out).__name__}")
        return out


class NBMFText(_Blob):
    """A text. `codec` encodes: one with a domain pack makes it smaller still."""

    cache_ok = True  # SQLAlchemy looks for it in the class itself
    kinds = (str,)

    @property
    def python_type(self) -> type[str]:
        return str


class NBMFJSON(_Blob):
    """A JSON value, types and key order kept; `None` is NULL, so a bare JSON null is not stored.

    Changes within a value are seen where it is declared with `MutableDict.as_mutable(NBMFJSON())` or the like.
    """

    cache_ok = True
    kinds = (dict, list, str, int, float)

    @property
    def python_type(self) -> type[Any]:
        return dict


__all__ = ["NBMFJSON", "NBMFText"]
