"""`python -m video_papr.cli.demo`: the dense and the pruned model side by side in a browser."""

from __future__ import annotations

import errno
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from ..config import DemoConfig, PipelineConfig, check
from ..config.checking import sections
from ..core.console import make_console
from ..core.errors import ConfigError
from .common import BUNDLED, run_command

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..inference.app.offer import Model

ANYWHERE = ("0.0.0.0", "::")
# Datasets whose weights the page offers to download, where only the bundled ones are there.
MODELS = ("k400",)
BUNDLED_PAIR = "experiment=demo"  # at its sizes pruning saves more time than the scorer costs
EXAMPLE_SEED = 7  # of the clips to pick; they are of the test split, which no training has seen


def offered() -> dict[str, str]:
    """Pruners that keep as much as the slider says, and one line about each."""
    from ..pruning.builders import SPECS  # which imports the networks: --help does not wait for them

    return {name: spec.summary for name, spec in SPECS.items() if spec.has_ratio}


def _check_offer(config: DemoConfig) -> None:
    """Refuses pruners that the page cannot show."""
    for key, name in [("pruner", config.pruner.name), *(("pruners", name) for name in config.pruners)]:
        if name not in offered():
            raise ConfigError(
                f"{key}={name}: cannot be offered, it has no keep ratio to choose; take {', '.join(offered())}."
            )
    if config.pruner.budget not in (None, "fixed") or config.pruner.mode not in (None, "ratio"):
        raise ConfigError("pruner.budget and pruner.mode must leave the keep ratio to the slider.")
    if config.merger.name != "none":
        raise ConfigError(f"merger={config.merger.name}: the demo shows pruning alone; use merger=none.")


def main() -> None:
    """Entry point of the command."""
    run_command("demo", _work)


def _work(config: DemoConfig, out: Path) -> dict[str, Any]:
    from ..assembly.compose import as_fitted, compose_words

    words = [str(word) for word in HydraConfig.get().overrides.task]
    if config.backbone.weights == BUNDLED and "pruner.weights" not in map(_path, words):
        words = [BUNDLED_PAIR, *words]  # what is typed comes later and wins
        config = check(DemoConfig, compose_words(words, config="demo"))
    config = as_fitted(config)
    _check_offer(config)
    serve(make_app(config, words), config)
    return {}


def make_app(config: DemoConfig, words: list[str]) -> Starlette:
    """The application that `config` describes, with its networks in memory and its examples on disk.

    Args:
        words: the overrides that led to it; those that are not about the pruner hold for all pruners on offer.
    """
    try:
        from ..inference.app.server import build_app
    except ImportError as error:
        raise ConfigError(f'the demo needs {error.name}: pip install "video_papr[app]"') from None
    from ..inference.app.jobs import Jobs
    from ..inference.app.offer import Offer

    model = make_model(config, words)
    kept = [word for word in words if _key(word) not in ("dataset", "backbone", "pruner", "experiment")]
    offer = Offer(
        examples=_examples(config.examples),
        models={name: partial(_make_named, name, kept) for name in MODELS if model.said["synthetic"]},
        max_upload_mb=config.max_upload_mb,
        hosts=["*"] if config.host in ANYWHERE else ["localhost", "127.0.0.1", "[::1]", config.host.lower()],
    )
    return build_app(model, Jobs(max_waiting=config.max_waiting), offer)


def make_model(config: DemoConfig, words: list[str]) -> Model:
    """The networks of a configuration, and what the page says about them."""
    from ..assembly import runtime
    from ..assembly.build import build_folded_pruner
    from ..assembly.compose import backbone_said, build_reader, compose_words
    from ..evaluation.cost import Engine
    from ..evaluation.results import describe_device
    from ..inference.app.look import Looker
    from ..inference.app.offer import Model
    from ..pipeline import Pipeline

    pipeline, recipe = build_reader(config)
    assert pipeline.pruner is not None
    device = next(pipeline.backbone.parameters()).device
    pruners = {config.pruner.name: pipeline.pruner}
    shared = [word for word in words if _key(word) != "pruner"]
    for name in config.pruners:
        if name not in pruners:
            other = check(DemoConfig, compose_words([*shared, f"pruner={name}"], config="demo"))
            made: Any = build_folded_pruner(other.pruner)
            pruners[name] = made.to(device)
            runtime.speed_up(Pipeline(pipeline.backbone, made), config.runtime, Engine(device, recipe.dtype))
    told = [word for word in words if _key(word) in (*sections(PipelineConfig), "seed", "experiment")]
    told = [word for word in told if _path(word) not in ("pruner", "pruner.keep_ratio")]
    alike = [word for word in told if _key(word) != "pruner"]
    return Model(
        looker=Looker(
            *(pipeline.backbone, pruners, recipe),
            max_seconds=config.max_seconds,
            window_seconds=config.window_seconds,
        ),
        pruner=config.pruner.name,
        keep_ratio=config.pruner.keep_ratio or 0.3,
        about=offered(),
        said={
            "backbone": backbone_said(config.backbone),
            "device": describe_device(device),
            "classes": list(pipeline.backbone.class_names or ()),
            "synthetic": config.backbone.weights == BUNDLED,
        },
        words={**dict.fromkeys(pruners, alike), config.pruner.name: told},
    )


def _make_named(name: str, words: list[str]) -> Model:
    from ..assembly.compose import compose_words

    words = [f"dataset={name}", *words]
    return make_model(check(DemoConfig, compose_words(words, config="demo")), words)


def _path(word: str) -> str:
    """What an override is about: pruner.mode of "+pruner.mode=ratio"."""
    return word.lstrip("+~").partition("=")[0]


def _key(word: str) -> str:
    """The group of it: pruner."""
    return _path(word).partition(".")[0]


def _examples(count: int) -> list[Any]:
    """Synthetic clips of different actions, made once."""
    from ..inference.app.offer import Example
    from ..synthetic.scenes import ACTIONS
    from ..synthetic.videos import SyntheticSplit, generate

    if not count:
        return []
    root = generate(SyntheticSplit(seed=EXAMPLE_SEED, num_videos=count), progress=False)
    order = {action: place for place, action in enumerate(ACTIONS)}
    paths = sorted(root.glob("*/*.mp4"), key=lambda path: (path.stem, order[path.parent.name]))
    return [Example(path.parent.name.replace("_", " "), path) for path in paths]


def serve(app: Starlette, config: DemoConfig) -> None:
    """Listens until Ctrl+C. Raises ConfigError: the address cannot be used."""
    import uvicorn

    with _listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = "127.0.0.1" if host in ANYWHERE else host
        make_console().print(f"open http://{f'[{shown}]' if ':' in shown else shown}:{port} (Ctrl+C ends it)")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], found[1])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
        listener.listen()  # who reads the address may come before uvicorn is ready
    except OSError as error:
        taken = "another program listens there; choose another one"
        hint = taken if error.errno == errno.EADDRINUSE else error
        raise ConfigError(f"host={host} port={port}: cannot listen: {hint}") from None
    return listener


if __name__ == "__main__":
    main()
