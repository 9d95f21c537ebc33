"""The domain packs of a store: those that its policy names, and those learned from a tenant's own records.

    packs/shared/<content id>.nbp        copies of the packs that a policy names
    packs/<tenant>/<content id>.nbp      learned from that tenant's records; the folder's name is a hash of the tenant's
    packs/<tenant>/current               the content id (hex) that its new records are coded with

A pack holds text of the records it was learned from. In an encrypted store its file is sealed, a tenant's with the
tenant's key, so that it goes where the key goes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nbmf.codec.model import PACK_SUFFIX, Pack, pack_of
from nbmf.errors import StoreError
from nbmf.store.files import replace_file, store_error
from nbmf.store.keys import DataKey, Keyring

SHARED: Final = "shared"
CURRENT: Final = "current"


class Packs:
    """The folder of a store's packs. `keys` is the keyring of an encrypted store, else None. Thread-safe."""

    def __init__(self, folder: Path, keys: Keyring | None) -> None:
        self.folder = folder
        self._keys = keys

    def find(self, id: str) -> Pack | None:
        """The pack of a content id (hex), None if it is not here. Raises StoreError, FormatError, CorruptRecord."""
        for path in sorted(self.folder.glob(f"*/{id}{PACK_SUFFIX}")):
            data = path.read_bytes()
            if self._keys is not None:
                key = self._key(path.parent.name)
                if key is None:
                    continue
                data = key.unseal(data, _context(id))
            return pack_of(path, data)
        return None

    def keep(self, pack: Pack) -> None:
        """Copies a pack that a policy names into the store."""
        path = self.folder / SHARED / f"{pack.id.hex()}{PACK_SUFFIX}"
        if not path.exists():
            self._write(path, bytes(pack.buffer), pack.id.hex())

    def learned(self, tenant: str, data: bytes) -> Pack:
        """Keeps a pack learned from a tenant's records, the one for its new records from now on."""
        pack = pack_of(Path(), data)
        folder = self._folder_of(tenant, make=True)
        self._write(folder / f"{pack.id.hex()}{PACK_SUFFIX}", data, pack.id.hex())
        try:
            replace_file(folder / CURRENT, pack.id.hex().encode())
        except OSError as error:
            raise store_error(folder / CURRENT, error) from error
        return pack

    def current(self, tenant: str) -> str:
        """The content id of the pack for a tenant's new records, "" for none."""
        try:
            return (self._folder_of(tenant) / CURRENT).read_bytes().decode("ascii")
        except (OSError, UnicodeDecodeError):
            return ""

    def of(self, tenant: str) -> list[str]:
        """The content ids of all packs learned from a tenant's records."""
        return sorted(path.stem for path in self._folder_of(tenant).glob(f"*{PACK_SUFFIX}"))

    def drop(self, tenant: str, keep: str = "") -> None:
        """Deletes the packs of a tenant, all but `keep`. No record may use them any more."""
        folder = self._folder_of(tenant)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for id in self.of(tenant):
            if id != keep:
                (folder / f"{id}{PACK_SUFFIX}").unlink(missing_ok=True)

    def drop_all(self) -> None:
        """Deletes every pack. No record may be left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def files(self) -> Iterator[Path]:
        """The files of all packs."""
        yield from sorted(self.folder.glob(f"*/*{PACK_SUFFIX}"))

    def _folder_of(self, tenant: str, make: bool = False) -> Path:
        if self._keys is not None and make:
            self._keys.data_key(tenant, make=True)
        name = self._keys.name_id(tenant) if self._keys else hashlib.blake2b(tenant.encode(), digest_size=16).digest()
        return self.folder / name.hex()

    def _key(self, folder: str) -> DataKey | None:
        assert self._keys is not None
        if folder == SHARED:
            return self._keys.store_key
        for entry in self._keys.entries():
            if entry.name_id.hex() == folder:
                return self._keys.key(entry)
        return None

    def _write(self, path: Path, data: bytes, id: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._keys is not None:
                key = self._key(path.parent.name)
                if key is None:
                    raise StoreError(f"{path}: no key for it")
                data = key.seal(data, _context(id))
            replace_file(path, data)
        except OSError as error:
            raise store_error(path, error) from error


def _context(id: str) -> bytes:
    return b"pack " + bytes.fromhex(id)
