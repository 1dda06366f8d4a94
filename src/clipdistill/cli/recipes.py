"""Verbs of recipes: list, show, check, draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdistill.cli import completion
from clipdistill.progress import console

app = typer.Typer(help="List, explain, draw and check recipes.", no_args_is_help=True)


@app.command(name="list")
def list_recipes() -> None:
    """List the recipes that ship with the package."""
    from clipdistill.algebra.recipe import Recipe, available

    width = max(map(len, available()))
    for name in available():
        print(f"{name:<{width}}  {Recipe.load(name).paper}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.", autocompletion=completion.recipes)],
) -> None:
    """Explain a recipe: its paper, and its terms as a table."""
    from clipdistill.algebra.recipe import Recipe

    print(Recipe.load(name).describe())


@app.command(name="check")
def check_recipe(
    file: Annotated[str, typer.Argument(help="A YAML file, or a recipe's name.", autocompletion=completion.recipes)],
) -> None:
    """Check that a recipe means something; says which models it needs."""
    from clipdistill.algebra.recipe import Recipe

    recipe = Recipe.load(file)
    teachers = ", ".join(f"teachers.{letter}" for letter in recipe.teachers) or "no teacher"
    print(f"{recipe.name}: {len(recipe.terms)} terms over {', '.join(map(str, recipe.nodes))}; needs {teachers}")


@app.command(name="draw")
def draw_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.", autocompletion=completion.recipes)],
    out: Annotated[Path | None, typer.Option(help="The picture to write; NAME.svg in this folder without.")] = None,
) -> None:
    """Draw a recipe as SVG: its nodes, and a line for each arrow of its terms."""
    from clipdistill.algebra.drawing import draw
    from clipdistill.algebra.recipe import Recipe
    from clipdistill.files import write_text

    recipe = Recipe.load(name)
    file = out or Path(f"{recipe.name}.svg")
    write_text(file, draw(recipe))
    console.print(f"drawn: {file}", markup=False)
