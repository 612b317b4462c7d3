"""Draw the figures of this folder from the raw results: `python docs/results/make_figures.py [FOLDER ...]`.

Each FOLDER holds the results.json of a study (unless given: every sub-folder of this one that does). Its figures are
written beside it, as far as they fit the study: table.png, loss.png, confusion.png, pareto.png and ablation.png. The
tables are printed as Markdown, too.
"""

import sys
from pathlib import Path

from tinybitvit import study
from tinybitvit.study import report

HERE = Path(__file__).resolve().parent


def main(folders: list[str]) -> None:
    for folder in map(Path, folders or sorted(path.parent for path in HERE.glob("*/results.json"))):
        results = study.read_results(folder)
        written = study.draw(folder, results)
        print(f"## {folder.name}\n\n{report.markdown_table(results)}\n")
        print(*(f"- {note}" for note in report.notes(results)), sep="\n")
        print("\nwritten:", *(path.name for path in written), "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
