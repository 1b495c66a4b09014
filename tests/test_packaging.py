"""What is installed is what is on disk, and nothing in the repository names the machine it came from."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LARGEST_WEIGHTS_BYTES = 20_000_000  # all bundled checkpoints together


def files_on_disk():
    """Names inside the wheel that the two source trees should give."""
    names = set()
    for folder, package in ((ROOT / "video_papr", "video_papr"), (ROOT / "conf", "video_papr/conf")):
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                names.add(f"{package}/{path.relative_to(folder).as_posix()}")
    return names


def repository_files():
    """Files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy, so that no build folder is left behind or picked up."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("video_papr", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(source / "dist"),
            str(source),
        ],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_what_is_on_disk(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files_on_disk()
    assert {name for name in packed if name.endswith(".yaml")}, "no config in the wheel"


def test_packages_are_listed():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = settings["options"]["packages"].split()
    on_disk = {str(Path(name).parent).replace("/", ".") for name in files_on_disk()}
    assert sorted(listed) == sorted(on_disk)
    assert len(listed) == len(set(listed))


def test_wheel_names_licence_python_and_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert any(entry.endswith("/licenses/LICENSE") for entry in wheel.namelist())
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(name.replace("METADATA", "entry_points.txt")).decode())
    assert dict(scripts["console_scripts"]) == {"video-papr": "video_papr.cli.main:main"}


def test_bundled_weights_are_small_and_described(wheel):
    weights = [info for info in wheel.infolist() if info.filename.endswith(".safetensors")]
    assert weights, "no bundled weights"
    assert sum(info.file_size for info in weights) <= LARGEST_WEIGHTS_BYTES
    cards = {Path(name).stem for name in wheel.namelist() if Path(name).match("video_papr/weights/*.md")}
    undescribed = [info.filename for info in weights if Path(info.filename).stem not in cards]
    assert undescribed == [], "each checkpoint needs a model card NAME.md beside NAME.safetensors"


def test_labels_are_in_the_wheel(wheel):
    labels = [name for name in wheel.namelist() if Path(name).match("video_papr/data/labels/*.txt")]
    assert labels, "no file of class names"
    for name in labels:
        lines = wheel.read(name).decode("utf-8").splitlines()
        assert lines and all(line.strip() for line in lines), f"{name} has an empty line"


def test_configs_are_found_in_an_unpacked_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = (
        "import video_papr; from hydra import compose, initialize_config_module\n"
        "with initialize_config_module('video_papr.conf', version_base='1.3'):\n"
        "    print(video_papr.__file__, compose('eval').pruner.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,  # -c puts this first on the path: the unpacked wheel, not the checkout
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "video_papr" / "__init__.py"), "x3d_s"]


def test_constraints_are_tested_versions_of_what_is_declared():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    pinned: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)  # raises for options, addresses of indexes and paths
            assert pin.url is None, line
            pinned.setdefault(canonicalize_name(pin.name), []).append(pin)
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        if name == "setuptools":  # the build chooses its own
            continue
        assert name in pinned, f"constraints.txt has no tested version of {name}"
        for pin in pinned[name]:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version), f"{pin} is outside {requirement}"


def test_imports_are_declared():
    """Every package that the library imports is a dependency, and every dependency is imported."""
    (text,) = re.findall(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    declared = {Requirement(line).name for line in re.findall(r'^ *"([^"]+)"', text, re.M)}
    modules = {"hydra-core": "hydra", "pillow": "PIL"}
    imported = set()
    for path in (ROOT / "video_papr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"video_papr"}
    # Of extras, imported where they are needed, with one line where they are missing.
    foreign -= {
        "starlette",
        "uvicorn",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "openvino",
        "transformers",
        "sklearn",
        "ray",
        "pyarrow",
        "torchcodec",
        "nncf",
    }
    assert foreign == {modules.get(name, name) for name in declared}


def test_nothing_names_a_machine_or_an_index():
    machine = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")
    index = re.compile(
        r"pypi\.(?:org|python)|pythonhosted\.|--(?:extra-)?index-url|--find-links|pytorch\.org/whl"
    )
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # pictures and weights
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if path != Path(__file__) and (machine.search(line) or index.search(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in script
    assert "\nmake test\n" in script
    assert "`make test`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100, ".ci/run is not executable"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+)", shown, flags=re.MULTILINE)) == set(phony.split())
