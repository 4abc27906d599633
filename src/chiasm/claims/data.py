"""Where claims find data: ``CHIASM_DATA``, else what ships with a dependency, else a generated world."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from chiasm.errors import DataNotFound


class Data:
    """What a claim's ``run(seed, data)`` may use; remembers what was used, for the provenance.

    Args:
        root: the folder of data sets; default the environment variable ``CHIASM_DATA``.
        smoke: True in a smoke run: a claim may shrink its sizes (never its logic) so that it takes seconds.
    """

    def __init__(self, root: str | Path | None = None, *, smoke: bool = False) -> None:
        root = root if root is not None else os.environ.get("CHIASM_DATA")
        self.root = Path(root).expanduser() if root else None
        self.smoke = smoke
        self.used: dict[str, str] = {}

    def folder(self, name: str) -> Path | None:
        """The folder of a real set, or None if it is not on this machine."""
        if self.root is None or not (self.root / name).is_dir():
            return None
        if name not in self.used:
            self.used[name] = folder_hash(self.root / name)
        return self.root / name

    def require(self, name: str) -> Path:
        """The folder of a real set.

        Raises:
            DataNotFound: it is not on this machine.
        """
        folder = self.folder(name)
        if folder is None:
            raise DataNotFound(
                f"the data set {name!r} is not here",
                where="CHIASM_DATA",
                fix="Set CHIASM_DATA to the folder that holds it",
            )
        return folder


def folder_hash(folder: Path) -> str:
    """12 hex digits over names, sizes and contents of the files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
