"""The command line: one verb per job, each importing its job when called, so that ``--help`` is instant."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdistill.errors import ClipdistillError, ConfigError, InterruptedRunError, did_you_mean
from clipdistill.progress import console

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="Turn a large CLIP into a small, fast one, and prove what was kept. "
    "An error is one message; --debug, anywhere on the line, adds the traceback.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at data before training on them.", no_args_is_help=True)
recipes_app = typer.Typer(help="List, explain and check recipes.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(recipes_app, name="recipes")
store_app = typer.Typer(help="Look after stored embeddings.", no_args_is_help=True)
app.add_typer(store_app, name="store")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        app([word for word in words if word != "--debug"], prog_name="clipdistill")
    except SystemExit as ending:
        if ending.code == 130:  # how typer ends after Ctrl-C, without a word
            console.print("stopped")
        return ending.code if isinstance(ending.code, int) else 1
    except Exception as error:  # the last stop: whatever happens, the user sees one message
        return _explain(error, debug)
    return 0


def _explain(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if isinstance(error, (ClipdistillError, OSError)):
        console.print(f"error: {error}", markup=False)
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("clipdistill"):
        hint = "Install it with: pip install 'clipdistill[train]'"
        console.print(f"error: this needs the package '{error.name}'. {hint}", markup=False)
    else:
        hint = "" if debug else " Run again with --debug for the traceback, and report it."
        console.print(f"internal error: {type(error).__name__}: {error}.{hint}", markup=False)
    return 130 if isinstance(error, InterruptedRunError) else 1


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the three runs and the report.")] = Path("demo"),
) -> None:
    """Draw pictures, train a teacher, distil a student, and compare; no download, a few minutes on two cores."""
    from clipdistill.evidence.demo import run

    run(out)


@app.command()
def distill(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN.yaml] [KEY=VALUE]...", help="A run file (optional), then overrides."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in 'out'.")] = False,
) -> None:
    """Train a student as a run file and KEY=VALUE overrides say, evaluate it, and write a report.

    For instance: clipdistill distill recipe=clip-kd teachers.T=openai/clip-vit-base-patch32 data=FOLDER
    student.preset=vit-tiny-16 train.epochs=10 out=runs/first
    """
    _distill(*_split(words or []), resume)


@app.command(name="chinese-clip", context_settings={"ignore_unknown_options": True})
def chinese_clip(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--FLAG VALUE]... [KEY=VALUE]...", help="Their flags, then overrides of the run."),
    ] = None,
) -> None:
    """Take the command line of Chinese-CLIP's cn_clip/training/main.py: print the native command, and run it.

    For instance: clipdistill chinese-clip --train-data=photos/lmdb/train --resume=models/student --distllation
    --teacher-model-name=models/teacher --kd_loss_weight=0.5 --lr=5e-5 --max-epochs=3 --name=tuned
    """
    from clipdistill.coming_from.chinese_clip import translate

    translation = translate(words or [])
    for remark in translation.remarks:
        console.print(remark, markup=False)
    print(translation.command, flush=True)
    _distill(None, translation.overrides, resume=False)


def _distill(file: str | None, overrides: list[str], resume: bool) -> None:
    from clipdistill.config import load_run
    from clipdistill.evidence.finish import evaluate_run
    from clipdistill.training.stages import distill as train

    config = load_run(file, overrides)
    run = train(config, resume)
    console.print(f"student: {run.student}", markup=False)
    report = evaluate_run(config)
    if report is not None:
        console.print(f"report: {report}", markup=False)


@app.command()
def embed(
    data: Annotated[str, typer.Argument(help="A folder, a table, captions or scenes:...; see 'data check'.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the store.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[augment.KEY=VALUE]...", help="How views are drawn, as augment.crop=[0.5,1]."),
    ] = None,
    sides: Annotated[str | None, typer.Option(help="image, text or image,text; else all there is.")] = None,
    views: Annotated[int, typer.Option(min=0, help="Views of each picture; 0 is the whole picture, once.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the views.")] = 0,
    dtype: Annotated[str, typer.Option(help="f16 or f32.")] = "f16",
    shard: Annotated[str | None, typer.Option(help="3/16 does the third sixteenth; see also torchrun.")] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Samples in a file; a stop loses one at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows the model embeds at once.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    max_broken: Annotated[int, typer.Option(min=0, help="So many pictures may be unreadable.")] = 100,
) -> None:
    """Embed pictures and captions with a model, once, into a store that training reads instead of running the model.

    Stop it at any time, and go on with the same command. For instance: clipdistill embed photos/train
    --model openai/clip-vit-base-patch32 --out stores/b32 --views 8 augment.crop=[0.5,1]
    """
    from clipdistill.config import augmentation
    from clipdistill.teachers import embed as job

    job.embed(
        data,
        model,
        out,
        sides=_sides(sides),
        views=views,
        seed=seed,
        augmentation=augmentation(words or []),
        dtype={"f16": "float16", "f32": "float32"}.get(dtype, dtype),
        shard=_part(shard),
        shard_size=shard_size,
        workers=workers,
        batch_size=batch_size,
        device=device,
        precision=precision,
        max_broken=max_broken,
    )


def _sides(text: str | None) -> str | None:
    """Read ``image,text`` as ``IT``."""
    if text is None:
        return None
    names = {"image": "I", "text": "T"}
    for name in text.split(","):
        if name not in names:
            raise ConfigError(f"--sides {text}: unknown side '{name}'.{did_you_mean(name, names)}")
    return "".join(sorted({names[name] for name in text.split(",")}))


def _part(text: str | None) -> tuple[int, int] | None:
    """Read ``3/16``."""
    if text is None:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise ConfigError(f"--shard {text} is no part: expected for instance 3/16, the third of sixteen.")
    return int(part), int(parts)


@app.command(name="eval")
def evaluate(
    student: Annotated[str, typer.Argument(help="Model folder, hub name, or run folder.")],
    against: Annotated[list[str] | None, typer.Option(help="A model to put beside it; may be repeated.")] = None,
    data: Annotated[str | None, typer.Option(help="Measure everything this data URI affords.")] = None,
    retrieval: Annotated[str | None, typer.Option(help="Captioned data for text-image retrieval.")] = None,
    image_retrieval: Annotated[str | None, typer.Option(help="Data whose labels or groups say what matches.")] = None,
    zeroshot: Annotated[str | None, typer.Option(help="Labelled data for zero-shot classes, or a classifier.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, report.json, CLIP_benchmark JSON.")] = None,
    width: Annotated[list[int] | None, typer.Option(help="Also cut the student's rows to this width; repeat.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a student beside its teacher and any baseline: retrieval both ways, image to image, zero-shot."""
    from clipdistill.evidence.finish import compare_models

    names = [student, *(against or [])]
    evaluations = compare_models(names, data, retrieval, image_retrieval, zeroshot, out, width or [])
    if as_json:
        from clipdistill.evidence.report import as_dict

        print(json.dumps(as_dict(evaluations), indent=2, ensure_ascii=False))
    else:
        from clipdistill.evidence.report import table

        _print(table(evaluations))


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="Folder for the runs, report.html, report.json and comparison.csv.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GRID.yaml | RUN RUN...] [KEY=VALUE]...", help="A grid, or finished runs; then overrides."
        ),
    ] = None,
    recipes: Annotated[str | None, typer.Option(help="Instead of a grid: one cell per recipe, as A,B,C.")] = None,
    grid: Annotated[str | None, typer.Option(help="A grid that ships with the package: conaclip.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds per cell; 3 is 0, 1, 2.")] = None,
    cells: Annotated[str | None, typer.Option(help="Only these cells of the grid, and the baseline: A,B.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs trained at the same time.")] = 1,
) -> None:
    """Train a grid of runs that differ in one thing, over seeds, and say which differences are more than noise.

    For instance: clipdistill compare --recipes clip,feature,clip-kd --seeds 3 --out compared
    teachers.T=models/teacher data=FOLDER train.epochs=10 evaluate.retrieval=FOLDER
    """
    from clipdistill.evidence import compare as job
    from clipdistill.evidence.grid import choose_grid
    from clipdistill.evidence.report import table

    chosen = choose_grid(words or [], recipes, grid, seeds, cells)
    if chosen is None:
        runs, overrides = [w for w in words or [] if "=" not in w], [w for w in words or [] if "=" in w]
        found = [table(job.compare_runs(runs, overrides, out))]
    else:
        outcome, _ = job.compare(chosen, out, jobs)
        found = job.tables(outcome)
    _print(*found)
    console.print(f"report: {out / 'report.html'}", markup=False)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="precision, transform, store, embed-kd; all without a name.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the ratios and all that was measured here.")
    ] = None,
) -> None:
    """Measure the program's claims about speed on this machine, as ratios of two ways timed in turn."""
    from clipdistill.bench.suite import run

    run(names or [], file, lambda text: print(text, flush=True))


