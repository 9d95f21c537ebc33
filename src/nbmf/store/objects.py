"""Where cold objects live: a directory, or an S3-compatible store.

An object is written once, whole, under a name that is never used again. One object, the manifest, changes, and only by
compare-and-swap: whoever swaps must have seen what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final, Protocol

from nbmf.errors import NbmfError, StoreError

TEMPORARY: Final = "tmp/"  # where a directory keeps what is not yet written whole
LOCK: Final = ".lock"  # a directory's lock file, always empty
MESSAGE_MOST: Final = 200  # characters of a medium's own error message
RETRIES: Final = 4  # of a request to S3 that failed for no fault of its own
RETRY_SECONDS: Final = 30  # from a request's begin to its last try

_NAME: Final = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z_.-]*(/[0-9A-Za-z_-][0-9A-Za-z_.-]*)*")


class ObjectMissing(StoreError):
    """There is no object of that name."""


class Objects(Protocol):
    """Objects by name. Thread-safe, and safe between processes. Every method raises StoreError when the medium fails.

    What `put` and `swap` have returned from is durable, and a reader sees an object whole or not at all. A name is
    made of letters, digits, "_", "-", "." and, between parts, "/".
    """

    def put(self, name: str, data: bytes, overwrite: bool = False) -> None:
        """Writes an object. Raises StoreError if there is one of that name, unless told to overwrite."""

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start`, or all from there; fewer where the object ends. Raises ObjectMissing."""

    def size(self, name: str) -> int:
        """In bytes. Raises ObjectMissing."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(name, bytes) of every object below `prefix`, "" or a text that ends in "/", what puts left behind too."""

    def delete(self, name: str) -> None:
        """Deletes an object. One that is not there is fine."""

    def load(self, name: str, known: str = "") -> tuple[str, bytes | None]:
        """(tag, content). The content is None where the tag is still `known`; the tag is "" where nothing is there."""

    def swap(self, name: str, data: bytes, tag: str) -> str:
        """Writes `data` if the object's tag is still `tag`; the new tag, or "" if it was another. "": no object yet.

        Writers make every content theirs alone (a random number in it): content that is there counts as swapped in.
        """

    def tidy(self) -> None:
        """Deletes what interrupted puts left behind."""

    def close(self) -> None:
        """Releases everything; closing twice is fine."""


def open_objects(address: str | os.PathLike[str]) -> Objects:
    """The objects at `s3://bucket/prefix` (credentials and endpoint from AWS_* variables), or in a directory."""
    text = os.fspath(address)
    if not text.startswith("s3://"):
        return Directory(text)
    bucket, _, prefix = text[5:].partition("/")
    return S3(bucket, prefix)


class Directory:
    """Objects as files below a directory, which is made if it is not there. Needs POSIX file locks."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        with _storing(f"{self.root}"):
            self._make(self.root)

    def put(self, name: str, data: bytes, overwrite: bool = False) -> None:
        target = self._path(name)
        with _storing(f"{target}"), self._written(data) as temporary, self._locked():
            if not overwrite and target.exists():
                raise StoreError(f"{target} is there already")
            self._install(temporary, target)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        with _storing(f"{path}"), open(path, "rb", buffering=0) as file:
            if length is None:
                length = max(os.fstat(file.fileno()).st_size - start, 0)
            data = b""
            while len(data) < length and (more := os.pread(file.fileno(), length - len(data), start + len(data))):
                data += more
        return data

    def size(self, name: str) -> int:
        path = self._path(name)
        with _storing(f"{path}"):
            return path.stat().st_size

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        base = self._path(prefix[:-1]) if prefix else self.root
        with _storing(f"{base}"):
            found = []
            for folder, _, names in os.walk(base):
                for name in names:
                    path = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        found.append((path.relative_to(self.root).as_posix(), path.stat().st_size))
        yield from sorted(entry for entry in found if entry[0] != LOCK)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _storing(f"{path}"), contextlib.suppress(FileNotFoundError):
            path.unlink()
            _sync_directory(path.parent)

    def load(self, name: str, known: str = "") -> tuple[str, bytes | None]:
        try:
            data = self.get(name)
        except ObjectMissing:
            return "", None
        tag = _tag(data)
        return tag, None if tag == known else data

    def swap(self, name: str, data: bytes, tag: str) -> str:
        target = self._path(name)
        with _storing(f"{target}"), self._written(data) as temporary, self._locked():
            if self.load(name)[0] != tag:
                return ""
            self._install(temporary, target)
        return _tag(data)

    def tidy(self) -> None:
        with _storing(f"{self.root}"), self._locked():
            for path in (self.root / TEMPORARY).glob("*"):
                with open(path, "rb") as file:
                    if _lock(file, wait=False):  # whoever wrote it is gone
                        path.unlink()

    def close(self) -> None:
        pass

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise StoreError(f"{name!r} cannot name an object"[:MESSAGE_MOST])
        return self.root / name

    def _make(self, folder: Path) -> None:
        """Makes a folder and those above it, durably."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(folder.parent)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.root / LOCK, "ab") as file:
            _lock(file)
            yield

    @contextlib.contextmanager
    def _written(self, data: bytes) -> Iterator[Path]:
        """A temporary file of `data`, on the medium. It is locked as long as whoever wrote it lives."""
        folder = self.root / TEMPORARY
        self._make(folder)
        path = folder / secrets.token_hex(8)
        with self._locked():
            file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
            _lock(file)
        with file:
            try:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
                yield path
            finally:
                path.unlink(missing_ok=True)

    def _install(self, temporary: Path, target: Path) -> None:
        self._make(target.parent)
        temporary.replace(target)
        _sync_directory(target.parent)


