"""Join the models of several studies of the same images: `python docs/results/join.py FOLDER RESULTS...`.

Each of RESULTS is the results.json of a study, or the folder of one. FOLDER/results.json is that of the first of them,
with the models of the others that it has not, such as those that were refined from its own.
"""

import sys
from pathlib import Path

from tinybitvit import files, study
from tinybitvit.study import report, results

SAME = ("dataset", "train_size", "test_size", "image_shape", "classes")
COMMON = ("options", "settings")  # of which only what all have alike says something


def main(folder: str, *paths: str) -> None:
    first, *others = map(study.read_results, paths)
    commands, recipes = [first["command"]], [first["options"].get("recipe")]
    for path, more in zip(paths[1:], others, strict=True):
        if different := [name for name in SAME if more[name] != first[name]]:
            raise SystemExit(f"{path} has another {different[0]} than {paths[0]}: join studies of the same images")
        known = {model["name"] for model in first["models"]}
        first["models"] += [model for model in more["models"] if model["name"] not in known]
        commands.append(more["command"])
        recipes.append(more["options"].get("recipe"))
        for part in COMMON:
            first[part] = {name: value for name, value in first[part].items() if (name, value) in more[part].items()}
        first["groups"] = first["groups"] or more["groups"]
    if taught := sorted({*recipes} - {None}):
        first["options"]["recipe"] = ", ".join(taught)
    first |= {"command": " && ".join(commands), "planned": len(first["models"])}
    if not all("bytes" in model for model in first["models"]):  # of files; earlier versions told of arrays alone
        for model in first["models"]:
            model.pop("bytes", None)
    results.sum_up(first)
    Path(folder).mkdir(parents=True, exist_ok=True)
    files.write_file(Path(folder) / "results.json", report.to_json(first))


if __name__ == "__main__":
    main(*sys.argv[1:])
