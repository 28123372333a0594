"""A checkpoint's model files as a tar stream: constant memory, and a length known before the first byte."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from api.files import read_chunks
from control_plane.storage import Storage

END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Member:
    key: str
    header: bytes
    size: int

    @property
    def padding(self) -> int:
        return -self.size % tarfile.BLOCKSIZE


class Archive:
    """The objects below `prefix` under a folder `name`, in the order of their names. The same bytes every time."""

    def __init__(self, storage: Storage, prefix: str, name: str, made_at: datetime) -> None:
        self._storage = storage
        self._members = [
            self._member(key, f"{name}/{key.removeprefix(prefix + '/')}", int(made_at.timestamp()))
            for key in storage.keys(prefix)
        ]
        if not self._members:
            raise FileNotFoundError(f"storage has nothing below {prefix}")

    @property
    def length(self) -> int:
        """Bytes of the whole stream."""
        return sum(len(member.header) + member.size + member.padding for member in self._members) + len(END)

    def chunks(self) -> Iterator[bytes]:
        for member in self._members:
            yield member.header
            yield from read_chunks(self._storage.open(member.key))
            yield bytes(member.padding)
        yield END

    def _member(self, key: str, path: str, made_at: int) -> Member:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mtime, entry.mode = self._storage.size(key), made_at, 0o644
        return Member(key, entry.tobuf(tarfile.PAX_FORMAT), entry.size)
