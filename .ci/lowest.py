"""`make lowest`: the tests under the lowest versions that setup.cfg allows.

python .ci/lowest.py PYTHON FOLDER [--newest] [pytest's arguments]

Makes a virtual environment of PYTHON (3.10, the lowest) in FOLDER, with every package of
install_requires at exactly the version after its `>=`, and with what of the test extra fits beside
it; then runs the tests there. --newest: the newest versions instead, for another Python. Where an
index has no CPU build of torch, a CUDA build of some gigabytes is taken.
"""

import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# For the tests; without the engines of benchmarks and notebooks, whose tests are skipped then.
TESTS = (
    *(
        "pytest>=8",
        "pytest-xdist",
        "httpx",
        "hypothesis",
        "torchmetrics",
        "scipy",
        "setuptools>=70.1",
    ),
    *("opencv-python-headless<4.12", "pycocotools", "transformers<5"),
)


def lowest() -> list[str]:
    """The requirements of the package and of its page, each at its lower bound."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["install_requires"] + config["options.extras_require"]["app"]
    return [re.sub(">=", "==", line) for line in listed.split()]


def main(python: str, folder: Path, arguments: list[str]) -> int:
    """Make the environment, say what is in it, run the tests: pytest's exit code."""
    newest = "--newest" in arguments
    arguments = [each for each in arguments if each != "--newest"]
    here = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        pinned = [each.replace("==", ">=") if newest else each for each in lowest()]
        tests = [re.sub("<.*", "", each) if newest else each for each in TESTS]
        pip = [here, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *pinned, *tests], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
        (folder / "ready").touch()
    names = [re.split("==", each)[0] for each in lowest()]
    shown = (
        "import sys, importlib.metadata as m; print('Python', sys.version.split()[0],"
        " *[f'{n} {m.version(n)}' for n in sys.argv[1:]], sep=', ')"
    )
    subprocess.run([here, "-c", shown, *names], check=True)
    return subprocess.run([here, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3:]))
