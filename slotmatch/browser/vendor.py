"""JavaScript of others that the book's live page runs, fetched once from npm and checked.

``python -m slotmatch.browser`` does so before it is needed, as installing does.

Nothing of it is committed: the build puts it beside the pages, which then load from one host alone.
"""

import base64
import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from slotmatch import paths

__all__ = ["ONNXRUNTIME", "Package", "fetch"]

REGISTRY = "https://registry.npmjs.org"
SECONDS = 60


@dataclass(frozen=True)
class Package:
    """An npm package of one version, its checksum (npm's ``dist.integrity``), and wanted files."""

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]


ONNXRUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    (
        "dist/ort.wasm.min.mjs",
        "dist/ort-wasm-simd-threaded.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
    ),
)
"""The runtime of ONNX files in WebAssembly (MIT)."""


def fetch(package: Package, registry: str | None = None) -> Path:
    """Folder with the package's files, in the cache after the first call.

    Args:
        package: what to fetch.
        registry: address of an npm registry; None: ``NPM_CONFIG_REGISTRY`` or npm's own.

    Raises:
        RuntimeError: it cannot be reached, or gave other bytes than the checksum's.
    """
    folder = paths.cache_dir() / "npm" / f"{package.name}-{package.version}"
    if all((folder / Path(name).name).is_file() for name in package.files):
        return folder
    registry = registry or os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
    file = f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    address = f"{registry.rstrip('/')}/{package.name}/-/{file}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        archive = Path(temporary) / file
        try:
            with (
                urllib.request.urlopen(address, timeout=SECONDS) as source,
                archive.open("wb") as target,
            ):
                shutil.copyfileobj(source, target)
        except (OSError, urllib.error.URLError) as error:
            raise RuntimeError(
                f"{address} cannot be fetched ({error}): the live page needs it once, with a "
                "network or another registry in NPM_CONFIG_REGISTRY"
            ) from error
        kind, _, expected = package.integrity.partition("-")
        found = hashlib.new(kind, archive.read_bytes()).digest()
        if base64.b64encode(found).decode() != expected:
            raise RuntimeError(
                f"{address} is not what it was: its {kind} differs, so it is refused"
            )
        with tarfile.open(archive) as packed:
            for name in package.files:
                member = packed.extractfile(f"package/{name}")
                if member is None:
                    raise RuntimeError(f"{address} has no file {name}")
                with paths.atomic(folder / Path(name).name) as unfinished:
                    unfinished.write_bytes(member.read())
    return folder
