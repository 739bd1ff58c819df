"""The packages we take drawings and words from: pinned, hashed, read in memory.

A tarball is fetched once with `npm pack` into a cache folder and checked against the sha512 below on every use.
Members are read by name; nothing is ever unpacked.  What the files mean is in labels.py and icons.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.bundle.files import reading
from edgemm.data.format import Source
from edgemm.device.cache_folder import cache_folder
from edgemm.errors import CheckFailedError, MissingError

__all__ = ["LABELS", "PACKAGES", "STYLES", "Package", "default_cache", "fetch", "read_json"]

FETCH_TIMEOUT_S = 300


@dataclass(frozen=True)
class Package:
    """One pinned npm package."""

    name: str
    version: str
    sha512: str  # base64, as in `npm view NAME@VERSION dist.integrity`
    licence: str  # SPDX
    licence_file: str  # in edgemm/data/licences; the icon packages carry none
    author: str

    @property
    def file_name(self) -> str:
        """What `npm pack` calls the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def notice_file(self) -> str:
        """The licence's file name in a data set: a text that names its author is one file an author."""
        if self.licence_file not in ("MIT.txt", "ISC.txt"):
            return self.licence_file
        return self.licence_file.replace(".txt", f"-{self.name.rpartition('/')[2]}.txt")

    @property
    def source(self) -> Source:
        return Source(self.name, self.version, self.sha512, self.licence)


LABELS = "emojibase"
PACKAGES: dict[str, Package] = {
    LABELS: Package(
        "emojibase-data",
        "17.0.0",
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
        "MIT",
        "MIT-emojibase-data.txt",
        "Miles Johnson",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "MIT-fluent-emoji.txt",
        "Microsoft Corporation",
    ),
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Apache-2.0.txt",
        "Google Inc",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Apache-2.0.txt",
        "Google Inc",
    ),
    "fluent-color": Package(  # the drawings of "fluent" with shading: more to read, nothing new to draw
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "MIT",
        "MIT-fluent-emoji.txt",
        "Microsoft Corporation",
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0",
        "Apache-2.0.txt",
        "Mozilla",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "CC-BY-4.0-twemoji.txt",
        "Twitter, Inc. and other contributors",
    ),
    "openmoji": Package(  # share-alike: for adapters of one's own, never for weights that are released
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "CC-BY-SA-4.0",
        "CC-BY-SA-4.0-openmoji.txt",
        "OpenMoji, HfG Schwäbisch Gmünd",
    ),
}
STYLES = tuple(name for name in PACKAGES if name != LABELS)


def default_cache() -> Path:
    """`$EDGEMM_CACHE`, `$XDG_CACHE_HOME/edgemm`, or `~/.cache/edgemm`."""
    return cache_folder("")


def fetch(package: Package, cache: Path, *, offline: bool = False) -> Path:
    """The package's tarball in `cache`, its hash checked; fetched when it is not there."""
    tarball = cache / package.file_name
    if not tarball.is_file():
        _pack(package, cache, offline)
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise CheckFailedError(
            f"{tarball} has sha512 {found[:12]}..., expected {package.sha512[:12]}... for {package.name}@"
            f"{package.version}; delete the file and run again"
        )
    return tarball


def read_json(tarball: Path, member: str) -> Any:
    """One JSON member of an npm tarball, by its path below `package/`."""
    with reading(tarball, f"no readable {member}; delete it and run again"):
        with tarfile.open(tarball, "r:gz") as archive:
            stream = archive.extractfile(f"package/{member}")
            if stream is None:
                raise KeyError(member)
            return json.load(stream)


def _pack(package: Package, cache: Path, offline: bool) -> None:
    wanted = f"{package.name}@{package.version}"
    by_hand = f"npm pack {wanted} --pack-destination {cache}"
    if offline:
        raise MissingError(f"{package.file_name} is not in {cache} and --offline forbids fetching it; run: {by_hand}")
    npm = shutil.which("npm")
    if npm is None:
        raise MissingError(
            f"npm is not installed, and {wanted} comes through it; install Node.js, or elsewhere: {by_hand}"
        )
    progress.status(f"fetching {wanted}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:  # a broken fetch never looks whole
        command = [npm, "pack", wanted, "--pack-destination", folder, "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise MissingError(
                f"npm pack {wanted} took over {FETCH_TIMEOUT_S} s; check the network, or: {by_hand}"
            ) from error
        fetched = Path(folder, package.file_name)
        if done.returncode or not fetched.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MissingError(f"npm pack {wanted} failed: {reason}; check the network, then try: {by_hand}")
        fetched.replace(cache / package.file_name)
    progress.status("")
