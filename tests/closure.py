"""The files of the project that a module imports, directly or through others, wherever the import statement stands."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def imports(path: Path) -> set[Path]:
    """The project's files that one file imports, and the plug-ins of any folder that it loads by name."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "plugins.load":
            folder = ast.literal_eval(node.args[0])
            found |= {file for file in (ROOT / "stages" / folder).glob("*.py") if file.stem != "__init__"}
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("stages.") and file.exists():
                found.add(file)
    return found


def closure(path: Path) -> set[Path]:
    """The file itself and all that it imports."""
    seen: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo.extend(imports(file))
    return seen