@data_app.command()
def check(
    uri: Annotated[str, typer.Argument(help="A folder, a CSV, TSV, JSONL or parquet file, or scenes:...")],
    against: Annotated[str | None, typer.Option(help="Data that must not share pictures with it.")] = None,
    as_json: Json = False,
) -> None:
    """Read every picture and caption; list what is broken, empty, repeated or leaked. Exit status 1 on errors."""
    from clipdistill.data.check import check as run_check
    from clipdistill.data.check import render
    from clipdistill.data.sources import pairs
    from clipdistill.progress import progress

    source, other = pairs(uri), pairs(against) if against else None
    with progress(f"checking {uri}", len(source) + len(other or ()), "pictures") as advance:
        report = run_check(source, other, lambda done, total: advance(done, ""))
    print(report.to_json() if as_json else render(report))
    if report.errors:
        raise typer.Exit(1)


@store_app.command(name="check")
def check_stored(
    store: Annotated[Path, typer.Argument(help="A store's folder.")],
    model: Annotated[str | None, typer.Option(help="The model that was embedded with, if it has moved.")] = None,
    data: Annotated[str | None, typer.Option(help="The data that were embedded, if they have moved.")] = None,
) -> None:
    """Check a store's files, and recompute a few rows. Exit status 1 and a list if anything is wrong."""
    from clipdistill.teachers.check_store import check_store

    report = check_store(store, model, data)
    print(report)
    if report.findings:
        raise typer.Exit(1)


