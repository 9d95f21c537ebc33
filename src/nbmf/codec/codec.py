"""Values to blobs and back: the race of stored, zstd and neural, the check, and finding the model a blob names."""

from __future__ import annotations

import copy
import functools
import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from nbmf.codec import format, kernel
from nbmf.codec.format import ARRAY, NEURAL, PACKED, PLAIN, STORED, ZSTD
from nbmf.codec.model import Model, Pack, has_section, load_model, load_pack, lookup, section
from nbmf.codec.values import ARRAY as ARRAY_TYPE
from nbmf.codec.values import VECTOR, from_raw, to_raw
from nbmf.errors import CorruptRecord, NbmfError, OutputLimit, PolicyError, StreamError, StreamLimit, UnknownModel

if TYPE_CHECKING:
    from nbmf.codec.bounds import Bound
    from nbmf.codec.numbers import Tolerances
    from nbmf.codec.vector_transform import Prepared

DEFAULT_MAX_OUT: Final = 64 << 20  # bytes
FIDELITIES: Final = ("lossless", "semantic")
_THREADS: Final = min(os.cpu_count() or 1, 16)


@functools.lru_cache(maxsize=16)
def _coder(model: Model, pack: Pack | None) -> kernel.Coder:
    return kernel.load(memoryview(model.buffer), memoryview(pack.buffer) if pack else None)


def _strange(pack: Pack) -> float:
    """Payload bytes per raw byte over which a record is taken for one unlike those the pack was learned from.

    Between what those cost with the pack and without it. A pack that does not tell is tried against nothing.
    """
    card = pack.card
    bits = [card.get(f"bits_per_byte_{name}") for name in ("with", "without")]
    if not all(isinstance(x, float) and x > 0 for x in bits):
        return 0.0
    return math.sqrt(bits[0] * bits[1]) / 8  # type: ignore[operator]


