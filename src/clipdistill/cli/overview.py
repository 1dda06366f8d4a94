"""What the program can do, on one screen: its verbs in the order in which a model passes through them."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from clipdistill import __version__

#: The verbs by group, in the order in which a model passes through them.
VERBS = {
    "First steps": ("demo", "init", "doctor"),
    "Data": ("data",),
    "Teacher": ("embed", "store"),
    "Student": ("recipes", "students", "plan", "distill", "chinese-clip"),
    "Proof": ("eval", "compare", "retention", "bench"),
    "Shipping": ("export", "push"),
    "Search": ("index", "search", "serve"),
}
_REST = "More"
#: Letters of a verb's first sentence: more than any has, so that it is wrapped and not cut.
_WHOLE = 500

_SCREEN = """\
clipdistill {version}: turn a large CLIP into a small, fast one, prove what was
kept, and search pictures with it.

  teacher -> embed -> distill -> eval, compare, retention
                         |
                         +-> export -> index -> search, serve

{verbs}

Type next:
  clipdistill demo         see it work: no download, a few minutes on two cores
  clipdistill init         three questions, and a run file for your own pictures
  clipdistill doctor       what this machine has, and what it lacks
  clipdistill --help       what each verb does; VERB --help tells what it takes
"""


class VerbGroup(TyperGroup):
    """Lists verbs in their groups instead of one below the other."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; wrong usage says what a missing word is, and how keys of a run are written."""
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except Exception as error:
            _say_more(error)
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group."""
        groups = grouped(self)
        width = max(len(name) for verbs in groups.values() for name in verbs)
        for panel, verbs in groups.items():
            with formatter.section(panel):
                formatter.write_dl(
                    [(name.ljust(width), self.commands[name].get_short_help_str(_WHOLE)) for name in verbs]
                )


def _say_more(error: Any) -> None:
    """Add to a message about usage what its parser cannot know."""
    missing = getattr(error, "param", None) if type(error).__name__ == "MissingParameter" else None
    if missing is not None:
        error.message = getattr(missing, "help", None) or error.message
    wrong, verb = getattr(error, "option_name", ""), getattr(getattr(error, "ctx", None), "info_name", "")
    if wrong and verb in ("distill", "plan"):
        from clipdistill.config import RunConfig

        key = wrong.lstrip("-")
        if key.split(".")[0] in RunConfig.model_fields:
            error.possibilities = [f"{key}=VALUE"]


def grouped(group: TyperGroup) -> dict[str, list[str]]:
    """The names of a program's verbs by group, both in order; those that no group names come last."""
    there = [name for name, command in group.commands.items() if not command.hidden]
    found = {title: [name for name in names if name in there] for title, names in VERBS.items()}
    known = {name for names in found.values() for name in names}
    found[_REST] = [name for name in there if name not in known]
    return {title: names for title, names in found.items() if names}


def overview(ctx: typer.Context) -> str:
    """What is printed when no verb is given."""
    assert isinstance(ctx.command, TyperGroup)
    lines = [f"  {panel:<12} {', '.join(names)}" for panel, names in grouped(ctx.command).items()]
    return _SCREEN.format(version=__version__, verbs="\n".join(lines)).rstrip()
