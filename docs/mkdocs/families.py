"""The tables of teachers in docs/inheritance.md, from the families themselves: `python docs/mkdocs/families.py`."""

import re
import sys
from collections import defaultdict
from pathlib import Path

from transmamba.transfer.teachers import Family, families, refused

PAGE = Path(__file__).parents[1] / "inheritance.md"
# the text between the two comments is generated
MARKED = re.compile(r"(?<=<!-- families -->\n\n).*?(?=\n<!-- end of families -->)", re.S)


def translated() -> str:
    """One row per family: models, how `config.model_type` names them, and what the translation has to do."""
    rows = [f"| {one.title} | `{one.name}` | {_types(one)} | {_summary(one)} |" for one in families().values()]
    head = [
        "| models | family | `config.model_type`, where it has another name | how it is stored |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) + "\n"


def refusals() -> str:
    """One row per reason, with the model types that it keeps out."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for kind, reason in refused().items():
        kinds[reason].append(kind)
    rows = [f"| {reason} | {', '.join(f'`{kind}`' for kind in sorted(found))} |" for reason, found in kinds.items()]
    return "\n".join(["| reason | `config.model_type` |", "| --- | --- |", *rows]) + "\n"


def counts() -> str:
    """Numbers of both tables in words."""
    kinds = sum(len(one.model_types) for one in families().values())
    return (
        f"{len(families())} families cover {kinds} model types; {len(refused())} more are refused by name, and a type"
        " that is in neither table is refused as unknown.\n"
    )


def tables() -> str:
    """Everything that is generated on the page."""
    return "\n".join([counts(), translated(), "### Refused\n", refusals()])


def _types(family: Family) -> str:
    others = [kind for kind in family.model_types if kind != family.name]
    return ", ".join(f"`{kind}`" for kind in others)


def _summary(family: Family) -> str:
    text = family.read.__doc__ or sys.modules[family.read.__module__].__doc__ or ""
    summary = text.splitlines()[0].removeprefix("Read ")
    # a summary names types and functions without the marks of Markdown
    return (summary[0].upper() + summary[1:]).replace("|", r"\|").replace("_", r"\_")


if __name__ == "__main__":
    page = PAGE.read_text()
    PAGE.write_text(MARKED.sub(lambda _: tables(), page))
