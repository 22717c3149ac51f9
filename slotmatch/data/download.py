"""Fetches MOVi from Kubric's public bucket: anonymous, resumable, every byte checked.

The bucket is ``kubric-public`` of Google Cloud Storage. Its JSON API lists the size and the CRC32C
of each file (https://cloud.google.com/storage/docs/json_api/v1/objects), so what a download needs
on disk is known before it starts and what arrives is held to it. A file gets its name when it is
whole and right; until then it is ``.<name>.part``, from which the same command goes on.
"""

import base64
import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import google_crc32c
from tqdm import tqdm

from slotmatch.data import movi

__all__ = ["BUCKET", "SERVER", "Plan", "Remote", "Server", "fetch", "plan"]

SERVER = "https://storage.googleapis.com"
BUCKET = "kubric-public"
CHUNK = 1 << 20
T = TypeVar("T")


class _CutError(Exception):
    """The connection or the server failed in a way that another attempt may mend."""


@dataclass(frozen=True)
class Remote:
    """A file of the bucket.

    Attributes:
        path: Its name there, with folders.
        size: In bytes.
        crc32c: Its checksum.
    """

    path: str
    size: int
    crc32c: int

    @property
    def name(self) -> str:
        """The last part of ``path``."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Server:
    """Where the bucket is, and how patient to be with it.

    Attributes:
        address: Start of every URL.
        attempts: How often to try in a row without getting any further.
        wait: Seconds before the second attempt; twice as long before each further one, at most 60.
        timeout: Seconds of silence after which a connection counts as cut.
    """

    address: str = SERVER
    attempts: int = 6
    wait: float = 1.0
    timeout: float = 60.0

    def files(self, folder: str) -> dict[str, Remote]:
        """The files in a folder of the bucket, by name.

        Raises:
            OSError: no answer, or another one than a list.
        """
        found: dict[str, Remote] = {}
        query = {"prefix": folder, "fields": "items(name,size,crc32c),nextPageToken"}
        while True:
            page = self._json(f"{self.address}/storage/v1/b/{BUCKET}/o?{urlencode(query)}")
            for item in page.get("items", ()):
                crc = int.from_bytes(base64.b64decode(item["crc32c"]), "big")
                remote = Remote(item["name"], int(item["size"]), crc)
                found[remote.name] = remote
            if "nextPageToken" not in page:
                return found
            query["pageToken"] = page["nextPageToken"]

    def save(self, remote: Remote, path: Path, moved: Callable[[int], object]) -> None:
        """Fetch one file to ``path``, going on from what is there of it.

        Args:
            remote: What to fetch.
            path: Appears when the file is whole and its checksum right.
            moved: Is told of every number of bytes gained, or lost (negative).

        Raises:
            OSError: the server refuses, or keeps failing; or the disk is full.
        """
        part = _part(path)
        self._retry(lambda: self._receive(remote, part, moved), remote.name, lambda: _size_of(part))
        os.replace(part, path)

    def _receive(self, remote: Remote, part: Path, moved: Callable[[int], object]) -> None:
        have = _size_of(part)
        if have < remote.size:
            with self._open(f"{self.address}/{BUCKET}/{quote(remote.path)}", have) as response:
                start = have if response.status == 206 else 0  # 200: it knows no ranges
                if start and f"bytes {start}-" not in response.headers.get("Content-Range", ""):
                    raise _CutError("the answer is not the range that was asked for")
                moved(start - have)
                have = start
                with part.open("ab" if start else "wb") as file:
                    while have <= remote.size and (chunk := _read(response)):
                        file.write(chunk)
                        have += len(chunk)
                        moved(len(chunk))
        if have < remote.size:
            raise _CutError(f"the connection ended after {have:,} of {remote.size:,} bytes")
        if have > remote.size or _crc32c(part) != remote.crc32c:
            part.unlink()
            moved(-have)
            kind = "checksum (CRC32C)" if have == remote.size else f"size ({remote.size:,} bytes)"
            raise _CutError(f"what arrived does not have the {kind} that the bucket lists")

    def json(self, path: str) -> dict[str, Any]:
        """The content of a small JSON file of the bucket.

        Raises:
            OSError: as ``save``.
        """
        return self._json(f"{self.address}/{BUCKET}/{quote(path)}")

    def _json(self, url: str) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            with self._open(url) as response:
                content = b"".join(iter(lambda: _read(response), b""))
            try:
                return dict(json.loads(content))
            except ValueError as error:
                raise _CutError("the answer is no JSON, or half of it") from error

        return self._retry(answer, url, lambda: 0)

    def _open(self, url: str, start: int = 0) -> HTTPResponse:
        request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            return urlopen(request, timeout=self.timeout)
        except HTTPError as error:
            error.close()
            told = f"the server answers {error.code} {error.reason}"
            if error.code in (408, 429) or error.code >= 500:
                raise _CutError(told) from error
            raise OSError(f"{url}: {told}") from error
        except (OSError, HTTPException) as error:
            raise _CutError(f"no connection ({error})") from error

    def _retry(self, action: Callable[[], T], what: str, gained: Callable[[], int]) -> T:
        failures, reached = 0, gained()
        while True:
            try:
                return action()
            except _CutError as error:
                failures = 1 if gained() > reached else failures + 1
                reached = max(reached, gained())
                if failures >= self.attempts:
                    raise OSError(
                        f"{what}: {error}; gave up after {failures} attempts. What has arrived "
                        "is kept: the same command goes on from there"
                    ) from error
                time.sleep(min(self.wait * 2 ** (failures - 1), 60))


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise _CutError(f"the connection was cut ({error})") from error


def _crc32c(path: Path) -> int:
    digest = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return int.from_bytes(digest.digest(), "big")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@dataclass(frozen=True)
class Plan:
    """What a download is going to do.

    Attributes:
        folder: Where the files go.
        files: All of them, those that are there already included.
        splits: What they are, for the reader.
    """

    folder: Path
    files: tuple[Remote, ...]
    splits: tuple[str, ...]

    @property
    def missing(self) -> tuple[Remote, ...]:
        """Files that are not there in full size."""
        return tuple(f for f in self.files if _size_of(self.folder / f.name) != f.size)

    @property
    def needed(self) -> int:
        """Bytes still to come."""
        parts = sum(_size_of(_part(self.folder / file.name)) for file in self.missing)
        return max(0, sum(file.size for file in self.missing) - parts)

    @property
    def free(self) -> int:
        """Bytes free on the disk of ``folder``."""
        place = self.folder
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def __str__(self) -> str:
        total = sum(file.size for file in self.files)
        return (
            f"{', '.join(self.splits)}: {len(self.files)} files, {_gigabytes(total)}; to come: "
            f"{len(self.missing)} files, {_gigabytes(self.needed)}; free on the disk of "
            f"{self.folder}: {_gigabytes(self.free)}"
        )


def plan(
    name: str,
    *,
    split: str | None = None,
    n_videos: int | None = None,
    root: str | PathLike[str] | None = None,
    server: Server | None = None,
) -> Plan:
    """Ask the bucket which files a set consists of, and how large they are.

    Args:
        name: One of ``slotmatch.data.movi.NAMES``.
        split: Only this one.
        n_videos: Only the shards with the first so many videos of each split.
        root: Folder that holds the data sets; None gives ``slotmatch.paths.data_dir()``.
        server: Another one than Google's.

    Raises:
        ValueError: no such set or split.
        OSError: the bucket does not answer, or lacks files.
    """
    server = server or Server()
    if name not in movi.NAMES:
        raise ValueError(f"{name!r} cannot be downloaded; choose from {', '.join(movi.NAMES)}")
    folder = f"tfds/{name}/128x128/{movi.VERSION}/"
    listed = server.files(folder)
    where = f"{server.address}/{BUCKET}/{folder}"
    if movi.INFO not in listed:
        raise FileNotFoundError(f"{where} holds no {movi.INFO}: {name} is not, or no longer, there")
    splits = movi.listed_splits(server.json(listed[movi.INFO].path), name, where + movi.INFO)
    if split is not None and split not in splits:
        raise ValueError(f"{name} has no split {split!r}; choose from {', '.join(splits)}")
    chosen = [entry for entry in splits.values() if split in (None, entry.split)]
    names = [shard for entry in chosen for shard in entry.needed(n_videos)]
    lost = [shard for shard in names if shard not in listed]
    if lost:
        raise FileNotFoundError(
            f"{where} lacks {len(lost)} of the {len(names)} shards needed, such as {lost[0]}"
        )
    small = [file for file in (movi.INFO, movi.FEATURES) if file in listed]
    files = tuple(listed[file] for file in (*small, *names))
    told = tuple(
        f"{name} {entry.split} ({min(n_videos or entry.n_videos, entry.n_videos)} videos)"
        for entry in chosen
    )
    return Plan(movi.data_folder(name, root), files, told)


def fetch(planned: Plan, *, server: Server | None = None) -> None:
    """Do what ``plan`` said. After a stop of any kind the same call goes on from there.

    Args:
        planned: What ``plan`` returned.
        server: The one that ``plan`` asked.

    Raises:
        OSError: the disk is too small, which is told before anything is fetched, or got full;
            or the server refuses or keeps failing. What has arrived is kept.
    """
    server = server or Server()
    folder = planned.folder
    if planned.needed > planned.free:
        raise OSError(
            f"{', '.join(planned.splits)} needs {_gigabytes(planned.needed)} more and the disk of "
            f"{folder} has {_gigabytes(planned.free)} free: free some, choose another disk with "
            "SLOTMATCH_DATA, or take fewer videos with --max-videos"
        )
    total = sum(file.size for file in planned.files)
    with tqdm(
        total=total,
        initial=total - planned.needed,
        unit="B",
        unit_scale=True,
        desc=f"fetching {folder.parents[1].name}",
        disable=None,
    ) as bar:
        folder.mkdir(parents=True, exist_ok=True)
        for file in planned.missing:
            try:
                server.save(file, folder / file.name, bar.update)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(
                    f"the disk of {folder} is full; what has arrived is kept: free "
                    f"{_gigabytes(planned.needed)} and run the same command again"
                ) from error


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e7 else f"{n_bytes / 1e6:.2f} MB"
