"""Mutation testing: small changes to the core, one at a time; do the tests of their area notice?

    python tests/tools/mutate.py                        # 60 changes, drawn with seed 0, over the areas below
    python tests/tools/mutate.py --count 20 --seed 3 pruning data/sampling.py

A change turns a comparison, an arithmetic or boolean operator or a constant into its neighbour. It is made in a copy of
the package, in a child process that has torch loaded already, and counts as seen when a test fails, raises or hangs.
Exit status 1 when fewer than 85 % are seen; every change that went unnoticed is printed with its line.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
AREAS = ("pruning", "backbones", "data/sampling.py", "data/decoding.py", "evaluation")
SEEN, SECONDS = 0.85, 300
# Loaded before the first child is made; the package itself is not, since each child has another one.
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "pytorchvideo.models.x3d",
    "hypothesis",
    "pytest",
    "av",
)

COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
COMPARED |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
}
JOINED = {ast.And: ast.Or, ast.Or: ast.And}


def mutants(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Changes `tree` in place, one change at a time, and yields (line, what changed) while each is in force."""
    quiet = {id(child) for node in ast.walk(tree) for child in _passed_over(node)}
    for node in ast.walk(tree):
        if id(node) in quiet:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
            yield from _swapped(node, "ops", [COMPARED[type(node.ops[0])](), *node.ops[1:]])
        elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
            yield from _swapped(node, "op", COMPUTED[type(node.op)]())
        elif isinstance(node, ast.BoolOp):
            yield from _swapped(node, "op", JOINED[type(node.op)]())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield from _swapped(node, "op", ast.UAdd())
        elif isinstance(node, ast.Constant) and type(node.value) is bool:
            yield from _swapped(node, "value", not node.value)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield from _swapped(node, "value", node.value + 1)


def _passed_over(node: ast.AST) -> Iterator[ast.AST]:
    """What no test can or should see: annotations, messages of errors, assertions for the type checker."""
    for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
        yield from ast.walk(part) if part is not None else ()
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        yield from ast.walk(node)


def _swapped(node: ast.AST, field: str, value: object) -> Iterator[tuple[int, str]]:
    before, text = getattr(node, field), ast.unparse(node)
    setattr(node, field, value)
    yield node.lineno, f"{text}  ->  {ast.unparse(node)}"  # type: ignore[attr-defined]
    setattr(node, field, before)


def tests_of(source: str) -> list[str]:
    """The folder of tests that mirrors a source file, and those of the whole flow."""
    name = Path(source)
    own = ROOT / "tests" / name.parent / f"test_{name.stem}.py"
    found = [own] if own.is_file() and name.parent.name == "data" else [ROOT / "tests" / name.parts[0]]
    return [str(path) for path in (*found, ROOT / "tests" / "test_pipeline.py") if path.exists()]


def survives(source: str, text: str) -> bool:
    """Whether the tests pass with `text` in place of the source file."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            ROOT / "video_papr", Path(folder, "video_papr"), ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / "conf", Path(folder, "video_papr", "conf"), dirs_exist_ok=True)
        Path(folder, "video_papr", source).write_text(text, encoding="utf-8")
        child = os.fork()
        if child == 0:
            _run(folder, tests_of(source))
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _run(folder: str, tests: list[str]) -> None:
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    signal.alarm(SECONDS)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder
    code = 1
    with suppress(BaseException):
        words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu"]
        code = int(pytest.main([*words, "--rootdir", str(ROOT), "-c", str(ROOT / "setup.cfg"), *tests]))
    os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("areas", nargs="*", default=AREAS, help="folders or files of video_papr/")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    package = ROOT / "video_papr"
    places = []
    for area in options.areas:
        path = package / area
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            places += [(str(file.relative_to(package)), number) for number, _ in enumerate(mutants(tree))]
    drawn = random.Random(options.seed).sample(places, min(options.count, len(places)))
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    unseen = []
    for source, wanted in tqdm(drawn, unit="change"):
        tree = ast.parse((package / source).read_text(encoding="utf-8"))
        for number, (line, what) in enumerate(mutants(tree)):
            if number == wanted:
                if survives(source, ast.unparse(tree)):
                    unseen.append(f"{source}:{line}: {what}")
                    tqdm.write(f"not seen  {unseen[-1]}")
                break
    seen = 1 - len(unseen) / len(drawn)
    print(f"{len(drawn) - len(unseen)} of {len(drawn)} changes seen ({100 * seen:.0f} %)")
    sys.exit(seen < SEEN)


if __name__ == "__main__":
    main()
