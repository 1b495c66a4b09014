"""torch.hub loads the repository from a folder: entry points, their docstrings, and what they depend on."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = (ROOT / "hubconf.py").read_text(encoding="utf-8")
ENTRIES = [
    node for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
]

# Run far from the checkout, so that only torch.hub can find the package.
CODE = """
import json, sys, torch
from timm.models.vision_transformer import VisionTransformer

def load(entry, *words, **options):
    return torch.hub.load(sys.argv[1], entry, *words, source="local", **options)

tiny = load("videomae_tiny")
fresh = load("videomae_tiny", pretrained=False, num_classes=3)
shape = (1, 3, tiny.num_frames, tiny.input_size, tiny.input_size)
pipeline = load("pipeline", pruner={"name": "motion", "keep_ratio": 0.5})
frames = torch.randint(0, 256, (1, *shape[2:], 3), dtype=torch.uint8)
vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5).eval()
pruned = load("prune", vit, pruner="center", keep_ratio=0.5)
pruner = load("pruner", "center", keep_ratio=0.25)
with torch.inference_mode():
    print(json.dumps({
        "home": sys.modules["video_papr"].__file__,
        "classes": [len(tiny.class_names), fresh(torch.zeros(shape)).shape[1]],
        "logits": list(pipeline(frames).shape),
        "kept": [pipeline.select(frames).num_kept / pipeline.backbone.grid.num_tokens,
                 pruner.select(frames, tiny).num_kept / tiny.grid.num_tokens],
        "names": len(pipeline.predict(torch.zeros(20, 64, 80, 3, dtype=torch.uint8), top_k=4)),
        "same": pruned is vit,
        "backbone": load("backbone", "videomae_tiny", input_size=32).input_size,
    }))
"""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_entry_point_explains_itself(entry):
    text = ast.get_docstring(entry) or ""
    assert "Args:" in text
    named = [argument.arg for argument in entry.args.args]
    assert all(f"    {name}: " in text for name in named)


def test_entry_points():
    assert {entry.name for entry in ENTRIES} == {"backbone", "pipeline", "prune", "pruner", "videomae_tiny"}


def test_dependencies_are_those_of_the_package():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    # What some machines lack (a marker says which) is none of torch.hub's business; torchvision is there for timm.
    names = {re.match(r"[\w-]+", line).group() for line in listed if ";" not in line}
    modules = {"hydra-core": "hydra", "pillow": "PIL"}
    wanted = {modules.get(name, name) for name in names} - {"torchvision"}
    (value,) = re.findall(r"^dependencies = (\[.*?\])", SOURCE, re.MULTILINE | re.DOTALL)
    assert set(ast.literal_eval(value)) == wanted


def test_loads_from_a_folder(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT)],
        cwd=tmp_path,
        env={**environment, "TORCH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["home"] == str(ROOT / "video_papr" / "__init__.py")
    assert said["classes"][1] == 3 and said["classes"][0] > 1
    assert said["logits"] == [1, said["classes"][0]]
    assert said["kept"] == [0.5, 0.25]
    assert (said["names"], said["same"], said["backbone"]) == (4, True, 32)
