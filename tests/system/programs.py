"""Where the programs are that tests need beside Python."""

import os
import shutil
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")  # VERSION/bin: the server's programs are not on the PATH there
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def postgresql() -> Path | None:
    """The folder of `initdb` and `postgres`; the newest version where there are several."""
    debian = [path for path in DEBIAN.glob("*/bin") if path.parent.name.isdigit()]
    newest = sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
    on_path = [Path(word) for word in os.environ.get("PATH", "").split(os.pathsep) if word]
    for folder in [*newest, *on_path]:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


def chromium() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def node() -> str | None:
    """Node, where npm is there too."""
    return shutil.which("node") if shutil.which("npm") else None
