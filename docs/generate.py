"""Writes the tables of docs/configuration.md and docs/models.md from the code itself.

`python docs/generate.py` rewrites them; `--check` only tells whether they are stale.
"""

import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from fluxserve.core.cards import CARDS
from fluxserve.settings import Settings

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def settings_table() -> str:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in documented():
        shown = f"`{default}`" if default else "required"
        rows.append(f"| `{name}` | {kind} | {shown} | {meaning} |")
    return "\n".join(rows)


def documented() -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every setting, for the docs."""
    rows: list[tuple[str, str, str, str]] = []

    def visit(model: type[BaseModel], before: str) -> None:
        for name, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                visit(kind, f"{before}{name}.")
            elif get_origin(kind) is tuple and _is_section(kind):
                visit(get_args(kind)[0], f"{before}{name}[].")
            else:
                default = "" if info.is_required() else json.dumps(info.default)
                rows.append((f"{before}{name}", _type_name(kind), default, info.description or ""))

    visit(Settings, "")
    return rows


def _is_section(kind: Any) -> bool:
    first = get_args(kind)[0]
    return isinstance(first, type) and issubclass(first, BaseModel)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "list"
    return getattr(kind, "__name__", str(kind).replace("typing.", ""))


def models_table() -> str:
    rows = ["| id | does | steps | guidance | also called | licence |", "|---|---|---|---|---|---|"]
    for card in CARDS:
        names = ", ".join(f"`{name}`" for name in card.aliases)
        does = ", ".join(task.value.replace("_", " ") for task in card.tasks)
        rows.append(
            f"| `{card.id}` | {does} | {card.num_steps} | {card.guidance:g} | {names} "
            f"| {card.license} |"
        )
    return "\n".join(rows)


PAGES = {"configuration.md": settings_table, "models.md": models_table}


def fresh(name: str) -> str:
    """The page as it should be."""
    text = (HERE / name).read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{PAGES[name]()}\n{END}{after}"


def main() -> int:
    stale = [name for name in PAGES if fresh(name) != (HERE / name).read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        sys.stdout.write("".join(f"docs/{name} is stale: run `make docs`\n" for name in stale))
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(fresh(name), encoding="utf-8")
        sys.stdout.write(f"wrote docs/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
