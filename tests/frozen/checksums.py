"""The SHA-256 of every file of a released version, next to its files: ``sha256sum -c SHA256SUMS`` reads it too."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHECKSUMS = "SHA256SUMS"


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder but the list itself, by its path in there."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != CHECKSUMS:
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def seal(folder: Path) -> None:
    """Write the list of a folder that has none; a list that is there stays, as the files do."""
    checksums = folder / CHECKSUMS
    if checksums.exists():
        return
    lines = [f"{sha256}  {name}\n" for name, sha256 in hash_files(folder).items()]
    checksums.write_text("".join(lines))


def broken_seals(folder: Path) -> list[str]:
    """Say which files of a sealed folder are changed, lost or new since its list was written."""
    sealed = {}
    for line in (folder / CHECKSUMS).read_text().splitlines():
        sha256, _, name = line.partition("  ")
        sealed[name] = sha256
    hashes = hash_files(folder)
    broken = []
    for name, sha256 in sealed.items():
        if name not in hashes:
            broken.append(f"{name} is lost")
        elif hashes[name] != sha256:
            broken.append(f"{name} is changed")
    broken += [f"{name} is new" for name in hashes if name not in sealed]
    return broken
