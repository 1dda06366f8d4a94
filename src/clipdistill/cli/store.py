"""Verbs of stored embeddings: embed, store check, import and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdistill.cli.data import SOURCES
from clipdistill.errors import ConfigError, did_you_mean

app = typer.Typer(help="Look after stored embeddings.", no_args_is_help=True)


def embed(
    data: Annotated[str, typer.Argument(help=f"Pictures, captions or both: {SOURCES}.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the store.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[augment.KEY=VALUE]...", help="How views are drawn, as augment.crop=[0.5,1]."),
    ] = None,
    sides: Annotated[str | None, typer.Option(help="image, text or image,text; else all there is.")] = None,
    views: Annotated[int, typer.Option(min=0, help="Views of each picture; 0 is the whole picture, once.")] = 0,
    seed: Annotated[int, typer.Option(help="What the views are drawn from.")] = 0,
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


@app.command(name="check")
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


@app.command(name="import")
def import_stored(
    path: Annotated[Path, typer.Argument(help="A clip-retrieval folder, reinforced shards, features, or arrays.")],
    out: Annotated[Path, typer.Option(help="Folder for the store.")],
    model: Annotated[str, typer.Option(help="The model that gave the rows; without --scale it is loaded.")] = "",
    scale: Annotated[float | None, typer.Option(help="Its logit scale; 100 if neither is said.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="The column of ids.")] = None,
    columns: Annotated[str | None, typer.Option(help="0:768 takes one teacher's part of the rows.")] = None,
    data: Annotated[str | None, typer.Option(help="The data that were embedded: their ids are used.")] = None,
) -> None:
    """Make a store of embeddings that another program wrote."""
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


@app.command(name="export")
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