class Codec:
    """One model, with or without a domain pack, loaded once. Thread-safe.

    `model` is a name or a path ending in .nbm; `domain` a name, a path ending in .nbp, or a Pack; `max_out` caps the
    raw bytes of a decoded value. Raises UnknownModel, FormatError, PolicyError (a profile that the model has not).
    """

    def __init__(
        self,
        model: str = "base",
        profile: str = "fast",
        domain: str | Pack | None = None,
        max_out: int = DEFAULT_MAX_OUT,
    ) -> None:
        if profile not in format.PROFILES:
            raise PolicyError(f"profile {profile!r} is neither fast nor dense")
        self.model = load_model(model)
        if profile not in self.model.profiles:
            raise PolicyError(f"model {model} has no {profile} profile")
        self.pack = domain if isinstance(domain, Pack) else load_pack(domain) if domain else None
        if self.pack and self.pack.model_id != self.model.id:
            raise UnknownModel(self.pack.model_id[:4].hex())
        self.profile = format.PROFILES.index(profile)
        self.max_out = max_out
        self._id4 = (self.pack or self.model).id[: format.ID_SIZE]
        self.coder = _coder(self.model, self.pack)
        self._strange = _strange(self.pack) if self.pack else 0.0

    @property
    def id(self) -> str:
        """Content id of the pack, else of the model, in hex; a bare blob's container keeps it. Blobs carry 8 digits."""
        return (self.pack or self.model).id.hex()

    def in_profile(self, profile: str) -> Codec:
        """This codec, encoding in a profile: "fast" or "dense". Raises PolicyError where its model has it not."""
        if profile == format.PROFILES[self.profile]:
            return self
        if profile not in self.model.profiles:
            raise PolicyError(f"model {self.model.path.stem} has no {profile} profile")
        other = copy.copy(self)
        other.profile = format.PROFILES.index(profile)
        return other

    # -- encoding ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def vectors(self) -> tuple[Prepared, ...]:
        """The transforms that the pack learned from vectors. Raises FormatError."""
        if self.pack is None or not has_section(self.pack.buffer, "vectors"):
            return ()
        from nbmf.codec.vector_transform import Prepared, read_section

        return tuple(map(Prepared, read_section(section(self.pack.buffer, "vectors"))))

    def encode(
        self,
        value: Any,
        bare: bool = False,
        verify: bool = False,
        fidelity: str = "lossless",
        allow_nan: bool = False,
        *,
        bound: Bound | None = None,
        tolerance: Tolerances | None = None,
        beside: Any = None,
    ) -> bytes:
        """The blob of `value`. With `verify`, it is decoded and compared before it is returned.

        Fidelity `semantic` keeps every vector of an array within `bound` (a cosine of 0.995) and the numbers of a JSON
        value within `tolerance` (none: exact); all else is exact. `beside`, int16 of a pack's length, is what writer
        and reader both know of an array: one that was predicted from it is decoded with it alone. docs/fidelity.md.

        Raises UnsupportedValue, PolicyError (a fidelity there is not), CorruptRecord (verification failed).
        """
        if fidelity != "lossless":
            _check_fidelity(fidelity)
            if _is_array(value):
                blob = self._bounded(value, bare, verify, bound, beside)
                if blob is not None:
                    return blob
            elif tolerance is not None:
                value = _rounded(value, tolerance)
        value_type, raw = self.to_pair(value, allow_nan)
        blob = self.from_pair(value_type, raw, bare)
        if verify:
            self._verify(value_type, raw, blob, bare)
        return blob

    def from_pair(self, value_type: int, raw: bytes, bare: bool = False) -> bytes:
        """The exact blob of a value's type number and raw bytes, as `to_pair` or `raw` gives them."""
        if value_type == ARRAY_TYPE:
            return self._exact_array(value_type, raw, bare)
        segments = format.split_raw(raw)
        payloads = (
            [self.coder.encode(raw, value_type, self.profile)]
            if len(segments) == 1
            else self.coder.encode_many(segments, bytes([value_type]) * len(segments), self.profile, _THREADS)
        )
        return self._race(value_type, raw, payloads, bare)

    def encode_many(
        self,
        values: Iterable[Any],
        bare: bool = False,
        verify: bool = False,
        allow_nan: bool = False,
        *,
        fidelity: str = "lossless",
        bound: Bound | None = None,
        tolerance: Tolerances | None = None,
    ) -> list[bytes]:
        """The blobs of many values, on all cores. Raises as `encode`."""
        if fidelity != "lossless":
            _check_fidelity(fidelity)
            values = list(values)
            bounded = {
                at: blob
                for at, value in enumerate(values)
                if _is_array(value) and (blob := self._bounded(value, bare, verify, bound, None)) is not None
            }
            left = [value for at, value in enumerate(values) if at not in bounded]
            if tolerance is not None:
                left = [value if _is_array(value) else _rounded(value, tolerance) for value in left]
            others = iter(self.encode_many(left, bare, verify, allow_nan))
            return [bounded[at] if at in bounded else next(others) for at in range(len(values))]
        pairs = [self.to_pair(value, allow_nan) for value in values]
        blobs = self.from_pairs(pairs, bare)
        if verify:
            for pair, blob, back in zip(pairs, blobs, self.raw_many(blobs, bare), strict=True):
                if back != pair:
                    raise CorruptRecord(f"a blob of {len(blob)} bytes did not decode to its value")
        return blobs

    def from_pairs(self, pairs: list[tuple[int, bytes]], bare: bool = False) -> list[bytes]:
        """`from_pair` of each, on all cores."""
        parts = [[] if value_type == ARRAY_TYPE else format.split_raw(raw) for value_type, raw in pairs]
        types = b"".join(bytes([pair[0]]) * len(part) for pair, part in zip(pairs, parts, strict=True))
        payloads = self.coder.encode_many(
            [segment for part in parts for segment in part], types, self.profile, _THREADS
        )
        blobs = []
        at = 0
        for (value_type, raw), part in zip(pairs, parts, strict=True):
            if value_type == ARRAY_TYPE:
                blobs.append(self._exact_array(value_type, raw, bare))
            else:
                blobs.append(self._race(value_type, raw, payloads[at : at + len(part)], bare))
            at += len(part)
        return blobs

    def _bounded(self, array: Any, bare: bool, verify: bool, bound: Bound | None, beside: Any) -> bytes | None:
        """The blob of an array within a bound; None where it is to be kept exactly, or is no larger so."""
        vector = _vector()
        coded = vector.encode_bounded(array, bound or vector.DEFAULT, self.vectors, beside)
        if coded is None:
            return None
        if len(coded.raw) > self.max_out:
            raise OutputLimit(f"the value has {len(coded.raw)} bytes; decoders of this codec stop at {self.max_out}")
        value_type = vector.layout_of(array).value_type
        blob = format.build(
            PACKED if coded.packed else ARRAY,
            value_type,
            format.crc(value_type, coded.raw),
            coded.payload,
            bare=bare,
            id=self._id4,
        )
        tried = len(blob) * vector.SMALL > len(coded.raw) or vector.repeats(array)
        if tried and len(blob) >= len(self.from_pair(*to_raw(array), bare)):
            return None
        if verify and self.raw(blob, bare, beside) != (value_type, coded.raw):
            raise CorruptRecord(f"a blob of {len(blob)} bytes did not decode to its value")
        return blob

    def _exact_array(self, value_type: int, raw: bytes, bare: bool) -> bytes:
        payload = _vector().encode_exact(value_type, raw)
        return format.build(ARRAY, value_type, format.crc(value_type, raw), payload, bare=bare)

    def to_pair(self, value: Any, allow_nan: bool = False) -> tuple[int, bytes]:
        """The value's type number and raw bytes. Raises UnsupportedValue, OutputLimit."""
        value_type, raw = to_raw(value, allow_nan=allow_nan)
        if len(raw) > self.max_out:
            raise OutputLimit(f"the value has {len(raw)} bytes; decoders of this codec stop at {self.max_out}")
        return value_type, raw

    def _race(self, value_type: int, raw: bytes, payloads: list[bytes], bare: bool) -> bytes:
        """The smallest of the three methods; framing counts, since only a neural self-describing blob carries an id."""
        extra = 0 if bare else format.ID_SIZE
        segmented = len(payloads) > 1
        method, payload, size = STORED, raw, len(raw)
        id = self._id4
        if payloads:
            neural, best = payloads[0], NEURAL
            if segmented:
                neural = format.join_segments(payloads)
            elif self.pack and len(neural) > self._strange * len(raw):
                # The pack may do harm to a record unlike its own: such a one is coded without it where that is smaller.
                alone = _coder(self.model, None).encode(raw, value_type, self.profile)
                if len(alone) < len(neural):
                    neural = alone
                    if bare:
                        best = PLAIN
                    else:
                        id = self.model.id[: format.ID_SIZE]
            if len(neural) + extra < size:
                method, payload, size = best, neural, len(neural) + extra
            if size > format.zstd_floor(raw) or (method >= NEURAL and size == format.zstd_floor(raw)):
                frame = format.zstd_compress(raw)
                if len(frame) < size or (method >= NEURAL and len(frame) == size):
                    method, payload, size = ZSTD, frame, len(frame)
        if value_type == VECTOR and len(raw) >= format.VECTOR_LEAST:
            floats = _vector().encode_exact(value_type, raw)
            if len(floats) < size:
                return format.build(ARRAY, value_type, format.crc(value_type, raw), floats, bare=bare)
        neural_won = method >= NEURAL
        return format.build(
            method,
            value_type,
            format.crc(value_type, raw),
            payload,
            bare=bare,
            profile=self.profile if neural_won else format.FAST,
            segmented=segmented and neural_won,
            id=id if neural_won else b"",
        )

    def _verify(self, value_type: int, raw: bytes, blob: bytes, bare: bool) -> None:
        parsed = format.parse(blob, bare=bare)
        if parsed.value_type != value_type or self._raw(parsed) != raw:
            raise CorruptRecord(f"a blob of {len(blob)} bytes did not decode to its value")

    # -- decoding ------------------------------------------------------------------------------------------------------

    def decode(self, blob: bytes, bare: bool = False, *, beside: Any = None) -> Any:
        """The value of a blob: of a self-describing one, whatever model it names; of a bare one, with this codec's.

        `beside` is what an array was encoded beside; one that was predicted from it cannot be read without.

        Raises FormatError, CorruptRecord, UnknownModel, OutputLimit; never returns a value whose check is wrong.
        """
        return from_raw(*self.raw(blob, bare, beside))

    def raw(self, blob: bytes, bare: bool = False, beside: Any = None) -> tuple[int, bytes]:
        """The type number and raw bytes of a blob's value, check verified. Raises as `decode`."""
        parsed = format.parse(blob, bare=bare)
        return parsed.value_type, self._codec_for(parsed)._raw(parsed, beside)

    def decode_many(self, blobs: Iterable[bytes], bare: bool = False) -> list[Any]:
        """The values of many blobs, on all cores. Raises as `decode`, for the first blob at fault."""
        blobs = list(blobs)
        try:
            return [from_raw(value_type, raw) for value_type, raw in self.raw_many(blobs, bare)]
        except NbmfError:  # of any of them: the first in order is found one by one
            return [self.decode(blob, bare) for blob in blobs]

    def raw_many(self, blobs: list[bytes], bare: bool = False) -> list[tuple[int, bytes]]:
        """`raw` of each, on all cores. Raises as `decode`, for any of them."""
        parsed = [format.parse(blob, bare=bare) for blob in blobs]
        out: list[tuple[int, bytes]] = [(0, b"")] * len(parsed)
        mine: list[list[int]] = [[], []]  # by profile
        for i, blob in enumerate(parsed):
            if self._is_mine(blob) and not blob.segmented and self.max_out >= format.SEGMENT_SIZE:
                mine[blob.profile].append(i)
            else:
                out[i] = (blob.value_type, self._codec_for(blob)._raw(blob))
        for profile, numbers in enumerate(mine):
            if not numbers:
                continue
            types = bytes(parsed[i].value_type for i in numbers)
            payloads = [parsed[i].payload for i in numbers]
            try:
                raws = self.coder.decode_many(payloads, types, profile, _THREADS, format.SEGMENT_SIZE)
            except StreamError:
                raws = [self._raw(parsed[i]) for i in numbers]  # one by one: raises for the first at fault
            for i, raw in zip(numbers, raws, strict=True):
                format.verify(parsed[i], raw)
                out[i] = (parsed[i].value_type, raw)
        return out

    def _is_mine(self, blob: format.Blob) -> bool:
        return (
            blob.method == NEURAL
            and format.PROFILES[blob.profile] in self.model.profiles
            and blob.id in (b"", self._id4)
        )

    def _codec_for(self, blob: format.Blob) -> Codec:
        if not blob.id or blob.id in (self._id4, self.model.id[: format.ID_SIZE]):
            return self
        return _codec_by_id(blob.id, self.max_out)

    def _raw(self, blob: format.Blob, beside: Any = None) -> bytes:
        """The raw bytes of a blob of this codec's model, check verified."""
        if blob.method < NEURAL:
            return _plain(blob, self.max_out)
        if blob.method >= ARRAY:
            return _array(blob, self, self.max_out, beside)
        if format.PROFILES[blob.profile] not in self.model.profiles:
            raise UnknownModel(self.id[:8], f"model {self.id[:8]} has no {format.PROFILES[blob.profile]} profile")
        raw = self._neural(blob)
        format.verify(blob, raw)
        return raw

    def _neural(self, blob: format.Blob) -> bytes:
        alone = blob.method == PLAIN or (self.pack and blob.id == self.model.id[: format.ID_SIZE])
        coder = _coder(self.model, None) if alone else self.coder
        most = min(self.max_out, format.SEGMENT_SIZE)
        try:
            if not blob.segmented:
                return coder.decode(blob.payload, blob.value_type, blob.profile, most)
            payloads = format.split_segments(blob.payload, self.max_out)
            # A few segments at a time, so that a hostile blob is refused before much memory is spent on it.
            segments: list[bytes] = []
            for at in range(0, len(payloads), _THREADS):
                batch = payloads[at : at + _THREADS]
                types = bytes([blob.value_type]) * len(batch)
                segments += coder.decode_many(batch, types, blob.profile, _THREADS, format.SEGMENT_SIZE)
            raw = format.join_raw(segments)
        except StreamLimit:
            if most < format.SEGMENT_SIZE:
                raise OutputLimit(f"the value is larger than {self.max_out} bytes") from None
            raise CorruptRecord("the stream passes the size of a segment") from None
        except StreamError as error:
            raise CorruptRecord(str(error)) from None
        if len(raw) > self.max_out:
            raise OutputLimit(f"the value is larger than {self.max_out} bytes")
        return raw


