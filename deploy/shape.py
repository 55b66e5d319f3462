"""Print the ten longest functions below the folders given: size is looked at, not gated."""

import ast
import pathlib
import sys


def functions(root):
    """Yield (lines, place) of every function below `root`."""
    for path in pathlib.Path(root).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                yield length, f"{path}:{node.lineno} {node.name}"


if __name__ == "__main__":
    found = [item for root in sys.argv[1:] for item in functions(root)]
    for length, place in sorted(found, reverse=True)[:10]:
        print(f"{length:5} {place}")
