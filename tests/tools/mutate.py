"""Mutation testing: small changes to the core, one at a time; do the tests of their area notice?

    python tests/tools/mutate.py                        # 30 changes in each area below, drawn with seed 0
    python tests/tools/mutate.py --count 20 --seed 3 pruning data/sampling.py

A change turns a comparison, an arithmetic or boolean operator or a constant into its neighbour. Left alone are
annotations, decorators, errors that are raised, f-strings, and assertions: `assert`, and `strict=True` of a `zip`,
whose sides have one length. `evaluation` leaves out what draws and lays out, `evaluation/reports` and
`evaluation/visualize.py`: padding and colours are for the eye, and tests/evaluation/reports and test_visualize.py check
the figures. Both are tried where they are named.

A change is made in a copy of the package, in a child process that has torch loaded already, and counts as seen when a
test fails, raises or takes five times the processor time of the tests without a change. A file's own tests run first,
then those of its area that name it, then the others; the first failure ends them. `--reach own` and `near` stop before,
which takes minutes in place of hours: the share is a lower bound then, over the files that have such tests, which must
pass without a change.
Exit status 1 when fewer than 85 % are seen. `--out FILE` writes shares and every change that went unnoticed as JSON.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "video_papr"
AREAS = ("pruning", "backbones", "data/sampling.py", "data/decoding.py", "evaluation")
# The own tests of files whose folder of tests is another one's.
ELSEWHERE = {
    "backbones/fitting.py": ("backbones/test_weights.py",),
    "backbones/depth_pruned.py": ("depth/test_rebuilding.py", "depth/test_timm.py"),
    "evaluation/sharing.py": ("pruning/test_sharing.py",),
    "pruning/scorers/x3d_depth_pruned.py": ("depth/test_rebuilding.py",),
}
APART = ("evaluation/reports", "evaluation/visualize.py")  # tried where they are asked for, see above
SEEN, WALL_SECONDS = 0.85, 1800
REACHES = ("own", "near", "area")  # how far tests are asked; less far is a lower bound of what is seen
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
    """What no test can or should see: annotations, messages of errors, assertions, decorators."""
    for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
        yield from ast.walk(part) if part is not None else ()
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        yield from ast.walk(node)
    for decorator in getattr(node, "decorator_list", ()):  # dataclass(frozen=True)
        yield from ast.walk(decorator)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
        yield from (word.value for word in node.keywords if ast.unparse(word) == "strict=True")


def _swapped(node: ast.AST, field: str, value: object) -> Iterator[tuple[int, str]]:
    before, text = getattr(node, field), ast.unparse(node)
    setattr(node, field, value)
    yield node.lineno, f"{text}  ->  {ast.unparse(node)}"  # type: ignore[attr-defined]
    setattr(node, field, before)


def tests_of(source: str, reach: str) -> list[list[str]]:
    """What pytest is told: a source file's own tests; where they pass those that name the file; where these pass the
    rest of its folder, and the whole flow."""
    name, tests = Path(source), ROOT / "tests"
    own = [
        tests / name.parent / f"test_{name.stem}.py",
        *(tests / other for other in ELSEWHERE.get(source, ())),
    ]
    area = [*sorted((tests / name.parts[0]).rglob("test_*.py")), tests / "test_pipeline.py"]
    named = re.compile(rf"\b{re.escape(name.stem)}\b")
    near = [path for path in area if path not in own and named.search(path.read_text(encoding="utf-8"))]
    rest = [path for path in area if path not in own and path not in near]
    groups = [[path for path in own if path.is_file()], near, rest]
    return [list(map(str, group)) for group in groups[: REACHES.index(reach) + 1] if group]


def survives(source: str, text: str, cpu_seconds: float, reach: str) -> tuple[bool, float]:
    """Whether the tests pass with `text` in place of the source file, and the processor time that they took."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            ROOT / "video_papr", Path(folder, "video_papr"), ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / "conf", Path(folder, "video_papr", "conf"), dirs_exist_ok=True)
        Path(folder, "video_papr", source).write_text(text, encoding="utf-8")
        child = os.fork()
        if child == 0:
            _run(folder, tests_of(source, reach), cpu_seconds)
        _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status) == 0, used.ru_utime + used.ru_stime


def _run(folder: str, groups: list[list[str]], cpu_seconds: float) -> None:
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    signal.alarm(WALL_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds)))
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder
    code = 1
    with suppress(BaseException):
        common = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu"]
        common += ["--rootdir", str(ROOT), "-c", str(ROOT / "setup.cfg")]
        for words in groups:
            if (failed := int(pytest.main([*common, *words]))) not in (0, 5):  # 5: nothing to run
                os._exit(failed)
        code = 0
    os._exit(code)


def files_of(area: str) -> list[Path]:
    path, apart = PACKAGE / area, [PACKAGE / name for name in APART if name != area]
    if not path.is_dir():
        return [path]
    return [file for file in sorted(path.rglob("*.py")) if not {file, *file.parents} & {*apart}]


def try_area(area: str, count: int, seed: int, reach: str) -> dict[str, Any]:
    """Draws changes in an area and tries each. Ends the program when the tests fail without any change."""
    places, seconds, left_out = [], 120.0, []
    for file in files_of(area):
        if not tests_of(str(file.relative_to(PACKAGE)), reach):
            left_out.append(str(file.relative_to(PACKAGE)))
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        places += [(str(file.relative_to(PACKAGE)), number) for number, _ in enumerate(mutants(tree))]
    drawn = random.Random(seed).sample(places, min(count, len(places)))
    if reach == "area":
        first = drawn[0][0]
        healthy, seconds = survives(first, (PACKAGE / first).read_text(encoding="utf-8"), 3600, reach)
        if not healthy:
            sys.exit(f"the tests of {area} fail without any change")
    unseen = []
    for source, wanted in tqdm(drawn, unit="change", desc=area):
        tree = ast.parse((PACKAGE / source).read_text(encoding="utf-8"))
        for number, (line, what) in enumerate(mutants(tree)):
            if number == wanted:
                if survives(source, ast.unparse(tree), 5 * seconds + 20, reach)[0]:
                    unseen.append(f"{source}:{line}: {what}")
                    tqdm.write(f"not seen  {unseen[-1]}")
                break
    found = {"possible": len(places), "tried": len(drawn), "seen": len(drawn) - len(unseen), "unseen": unseen}
    return found | ({"left_out": left_out} if left_out else {})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("areas", nargs="*", default=AREAS, help="folders or files of video_papr/")
    parser.add_argument("--count", type=int, default=30, help="changes in each area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reach",
        choices=REACHES,
        default="area",
        help="own: a file's own tests; near: and those of its area that name it. Lower bounds; they must pass",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    areas = {}
    for area in options.areas:
        areas[area] = try_area(area, options.count, options.seed, options.reach)
        print(f"{area}: {areas[area]['seen']} of {areas[area]['tried']} changes seen", flush=True)
    seen, tried = (sum(found[key] for found in areas.values()) for key in ("seen", "tried"))
    print(f"{seen} of {tried} changes seen ({100 * seen / tried:.0f} %)")
    if options.out:
        command = " ".join(["python", "tests/tools/mutate.py", *sys.argv[1:]])
        said = {"command": command, "date": f"{date.today()}", "seen": seen, "tried": tried, "areas": areas}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    sys.exit(seen < SEEN * tried)


if __name__ == "__main__":
    main()
