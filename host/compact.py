"""Python source in fewer bytes, still to be read: how sync.py travels in user data."""

from __future__ import annotations

import ast
import io
import re
import tokenize


def compact(source: str) -> str:
    """Python without comments, docstrings, annotations and blank lines, and with few spaces.

    The same program in two thirds of the bytes, still text that one can read; and, unlike what a
    compressor writes, the same on every machine, so that nobody's tools replace the VM.
    """
    source = _without_unused(_assigned_plainly(source))
    lines = source.splitlines()
    keep = [bool(line.strip()) for line in lines]
    inside: set[int] = set()  # lines that begin within a string: their indentation is its text
    fresh = True  # at the beginning of a statement
    skipped = (tokenize.COMMENT, tokenize.NL)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for number, token in enumerate(tokens):
        (first, column), (last, _) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[first - 1] = lines[first - 1][:column].rstrip()
            keep[first - 1] = bool(lines[first - 1])
        elif token.type == tokenize.STRING:
            inside.update(range(first, last))
            after = next(t.type for t in tokens[number + 2 :] if t.type not in skipped)
            keep[first - 1 : last] = [True] * (last - first + 1)
            if fresh and token.string.startswith('"""') and after != tokenize.DEDENT:
                keep[first - 1 : last] = [False] * (last - first + 1)
        if token.type not in skipped:
            fresh = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return "".join(
        (
            line
            if number in inside
            else " " * ((len(line) - len(line.lstrip())) // 4) + line.lstrip()
        )
        + "\n"
        for number, line in enumerate(lines)
        if keep[number]
    )


def _assigned_plainly(source: str) -> str:
    """Python without the annotations of arguments, results and names, and with `=` for ` = `."""
    text = source.encode()  # columns of a syntax tree are bytes
    begins = [0, *(found.end() for found in re.finditer(b"\n", text))]

    def span(node: ast.expr | ast.arg) -> tuple[int, int]:
        last, column = node.end_lineno or 0, node.end_col_offset or 0
        return begins[node.lineno - 1] + node.col_offset, begins[last - 1] + column

    cuts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.returns:
            begin, end = span(node.returns)
            cuts.append((text.rindex(b" ->", 0, begin), end))
        elif isinstance(node, ast.arg) and node.annotation:
            cuts.append((span(node)[0] + len(node.arg.encode()), span(node.annotation)[1]))
        elif isinstance(node, ast.AnnAssign | ast.Assign) and node.value:
            parts: list[ast.expr] = (
                [node.target, node.annotation]
                if isinstance(node, ast.AnnAssign)
                else node.targets[-1:]
            )
            equals = span(parts[-1])[1] + 1
            cuts += [(span(parts[0])[1], equals), (equals + 1, equals + 2)]
    for begin, end in sorted(cuts, reverse=True):
        text = text[:begin] + text[end:]
    return text.decode()


def _without_unused(source: str) -> str:
    """Python without the imports and names that only annotations used."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    used = {
        node.id
        for node in ast.walk(tree)
        if isinstance(getattr(node, "ctx", None), ast.Load) and isinstance(node, ast.Name)
    }
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names = {node.targets[0].id}
        else:
            continue
        if not names & used and node.lineno == node.end_lineno:
            lines[node.lineno - 1] = "\n"
    return "".join(lines)