@store_app.command(name="import")
def import_stored(
    path: Annotated[Path, typer.Argument(help="A clip-retrieval folder, reinforced shards, features, or arrays.")],
    out: Annotated[Path, typer.Option(help="Folder for the store.")],
    model: Annotated[str, typer.Option(help="The model that gave the rows; without --scale it is loaded.")] = "",
    scale: Annotated[float | None, typer.Option(help="Its logit scale; 100 if neither is said.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="The column of ids.")] = None,
    columns: Annotated[str | None, typer.Option(help="0:768 takes one teacher's part of the rows.")] = None,
    data: Annotated[str | None, typer.Option(help="The data that were embedded: their ids are used.")] = None,
) -> None:
    """Make a store of embeddings that another program wrote; see docs/formats.md for what is understood."""
    from clipdistill.teachers.foreign import import_store

    import_store(path, out, model, scale, id_column, _columns(columns), data)


def _columns(text: str | None) -> tuple[int, int] | None:
    """Read ``0:768``."""
    if text is None:
        return None
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal()):
        raise ConfigError(f"--columns {text} is no range: expected for instance 0:768, the first 768.")
    return int(first), int(end)


@store_app.command(name="export")
def export_stored(
    store: Annotated[Path, typer.Argument(help="A store's folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="The layout: clip-retrieval.")] = "clip-retrieval",
    data: Annotated[str | None, typer.Option(help="The data that were embedded, if they have moved.")] = None,
    sides: Annotated[str | None, typer.Option(help="image, text or image,text; else all there is.")] = None,
) -> None:
    """Write a store as img_emb/*.npy, text_emb/*.npy and metadata/*.parquet, which clip-retrieval and pandas read."""
    from clipdistill.teachers.foreign.export import export_store

    export_store(store, out, to, data, _sides(sides))


@recipes_app.command(name="list")
def list_recipes() -> None:
    """List the recipes that ship with the package."""
    from clipdistill.algebra.recipe import Recipe, available

    width = max(map(len, available()))
    for name in available():
        print(f"{name:<{width}}  {Recipe.load(name).paper}")


@recipes_app.command()
def show(name: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")]) -> None:
    """Explain a recipe: its paper, and its terms as a table."""
    from clipdistill.algebra.recipe import Recipe

    print(Recipe.load(name).describe())


@recipes_app.command(name="check")
def check_recipe(file: Annotated[str, typer.Argument(help="A YAML file, or a recipe's name.")]) -> None:
    """Check that a recipe means something; says which models it needs."""
    from clipdistill.algebra.recipe import Recipe

    recipe = Recipe.load(file)
    teachers = ", ".join(f"teachers.{letter}" for letter in recipe.teachers) or "no teacher"
    print(f"{recipe.name}: {len(recipe.terms)} terms over {', '.join(map(str, recipe.nodes))}; needs {teachers}")


def _print(*tables: Table) -> None:
    """Print results; written to a file, a table needs no particular width, on a terminal it has the terminal's."""
    from rich.console import Console

    results = Console(width=None if Console().is_terminal else 160)
    for table in tables:
        results.print(table)


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The run file, if the first word is one, and the overrides."""
    file = words[0] if words and "=" not in words[0] else None
    overrides = words[1:] if file else words
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"'{word}' is no override. Write KEY=VALUE, with the run file, if any, first.")
    return file, overrides