_shared: dict[tuple[bytes, bytes], Codec] = {}  # by the files' content, as a pack may be learned anew under its name


def _shared_codec(domain: str | None) -> Codec:
    key = (load_model().id, load_pack(domain).id if domain else b"")
    if key not in _shared:
        _shared[key] = Codec(domain=domain)
    return _shared[key]


@functools.lru_cache(maxsize=16)
def _codec_by_id(id: bytes, max_out: int) -> Codec:
    model, pack = lookup(id)
    return Codec(str(model.path), domain=str(pack.path) if pack else None, max_out=max_out)


def encode(
    value: Any,
    fidelity: str = "lossless",
    domain: str | None = None,
    *,
    bound: Bound | None = None,
    tolerance: Tolerances | None = None,
    beside: Any = None,
) -> bytes:
    """The self-describing blob of a value: text, JSON value, bytes, or float32 or float16 array of (d,) or (n, d).

    `domain` is a path when it ends in .nbp, else the name of a registered pack. Raises as `Codec` and `Codec.encode`.
    """
    return _shared_codec(domain).encode(value, fidelity=fidelity, bound=bound, tolerance=tolerance, beside=beside)


def decode(blob: bytes | Mapping[str, Any] | str, max_out: int = DEFAULT_MAX_OUT, *, beside: Any = None) -> Any:
    """The value of a self-describing blob. Models are looked up in the package, NBMF_MODELS and the user's data.

    The old encoder's dicts and their JSON text are read too (dropin.py); its semantic ones give their preview.

    Raises FormatError, CorruptRecord, UnknownModel, OutputLimit, all NbmfError.
    """
    # No blob begins with a brace: its method would be 3.
    if isinstance(blob, (str, Mapping)) or (isinstance(blob, (bytes, bytearray)) and blob[:1] == b"{"):
        from nbmf.codec import dropin, stub

        return dropin.decode(blob if isinstance(blob, Mapping) else stub.parse_text(blob), max_out)
    parsed = format.parse(blob, bare=False)
    if parsed.id:
        raw = _codec_by_id(parsed.id, max_out)._raw(parsed, beside)
    elif parsed.method >= ARRAY:
        raw = _array(parsed, None, max_out, beside)
    else:
        raw = _plain(parsed, max_out)
    return from_raw(parsed.value_type, raw)


