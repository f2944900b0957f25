"""Writes the tables of options on the pages of the methods from the files of `configs/`: `python docs/options.py`.

A page says where: between `<!-- options of NAME -->` and `<!-- end -->` comes the table of METHOD of configs/NAME.py,
with the comments that stand beside and above its fields.
"""

import ast
import io
import pathlib
import re
import runpy
import tokenize
from typing import Any

from maskcl_jax.config import COLOR, flat, load

ROOT = pathlib.Path(__file__).parents[1]
MARK = re.compile(r"(<!-- options of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def comments_of(source: str) -> dict[int, tuple[str, bool]]:
    """{line: (comment, whether it is alone on its line)}."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
    return found


def fields_of(source: str) -> dict[str, str]:
    """{field of METHOD: the comment above it and beside it}, in order."""
    (table,) = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "METHOD"
    ]
    assert isinstance(table, ast.Dict)
    comments, fields = comments_of(source), {}
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant)
        above, line = [], key.lineno - 1
        while line in comments and comments[line][1]:
            above.insert(0, comments[line][0])
            line -= 1
        beside = [comments[value.end_lineno][0]] if value.end_lineno in comments else []
        fields[str(key.value)] = " ".join([*above, *beside])
    return fields


def text_of(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(text_of, value))})"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else '""'


def row_of(name: str, value: Any, embedded: dict[str, Any], comment: str) -> str:
    """One line of a table."""
    parts = value if isinstance(value, dict) else {"": value}
    small = {part: embedded[f"method.{name}.{part}".rstrip(".")] for part in parts}
    if parts.keys() == COLOR.keys():
        shown = {part: parts[part] for part in parts if parts[part] != COLOR[part]}
        default = ", ".join(["COLOR", *(f"{part} {text_of(v)}" for part, v in shown.items())])
        label = f"`{name}.*`"
    else:
        default = ", ".join(text_of(v) for v in parts.values())
        label = f"`{name}`" if "" in parts else f"`{name}.{{{','.join(parts)}}}`"
    differs = {part: v for part, v in small.items() if list_of(v) != list_of(parts[part])}
    there = ", ".join(f"{part} {text_of(v)}".strip() for part, v in differs.items())
    return f"| {label} | {default} | {there} | {comment.replace('|', 'or')} |"


def list_of(value: Any) -> Any:
    """A tuple as a list: configs turn one into the other."""
    return list(value) if isinstance(value, tuple) else value


def table(name: str) -> str:
    """The table of configs/NAME.py."""
    path = ROOT / "configs" / f"{name}.py"
    values, embedded = runpy.run_path(str(path))["METHOD"], flat(load(path, "embedded"))
    fields = fields_of(path.read_text(encoding="utf-8"))
    rows = [row_of(field, values[field], embedded, comment) for field, comment in fields.items() if field != "name"]
    return "\n".join(["| `config.method.` | default | in `embedded` | |", "|---|---|---|---|", *rows, ""])


def page_with_tables(text: str) -> str:
    """A page whose tables of options are those of the configs."""
    return MARK.sub(lambda match: match[1] + "\n" + table(match[2]) + "\n" + match[3], text)


def pages() -> list[pathlib.Path]:
    """The pages of the methods."""
    return sorted((ROOT / "docs/methods").glob("*.md"))


if __name__ == "__main__":
    for page in pages():
        page.write_text(page_with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
