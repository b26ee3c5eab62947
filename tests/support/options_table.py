"""Prints the table of options in docs/python.md from client/options.py: `python -m tests.support.options_table`."""

from __future__ import annotations

import ast

from tests.support import ROOT

GROUPS = {
    "HeaderOptions": "all",
    "RequestOptions": "all",
    "RunOptions": "runs",
    "CallOptions": "`call_tool`",
}


def options() -> list[tuple[str, str, str, str]]:
    """Each option: its name, the requests that accept it, its type, and its docstring in one line."""
    tree = ast.parse((ROOT / "axon_zmq/client/options.py").read_text())
    found = [
        (ast.unparse(option.target), GROUPS[group.name], _type(option.annotation), _text(docstring))
        for group in tree.body
        if isinstance(group, ast.ClassDef)
        for option, docstring in zip(group.body[1::2], group.body[2::2], strict=True)
        if isinstance(option, ast.AnnAssign)
    ]
    return sorted(found, key=lambda row: list(GROUPS.values()).index(row[1]))


def table() -> str:
    """The table, in Markdown."""
    rows = [f"| `{name}` | {group} | `{kind}` | {text} |" for name, group, kind, text in options()]
    return "\n".join(["| option | requests | type | meaning |", "|---|---|---|---|", *rows])


def _type(annotation: ast.expr) -> str:
    """The type without None, which each option accepts; `|` is escaped because it would end the cell."""
    return ast.unparse(annotation).removesuffix(" | None").replace("'", '"').replace("|", "\\|")


def _text(docstring: ast.stmt) -> str:
    assert isinstance(docstring, ast.Expr)
    return " ".join(str(ast.literal_eval(docstring.value)).split())


if __name__ == "__main__":
    print(table())