def _tag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _sync_directory(path: Path) -> None:
    """Makes what was created, renamed or deleted in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(file: IO[bytes], wait: bool = True) -> bool:
    """Locks an open file until it is closed or its process ends. False: another holds it, and it was not to wait."""
    try:
        import fcntl
    except ImportError:
        raise StoreError("a cold tier in a directory needs POSIX file locks, which this system has not") from None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _storing(where: str) -> Iterator[None]:
    """Turns the operating system's errors into StoreError."""
    try:
        yield
    except FileNotFoundError:
        raise ObjectMissing(f"there is no {where}") from None
    except OSError as error:
        raise StoreError(f"{where}: {error.strerror or error}"[:MESSAGE_MOST]) from None


class S3:
    """Objects in a bucket of an S3-compatible store that knows If-Match and If-None-Match on PUT. Needs nbmf[s3].

    What is not given comes from AWS_* variables or the machine's role. An `endpoint` with http:// goes unencrypted.
    The bucket must not keep old versions of objects, or what was deleted stays in them.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import S3Store
        except ImportError:
            raise NbmfError("a cold tier on S3 needs nbmf[s3]") from None
        self._obstore = obstore
        self._errors = exceptions
        self._where = f"s3://{bucket}/{prefix}".rstrip("/")
        if endpoint is None:
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        given = {
            "endpoint": endpoint,
            "region": region,
            "access_key_id": access_key,
            "secret_access_key": secret_key,
        }
        config: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        options: Any = {"allow_http": bool(endpoint and endpoint.startswith("http://"))}
        retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
        with self._storing(""):
            self._store = S3Store(
                bucket, prefix=prefix.strip("/") or None, client_options=options, retry_config=retry, **config
            )

    def put(self, name: str, data: bytes, overwrite: bool = False) -> None:
        try:
            with self._storing(name):
                mode: Any = "overwrite" if overwrite else "create"
                self._obstore.put(self._store, self._name(name), data, mode=mode, use_multipart=False)
        except FileExistsError:
            # A request that was sent twice, its first answer lost, finds its own object.
            if self.get(name) != data:
                raise StoreError(f"{self._where}/{name} is there already") from None

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self._storing(name):
            if length is None and start == 0:
                return bytes(self._obstore.get(self._store, self._name(name)).bytes())
        if length is None:
            length = self.size(name) - start
        if length <= 0:
            return b""
        try:
            with self._storing(name):
                return bytes(self._obstore.get_range(self._store, self._name(name), start=start, length=length))
        except ObjectMissing:
            raise
        except StoreError:
            if start < self.size(name):
                raise
            return b""  # a range that starts past the end is refused

    def size(self, name: str) -> int:
        with self._storing(name):
            return int(self._obstore.head(self._store, self._name(name))["size"])

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        with self._storing(prefix):
            for page in self._obstore.list(self._store, prefix or None):
                yield from ((str(found["path"]), int(found["size"])) for found in page)

    def delete(self, name: str) -> None:
        with contextlib.suppress(ObjectMissing), self._storing(name):
            self._obstore.delete(self._store, self._name(name))

    def load(self, name: str, known: str = "") -> tuple[str, bytes | None]:
        options: Any = {"if_none_match": known} if known else {}
        try:
            with self._storing(name):
                found = self._obstore.get(self._store, self._name(name), options=options)
                return str(found.meta["e_tag"]), bytes(found.bytes())
        except self._errors.NotModifiedError:
            return known, None
        except ObjectMissing:
            return "", None

    def swap(self, name: str, data: bytes, tag: str) -> str:
        mode: Any = {"e_tag": tag} if tag else "create"
        try:
            with self._storing(name):
                done = self._obstore.put(self._store, self._name(name), data, mode=mode, use_multipart=False)
                return str(done["e_tag"])
        except FileExistsError:
            # As in `put`: the content may be this very swap's.
            found, content = self.load(name)
            return found if content == data else ""

    def tidy(self) -> None:
        """A PUT is whole or not at all: there is nothing to do."""

    def close(self) -> None:
        pass

    def _name(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise StoreError(f"{name!r} cannot name an object"[:MESSAGE_MOST])
        return name

    @contextlib.contextmanager
    def _storing(self, name: str) -> Iterator[None]:
        """Turns obstore's errors into StoreError; a failed condition into FileExistsError; "not modified" passes."""
        where = f"{self._where}/{name}".rstrip("/")
        try:
            yield
        except FileNotFoundError:
            raise ObjectMissing(f"there is no {where}") from None
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            raise FileExistsError(where) from None
        except self._errors.NotModifiedError:
            raise
        except (self._errors.BaseError, OSError, ValueError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(f"{where}: {first}"[:MESSAGE_MOST]) from None


__all__ = ["S3", "Directory", "ObjectMissing", "Objects", "open_objects"]
