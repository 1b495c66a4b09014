"""Imports go one way, and each heavy package has one place: the table of layers, checked on the syntax tree.

Imports inside functions count like those at the top of a file.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "video_papr"

GROUND = {"core", "checkpoints", "data", "config"}
STAGES = GROUND | {"pruning", "backbones"}
FLOW = STAGES | {"pipeline"}
MEASURES = FLOW | {"benchmark", "evaluation", "synthetic"}

# part of the package -> the parts that it may import, besides itself. A new part needs a line here.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "config": {"core"},
    "data": {"core"},
    "checkpoints": {"core"},
    "synthetic": {"core", "data"},
    "pruning": {"core", "checkpoints"},
    "adapters": {"core", "pruning"},
    "backbones": {"core", "checkpoints", "adapters"},
    "pipeline": STAGES,
    "benchmark": FLOW | {"synthetic"},
    "evaluation": FLOW | {"benchmark"},
    "training": MEASURES,
    "depth": MEASURES | {"training"},
    "assembly": MEASURES | {"training", "depth", "inference"},
    "inference": MEASURES | {"assembly"},
    "cli": MEASURES | {"training", "depth", "assembly", "inference"},
    "__init__": STAGES | {"adapters", "inference"},
    "__main__": {"cli"},
}

# package -> the parts or files that may import it
PLACES: dict[str, set[str]] = {
    "hydra": {"cli", "config/hydra.py"},
    "omegaconf": {"cli", "config", "assembly"},
    "decord": {"data/readers/decord.py"},
    "torchcodec": {"data/readers/torchcodec.py"},
    "av": {
        *("data/readers/pyav.py", "data/readers/packets.py", "data/readers/live.py"),
        *("synthetic/videos.py", "inference/film.py"),
    },
    "timm": {"backbones", "pruning/scorers/image_convnet.py", "checkpoints/timm_models.py"},
    "PIL": {"data/readers/pillow.py", "inference/overlay.py"},
    "torchvision": {"pruning/scorers/video_convnet.py"},
    "matplotlib": {
        *("evaluation/visualize.py", "evaluation/reports/plots.py", "evaluation/reports/confusion.py"),
        "benchmark/plots.py",
        *("inference/overlay.py", "inference/live.py"),
    },
    "rich": {"core/console.py", "core/tables.py"},
    "jinja2": {"core/tables.py"},
    "sklearn": {"training/probe.py"},
    "scipy": {"evaluation/reports/frontier.py"},
    "huggingface_hub": {"checkpoints/hub.py"},
    "starlette": {"inference/app", "cli/demo.py"},
    "uvicorn": {"cli/demo.py"},
    "onnx": {"inference/export.py"},
    "onnxscript": {"inference/export.py"},
    "onnxruntime": {"inference/export.py", "core/graphs.py"},
    # an extra: what a user would take instead, or has a model of
    "transformers": {"benchmark/peers.py", "adapters/qwen_vl.py", "backbones/hosts.py"},
    "openvino": {"core/graphs.py"},
    "nncf": {"core/graphs.py"},
    "pebble": {"data/workers.py"},
    "ray": {"inference/cluster.py"},
    "pyarrow": {"inference/cluster.py"},
}

# Not dependencies of the package, so only tests and benchmarks may use them.
FOREIGN = {"decord2", "pytest", "hypothesis", "pytorchvideo", "fvcore"}


def source_files():
    return sorted(PACKAGE.rglob("*.py"))


def imported_modules(path):
    """Full names of what the file imports, e.g. "video_papr.data.sampling", inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            if module == "video_papr":  # `from video_papr import pipeline` and `from .. import pipeline`
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else:
                yield module
                inside = [f"{module}.{alias.name}" for alias in node.names]
                yield from (name for name in inside if (ROOT / f"{name.replace('.', '/')}.py").is_file())


