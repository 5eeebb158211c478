import argparse
from dataclasses import replace
from pathlib import Path

from edgekit import checkpoint
from edgekit.cli.terminal import Silent, Terminal, add_json, count, pixels, write_json
from edgekit.errors import UsageError, nearest
from edgekit.preprocess import Preprocess, preset
from edgekit.recipe import ModelSpec
from edgekit.trainspec import IMAGENET

EXAMPLES = """examples:
  edgekit train quickstart
  edgekit train mobilenet_v2 --data photos --size 160 --epochs 50
  edgekit train mobilenet_v3_large --data photos --weights imagenet --size 160
  edgekit train my.toml --data photos --out runs/photos --resume
  torchrun --nproc-per-node 4 -m edgekit train mobilenet_v2_imagenet --data imagenet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RECIPE|MODEL", help="a recipe, a .toml file, or a model's name")
    parser.add_argument("--data", metavar="DIR|NAME", help="your images, or a dataset's name")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder; default runs/NAME")
    parser.add_argument("--resume", action="store_true", help="go on with a training that was cut off")
    parser.add_argument("--force", action="store_true", help="train again, replacing what is there")
    parser.add_argument("--size", type=pixels, metavar="PIXELS", help="input height and width, for a model's name")
    parser.add_argument("--epochs", type=count, metavar="N", help="epochs, for a model's name")
    parser.add_argument(
        "--weights",
        metavar="imagenet|DIR",
        help="trained weights to start from, for a model's name: published or yours",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from edgekit import group, pipeline

    text = "" if _is_recipe(args.what) else _recipe_for(args)
    if not text and any(value is not None for value in (args.size, args.epochs, args.weights)):
        raise UsageError(
            "--size, --epochs and --weights belong to a model's name; what a recipe is, the recipe says: edit it"
        )
    with group.joined() as processes:
        folder, _ = pipeline.run(
            args.what,
            text=text,
            listener=Terminal() if processes.main else Silent(),
            data=args.data,
            out=args.out,
            until="train",
            force=("train",) if args.force else (),
            may_resume=args.resume,
            group=processes,
        )
    if not processes.main:
        return 0
    trained = checkpoint.read(folder.dense)
    write_json(args.json, {"checkpoint": str(folder.dense), **asdict(trained)["metrics"]})
    if args.json != "-":
        print(f"checkpoint: {folder.dense}")
    return 0


def _is_recipe(name: str) -> bool:
    from edgekit import plugins

    return name.endswith(".toml") or name in plugins.names("recipes")


def _recipe_for(args: argparse.Namespace) -> str:
    from edgekit import models, plugins, recipe

    if ":" not in args.what and args.what not in models.names() and not args.what.endswith(".pt2"):
        known = [*plugins.names("recipes"), *models.names()]
        raise UsageError(
            f"{args.what!r} is neither a recipe nor a model; choose from {', '.join(known)}, a .toml file, "
            f"torchvision:NAME, timm:NAME or FILE.py:FACTORY{nearest(args.what, known)}"
        )
    if not args.data:
        raise UsageError(f"training {args.what} needs images: --data DIR, a folder that holds one folder a class")
    model, contract = _start(args)
    return recipe.for_model(model, args.data, contract, epochs=args.epochs or 30, weights=args.weights)


def _start(args: argparse.Namespace) -> tuple[ModelSpec, Preprocess]:
    """The model, and how pixels become its input: as the weights were trained, else ImageNet's way."""
    model, size = ModelSpec(name=args.what), args.size
    if args.weights and args.weights != IMAGENET:
        found = checkpoint.find(Path(args.weights))
        contract = replace(found.preprocess, height=size, width=size) if size else found.preprocess
        return found.model if found.model.name == args.what else model, contract
    from edgekit.models import pretrained

    name = pretrained.published(model).preprocess if args.weights else "imagenet"
    return model, preset(name, size or 224, size or 224)
