"""Facts about the repository itself: its links, its names, its requirements."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgemm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgemm"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(PACKAGE.rglob("*.py"))
LARGEST_FILE_BYTES = 20_000_000


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.split("\0") if name]


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    absolute = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {name for name in (*absolute, *plain) if name}


@pytest.mark.parametrize("wing", ["export", "quantize", "runtimes"])
def test_wings_are_relative_links_into_the_package(wing):
    assert (ROOT / wing).is_symlink()
    assert os.readlink(ROOT / wing) == f"edgemm/{wing}"
    assert (ROOT / wing / "__init__.py").is_file()


def test_the_links_are_never_imported():
    sources = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    links = {"export", "quantize", "runtimes"}
    wrong = {
        str(path.relative_to(ROOT)) for path in sources if links & {n.split(".")[0] for n in imported_modules(path)}
    }
    assert not wrong, f"import edgemm.export and its like, not the link at the root: {sorted(wrong)}"


def test_every_module_is_python_3_10():
    for path in MODULES:
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def test_every_folder_of_modules_is_a_package():
    missing = {str(path.parent.relative_to(ROOT)) for path in MODULES if not (path.parent / "__init__.py").is_file()}
    assert not missing, f"a wheel would leave these out: {sorted(missing)}"


def test_no_module_is_named_like_a_library():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    libraries = {re.split(r"[=;]", pin)[0].strip().replace("-", "_") for pin in pins if pin and pin[0] != "#"}
    libraries |= {"tensorrt", "tensorrt_rtx", "PIL", "optimum", "torchvision", "cv2", "yaml", "llama_cpp"}
    verbs = PACKAGE / "cli"  # a file there bears its verb's name: `edgemm build`
    modules = [path for path in MODULES if path.parent != verbs]
    names = {part for path in modules for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not libraries & names


def test_every_requirement_is_pinned():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(Requirement(pin).name) for pin in pins if pin and pin[0] != "#"}
    wanted = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    names = {canonicalize_name(Requirement(requirement).name) for requirement in wanted}
    come_with_the_board = {"tensorrt"}
    assert names - pinned - come_with_the_board - {"edgemm"} == set()


def test_the_base_needs_numpy_alone():
    assert [Requirement(requirement).name for requirement in PROJECT["dependencies"]] == ["numpy"]


def test_the_package_knows_its_version():
    assert getattr(edgemm, "__version__", PROJECT["version"]) == PROJECT["version"]


def test_no_tracked_file_is_large():
    files = [ROOT / name for name in tracked_files() if not name.startswith("checkpoints/")]
    sizes = {str(path.relative_to(ROOT)): path.lstat().st_size for path in files if path.exists()}
    assert not {name: size for name, size in sizes.items() if size > LARGEST_FILE_BYTES}


def test_no_link_leaves_the_repository():
    links = [ROOT / name for name in tracked_files() if (ROOT / name).is_symlink()]
    wrong = [link.name for link in links if Path(os.readlink(link)).is_absolute() or ROOT not in link.resolve().parents]
    assert not wrong


def test_importing_edgemm_brings_no_heavy_library():
    heavy = "{'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'transformers', 'PIL'}"
    code = f"import sys, edgemm; found = {heavy} & set(sys.modules); sys.exit(', '.join(sorted(found)) or 0)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
