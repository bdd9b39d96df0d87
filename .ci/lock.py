"""`make lock`: the files that the tests run with on this platform, with their SHA-256.

Asks pip what it would install for the extras test and lint with the versions in constraints.txt,
and writes a requirements file for `pip install --require-hashes`.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(target: Path) -> None:
    """Write the lock file of this platform."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv", "bin", "python")
        report = Path(folder, "report.json")
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--report", report]
        command += ["--constraint", ROOT / "constraints.txt", f"{ROOT}[test,lint]"]
        subprocess.run(command, check=True)
        installed = json.loads(report.read_text())["install"]
    lines = []
    for entry in installed:
        if "archive_info" in entry["download_info"]:  # not gem_lite itself
            name, version = entry["metadata"]["name"], entry["metadata"]["version"]
            lines.append(f"{name}=={version} --hash=sha256:{_digest(entry['download_info'])}\n")
    head = (
        "# Written by `make lock`: the files for one platform, read with `pip --require-hashes`.\n"
    )
    target.write_text(head + "".join(sorted(lines, key=str.lower)))


def _digest(download: dict) -> str:
    """Of a file of the index, which says it, or of one that lies on this machine."""
    digest = download["archive_info"].get("hashes", {}).get("sha256")
    if digest is None:
        path = urllib.request.url2pathname(urllib.parse.urlsplit(download["url"]).path)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return digest


if __name__ == "__main__":
    main(Path(sys.argv[1]))
