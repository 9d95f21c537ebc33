"""A Memory behind `nbmf serve`: the same verbs, the same values, the same errors. Needs urllib3 alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit

from nbmf import errors
from nbmf.errors import DataError, NbmfError, PolicyError, StoreError, UnsupportedValue
from nbmf.memory.items import LIMIT, DeleteOp, GetOp, Item, ListNamespacesOp, MemoryOp, PutOp, SearchOp
from nbmf.serve import wire
from nbmf.store.base import Namespace, check_address

try:
    import urllib3
except ImportError:
    raise PolicyError("the client needs nbmf[serve]: pip install 'nbmf[serve]'") from None

TIMEOUT: Final = 60.0  # seconds for an answer
CONNECTIONS: Final = 32  # kept open
_TYPES: Final = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}


class Client:
    """A store behind a server's address, such as http://127.0.0.1:8750. Thread-safe; a context manager.

    Every method raises what the one of Memory raises, StoreError when the server cannot be reached, and PolicyError
    when the token does not reach so far. A request that failed on its way may have been carried out.
    """

    def __init__(
        self, address: str, token: str | None = None, *, timeout: float = TIMEOUT, ca: str | None = None
    ) -> None:
        """`ca`: a file with the certificates to trust, for https://; else the system's. Raises PolicyError."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise PolicyError("a server's address is http:// or https:// and a name, without a user")
        self._base = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._pool = urllib3.PoolManager(
            maxsize=CONNECTIONS, block=False, timeout=timeout, retries=False, ca_certs=ca, cert_reqs="CERT_REQUIRED"
        )

    def close(self) -> None:
        """Closes its connections; closing twice is fine."""
        self._pool.clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- records -------------------------------------------------------------------------------------------------------

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Any,
        *,
        cls: str = "",
        ttl: float | None = None,
        meta: Mapping[str, Any] | None = None,
        index: bool | Sequence[str] | None = None,
        vector: Sequence[float] | None = None,
    ) -> None:
        """See Memory.put."""
        self._call("PUT", "/v1/records", _put(PutOp(namespace, key, value, cls, ttl, meta, index, vector)))

    def get(self, namespace: Namespace, key: str, default: Any = None, *, refresh: bool = True) -> Any:
        """See Memory.get."""
        item = self.item(namespace, key, refresh=refresh)
        return default if item is None else item.value

    def item(self, namespace: Namespace, key: str, *, refresh: bool = True) -> Item | None:
        """See Memory.item."""
        path = f"/v1/records?{_address(namespace, key)}&refresh={'true' if refresh else 'false'}"
        found = self._call("GET", path, missing=True)
        return None if found is None else wire.item_of(found)

    def delete(self, namespace: Namespace, key: str) -> bool:
        """See Memory.delete."""
        return bool(self._call("DELETE", f"/v1/records?{_address(namespace, key)}")["deleted"])

    def put_many(self, ops: Iterable[PutOp]) -> None:
        """See Memory.put_many."""
        self.batch(list(ops))

    def search(
        self,
        prefix: Namespace = (),
        query: str | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        limit: int = LIMIT,
        offset: int = 0,
        vector: Sequence[float] | None = None,
        cls: str | None = None,
    ) -> list[Item]:
        """See Memory.search."""
        op = SearchOp(prefix, query, filter, limit, offset, vector, cls)
        return _items(self._call("POST", "/v1/search", _search(op)))

    def list_namespaces(
        self,
        prefix: Namespace = (),
        suffix: Namespace = (),
        *,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        """See Memory.list_namespaces."""
        op = ListNamespacesOp(prefix, suffix, max_depth, limit, offset)
        return _namespaces(self._call("POST", "/v1/namespaces", _listing(op)))

    def forget(self, prefix: Namespace) -> int:
        """See Memory.forget."""
        return int(self._call("POST", "/v1/forget", {"prefix": list(prefix)})["forgotten"])

    def stats(self, measure: bool = False, prefix: Namespace | None = None) -> dict[str, Any]:
        """See Memory.stats; with a token that does not reach the whole store, or of a prefix, what lies there."""
        segments = "".join(f"&prefix={_quoted(segment)}" for segment in prefix or ())
        found: dict[str, Any] = self._call("GET", f"/v1/stats?measure={'true' if measure else 'false'}{segments}")
        return found

    # -- batches -------------------------------------------------------------------------------------------------------

    def batch(self, ops: Sequence[MemoryOp]) -> list[Any]:
        """See Memory.batch."""
        asked = [_named(op) for op in ops]
        results = self._call("POST", "/v1/batch", {"ops": asked})["results"]
        return [_result(op, result) for op, result in zip(ops, results, strict=True)]

    async def abatch(self, ops: Sequence[MemoryOp]) -> list[Any]:
        """`batch` in a thread."""
        return await asyncio.to_thread(self.batch, ops)

    # -- requests ------------------------------------------------------------------------------------------------------

    def _call(self, method: str, path: str, body: Any = None, *, missing: bool = False) -> Any:
        """The answer's JSON, None for none; with `missing`, None for 404 too."""
        headers = self._headers
        data = None
        if body is not None:
            try:
                data = wire.dumps(body)
            except UnicodeEncodeError:
                raise UnsupportedValue("$: a lone surrogate can stand in a value alone") from None
            headers = {**headers, "Content-Type": "application/json"}
        try:
            answer = self._pool.request(method, self._base + path, body=data, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise StoreError(f"{self._base} cannot be reached: {' '.join(str(error).split())}"[:300]) from error
        if answer.status == 204:
            return None
        try:
            found = wire.loads(answer.data)
        except DataError as error:
            raise StoreError(f"{self._base} answered {answer.status} without JSON") from error
        if answer.status == 200:
            return found
        if missing and answer.status == 404 and _kind(found) == "NotFound":
            return None
        raise _error(answer.status, found, self._base)


# -- operations as JSON ------------------------------------------------------------------------------------------------


def _put(op: PutOp) -> dict[str, Any]:
    check_address(op.namespace, op.key)
    out: dict[str, Any] = {"namespace": list(op.namespace), "key": op.key, **wire.value_fields(op.value)}
    given = {
        "class": op.cls or None,
        "ttl": op.ttl,
        "meta": None if op.meta is None else dict(op.meta),
        "index": op.index if op.index is None or isinstance(op.index, bool) else list(op.index),
        "vector": None if op.vector is None else [float(number) for number in op.vector],
    }
    return out | {name: value for name, value in given.items() if value is not None}


def _search(op: SearchOp) -> dict[str, Any]:
    return {
        "prefix": list(op.prefix),
        "query": op.query,
        "filter": None if op.filter is None else dict(op.filter),
        "limit": op.limit,
        "offset": op.offset,
        "vector": None if op.vector is None else [float(number) for number in op.vector],
        "class": op.cls,
    }


def _listing(op: ListNamespacesOp) -> dict[str, Any]:
    return {
        "prefix": list(op.prefix),
        "suffix": list(op.suffix),
        "max_depth": op.max_depth,
        "limit": op.limit,
        "offset": op.offset,
    }


def _named(op: MemoryOp) -> dict[str, Any]:
    if isinstance(op, PutOp):
        return {"op": "put", **_put(op)}
    if isinstance(op, GetOp):
        return {"op": "get", "namespace": list(op.namespace), "key": op.key, "refresh": op.refresh}
    if isinstance(op, DeleteOp):
        return {"op": "delete", "namespace": list(op.namespace), "key": op.key}
    if isinstance(op, SearchOp):
        return {"op": "search", **_search(op)}
    if isinstance(op, ListNamespacesOp):
        return {"op": "list_namespaces", **_listing(op)}
    raise PolicyError(f"{type(op).__name__} is no operation of a Memory")


def _result(op: MemoryOp, result: Any) -> Any:
    if isinstance(op, GetOp):
        return None if result["item"] is None else wire.item_of(result["item"])
    if isinstance(op, DeleteOp):
        return bool(result["deleted"])
    if isinstance(op, SearchOp):
        return _items(result)
    if isinstance(op, ListNamespacesOp):
        return _namespaces(result)
    return None


def _items(answer: Any) -> list[Item]:
    return [wire.item_of(one) for one in answer["items"]]


def _namespaces(answer: Any) -> list[Namespace]:
    return [tuple(one) for one in answer["namespaces"]]


def _address(namespace: Namespace, key: str) -> str:
    check_address(namespace, key)
    return "&".join([*(f"namespace={_quoted(segment)}" for segment in namespace), f"key={_quoted(key)}"])


def _quoted(text: str) -> str:
    return quote(text, safe="")


# -- errors ------------------------------------------------------------------------------------------------------------


def _kind(found: Any) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    return str(error.get("type")) if isinstance(error, dict) else ""


def _error(status: int, found: Any, base: str) -> NbmfError:
    """The error that a server's answer stands for."""
    kind = _TYPES.get(_kind(found))
    message = found["error"].get("message") if _kind(found) else None
    if kind is errors.UnknownModel:
        return errors.UnknownModel("", str(message))
    if kind is not None and issubclass(kind, NbmfError) and status < 600 and message:
        return kind(str(message))
    return StoreError(f"{base} answered {status}{f': {message}' if message else ''}"[:300])


__all__ = ["Client"]