def part_of(path):
    """ "data" for video_papr/data/loader.py, "pipeline" for video_papr/pipeline.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} is a new part of the package: give it a line in ALLOWED"
    for name in imported_modules(path):
        words = name.split(".")
        if words[0] == "video_papr" and len(words) > 1:
            other = words[1] if words[1] in ALLOWED else "__init__"
            assert other == part or other in ALLOWED[part], f"{part} must not import {name}"


def test_files_do_not_import_each_other():
    """Not in a circle of any length, nor for types alone; what a package's __init__ hands on does not count."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in source_files()}
    TopologicalSorter(
        {name: {*imported_modules(path)} & names.keys() for name, path in names.items()}
    ).prepare()


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_have_one_place(path):
    inside = path.relative_to(PACKAGE).as_posix()
    for name in imported_modules(path):
        top = name.split(".")[0]
        assert top not in FOREIGN, f"{inside} imports {name}, which is not a dependency of the package"
        if top in PLACES:
            assert any(inside == place or inside.startswith(place + "/") for place in PLACES[top]), (
                f"{inside} must not import {name}"
            )


def test_tools_only_call_the_command_line():
    scripts = sorted((ROOT / "tools").glob("*.py"))
    assert scripts
    for script in scripts:
        ours = [name for name in imported_modules(script) if name.startswith("video_papr")]
        assert ours and all(name.startswith("video_papr.cli.") for name in ours), (
            f"{script.name} imports {ours}"
        )


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_imports(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def test_import_is_light():
    """`import video_papr` opens no decoder, reads no config and draws nothing."""
    code = (
        "import sys; sys.modules['transformers'] = None; import video_papr; "
        "print(*sorted({'hydra', 'decord', 'av', 'matplotlib', 'rich', 'tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


# Packages that take seconds to import, or tenths of one; torch._dynamo brings sympy along.
NEVER = {
    "timm",
    "torchvision",
    "torch._dynamo",
    "sympy",
    "pytorchvideo",
    "transformers",
    "openvino",
    "scipy",
    "sklearn",
}
NEVER |= {"matplotlib", "pandas", "ray", "pyarrow"}


def imported_by(script, *words, before=""):
    """What of `NEVER`, and of what else commands import late, a command has imported by its end."""
    code = before + (
        "import atexit, runpy, sys; sys.argv = sys.argv[1:]; "
        "atexit.register(lambda: print('\\nimported:', *sys.modules)); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, f"tools/{script}.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.splitlines()[-1].split()) & (NEVER | {"torch", "decord", "av", "hydra.main"})


@pytest.mark.parametrize("script", ["eval", "predict", "train", "bench"])
def test_help_is_light(script):
    """`--help` waits for no network: it needs options and their help alone."""
    assert imported_by(script, "--help") == {"hydra.main"}


def test_predict_is_light(tmp_path):
    """One answer waits for torch and a decoder, not for timm, torchvision and torch's compiler."""
    clip = ROOT / "tests/data/corpus/videos/h264.mp4"
    words = (f"video={clip}", f"output_dir={tmp_path}", "visualize=0", "progress=false", "runtime.device=cpu")
    found = imported_by("predict", *words)
    assert {"torch", "av"} <= found and not found & NEVER


def test_no_answer_of_eval_waits_for_a_compiler(tmp_path):
    """torch's counter of operations imports it, so that is left for the end, and out of this test."""
    uncounted = "from video_papr.benchmark import flops; flops.count_gmacs = lambda *_: 0.0; "
    words = (
        "dataset.num_videos=2",
        f"dataset.cache_dir={tmp_path}",
        f"output_dir={tmp_path}/out",
        "visualize=0",
    )
    found = imported_by(
        "eval", *words, "runtime=cpu", "runtime.engine=torch", "runtime.workers=0", before=uncounted
    )
    assert "torch" in found and not found & {"torch._dynamo", "sympy", "timm", "torchvision", "openvino"}


RUNS_CODE = {
    *(
        "eval",
        "exec",
        "compile_command",
        "os.system",
        "os.popen",
        "pickle.load",
        "pickle.loads",
        "joblib.load",
    ),
    *("yaml.load", "yaml.unsafe_load", "dist.broadcast_object_list", "dist.all_gather_object"),
}
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def test_nothing_that_a_file_holds_is_run() -> None:
    """No shell, no eval, no unpickling: docs/security.md promises it."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            assert called not in RUNS_CODE, f"{path}:{node.lineno}: {called}"
            assert "shell" not in given, f"{path}:{node.lineno}: a shell"
            if called in SAFE:
                key, right = SAFE[called]
                value = given.get(key)
                assert isinstance(value, ast.Constant) and value.value is right, f"{path}:{node.lineno}"
