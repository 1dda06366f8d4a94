"""Verbs of recipes: list, show, check."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List, explain and check recipes.", no_args_is_help=True)


@app.command(name="list")
def list_recipes() -> None:
    """List the recipes that ship with the package."""
    from clipdistill.algebra.recipe import Recipe, available

    width = max(map(len, available()))
    for name in available():
        print(f"{name:<{width}}  {Recipe.load(name).paper}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")]) -> None:
    """Explain a recipe: its paper, and its terms as a table."""
    from clipdistill.algebra.recipe import Recipe

    print(Recipe.load(name).describe())


@app.command(name="check")
def check_recipe(file: Annotated[str, typer.Argument(help="A YAML file, or a recipe's name.")]) -> None:
    """Check that a recipe means something; says which models it needs."""
    from clipdistill.algebra.recipe import Recipe

    recipe = Recipe.load(file)
    teachers = ", ".join(f"teachers.{letter}" for letter in recipe.teachers) or "no teacher"
    print(f"{recipe.name}: {len(recipe.terms)} terms over {', '.join(map(str, recipe.nodes))}; needs {teachers}")
