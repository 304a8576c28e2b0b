"""The rules of the house, checked over its own source: rooms, sizes, printing, the environment."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fluxserve"
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
BANNED_NAMES = {"utils", "common", "helpers", "manager", "util", "misc"}

# Which rooms of ours each room may import, and which heavy packages it must never know.
MAY_IMPORT = {
    "core": {"core"},
    "storage": {"core", "storage"},
    "images": {"core", "images"},
    "flux": {"flux"},
    "engines": {"core", "flux", "images", "engines", "settings"},
    "dialects": {"core", "dialects", ""},
    "webhooks": {"core", "webhooks"},
    "ops": {"core", "ops", ""},
    "playground": {"core", "playground"},
}
NEVER = {
    "core": {"starlette", "torch", "sqlalchemy", "PIL", "pydantic", "httpx", "numpy"},
    "storage": {"starlette", "torch", "PIL"},
    "images": {"starlette", "torch", "sqlalchemy"},
    "dialects": {"torch", "sqlalchemy", "PIL", "httpx"},
    "webhooks": {"torch", "sqlalchemy", "starlette"},
    "ops": {"torch", "sqlalchemy"},
    "playground": {"torch", "sqlalchemy"},
}
# Files of the local engine that the API process imports: they must not pull torch in.
TORCH_FREE = (
    "engine",
    "process",
    "scheduler",
    "cost",
    "wire",
    "identify",
    "plan",
    "policy",
    "loras",
    "orders",
    "start",
)


def sources() -> Sequence[Path]:
    found = sorted(SOURCE.rglob("*.py"))
    return [path for path in found if "migrations/versions" not in path.as_posix()]


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def names(paths: Sequence[Path]) -> list[str]:
    return [path.relative_to(SOURCE).as_posix() for path in paths]


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_the_rooms_it_may_know(room: str) -> None:
    wrong = []
    for path in sources():
        if room_of(path) != room:
            continue
        for module in imports(path):
            if not module.startswith("fluxserve"):
                continue
            other = module.split(".")[1] if "." in module else ""
            if other not in MAY_IMPORT[room]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {module}")
    assert not wrong


@pytest.mark.parametrize("room", sorted(NEVER))
def test_a_room_never_knows_what_is_not_its_business(room: str) -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {module}"
        for path in sources()
        if room_of(path) == room
        for module in imports(path)
        if module.split(".")[0] in NEVER[room]
    ]
    assert not wrong


def test_dialects_do_not_know_each_other() -> None:
    shared = {"base", "links", "sse", "delivery", "receivers", "wire"}
    wrong = []
    for path in sources():
        parts = path.relative_to(SOURCE).parts
        if parts[0] != "dialects" or len(parts) < 2 or parts[1] == "__init__.py":
            continue
        mine = parts[1].removesuffix(".py")
        if mine in shared:
            continue
        for module in imports(path):
            if module.startswith("fluxserve.dialects."):
                other = module.split(".")[2]
                if other not in shared | {mine}:
                    wrong.append(f"{path.relative_to(SOURCE)} imports {module}")
    assert not wrong


def test_the_server_process_never_imports_torch() -> None:
    room = SOURCE / "engines" / "local"
    wrong = [
        name
        for name in TORCH_FREE
        if (room / f"{name}.py").exists()
        and any(module.split(".")[0] == "torch" for module in imports(room / f"{name}.py"))
    ]
    assert not wrong


def test_no_file_outgrows_its_room() -> None:
    long = [
        f"{path.relative_to(SOURCE)}: {count}"
        for path in sources()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    ]
    assert not long


def test_no_function_is_longer_than_a_screen() -> None:
    # A function that lists routes holds one small handler each: they are counted by themselves.
    long = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [
                    child
                    for child in ast.walk(node)
                    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                    and child is not node
                ]
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                lines -= sum((c.end_lineno or c.lineno) - c.lineno + 1 for c in inner)
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(SOURCE)}: {node.name} has {lines} lines")
    assert not long


def test_only_the_command_line_prints() -> None:
    wrong = []
    for path in sources():
        if room_of(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_call and node.func.id == "print":  # type: ignore[attr-defined]
                wrong.append(path)
    assert not names(wrong)


def test_only_the_settings_read_the_environment() -> None:
    allowed = {"settings.py"}
    wrong = [
        path
        for path in sources()
        if path.name not in allowed
        and any(word in path.read_text(encoding="utf-8") for word in ("os.environ[", "os.getenv"))
    ]
    assert not names(wrong)


def test_every_module_opens_with_a_sentence() -> None:
    bare = [
        path
        for path in sources()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not names(bare)


def test_no_room_is_a_drawer_for_everything() -> None:
    assert not [path for path in sources() if path.stem in BANNED_NAMES]


def test_there_is_no_import_cycle_between_rooms() -> None:
    reach = {room: others - {room, ""} for room, others in MAY_IMPORT.items()}
    for room in reach:
        seen: set[str] = set()
        waiting = list(reach[room])
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += reach.get(other, set())
        assert room not in seen
