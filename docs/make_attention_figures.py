"""Runs the code blocks of attention.md in order, which writes the pictures in figures/, and photographs the page.

The screenshot needs Chromium on the PATH and is left as it is without one.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
LARGEST = 150_000  # bytes of one picture


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def screenshot(page: Path, picture: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        print("no chromium on the PATH:", picture.name, "is left as it is")
        return
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        flags += [f"--user-data-dir={profile}", "--window-size=980,980", f"--screenshot={picture}"]
        subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=60)


def main() -> None:
    os.chdir(DOCS)
    names: dict[str, object] = {}
    for block in code_blocks(Path("attention.md").read_text(encoding="utf-8")):
        exec(compile(block, "attention.md", "exec"), names)
    page = DOCS / "figures" / "comparison.html"
    screenshot(page, DOCS / "figures" / "page.png")
    page.unlink()  # the page itself is not kept: the picture of it is
    for picture in sorted(Path("figures").glob("*.png")):
        size = picture.stat().st_size
        print(f"{picture}  {size:,} bytes")
        if size > LARGEST:
            raise SystemExit(f"{picture} has more than {LARGEST:,} bytes: lower its dpi in attention.md")


if __name__ == "__main__":
    main()