def _check_fidelity(fidelity: str) -> None:
    if fidelity not in FIDELITIES:
        raise PolicyError(f"fidelity {fidelity!r} is neither lossless nor semantic")


def _is_array(value: Any) -> bool:
    return (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.ndarray)


@functools.cache
def _vector() -> Any:
    """The module of arrays, which takes NumPy: imported when the first array comes."""
    from nbmf.codec import vector

    return vector


def _rounded(value: Any, tolerance: Tolerances) -> Any:
    from nbmf.codec.numbers import rounded

    return rounded(value, tolerance)


def _array(blob: format.Blob, codec: Codec | None, max_out: int, beside: Any) -> bytes:
    """The raw bytes of an array's blob, check verified. `codec` has the pack, where the blob needs one."""
    transforms: Any = None
    if blob.method == PACKED:
        if codec is None or codec.pack is None:
            raise UnknownModel(codec.id[:8] if codec else "", "a vector was coded with a pack, and there is none here")
        transforms = codec.vectors
    raw: bytes = _vector().decode(blob.payload, blob.value_type, transforms, max_out, beside)
    format.verify(blob, raw)
    return raw


def _plain(blob: format.Blob, max_out: int) -> bytes:
    """The raw bytes of a stored or zstd blob, which need no model."""
    if blob.method == ZSTD:
        raw = format.zstd_decompress(blob.payload, max_out)
    elif len(blob.payload) > max_out:
        raise OutputLimit(f"the value is larger than {max_out} bytes")
    else:
        raw = blob.payload
    format.verify(blob, raw)
    return raw
