"""Puts a trained network into the zoo, with its card; its accuracy is measured on the full test set.

python zoo/add.py cifar10-1bit model.safetensors --data cifar10 --command "tinybitvit train ..." --limits "..."
"""

import argparse
import json
import shutil
from pathlib import Path

import tinybitvit as tb
from tinybitvit import study
from tinybitvit.models import zoo


def confusion(model: tb.ViT, dataset: str, seed: int) -> list[list[int]]:
    """Test images by true class and prediction, in the order of the model's classes."""
    from sklearn.metrics import confusion_matrix

    data = study.load_data(dataset, seed=seed).named()
    guess = model.predict(data.X_test).astype(str)
    return confusion_matrix(data.y_test, guess, labels=model.classes_.astype(str)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("file", type=Path, help="as tb.ViT.save(..., packed=True) wrote it; at 32 bits not packed")
    parser.add_argument("--data", required=True, help="name of the data set")
    parser.add_argument("--command", required=True, help="the exact command that made the file")
    parser.add_argument("--seed", type=int, default=0, help="of training and split (default: 0)")
    parser.add_argument("--limits", required=True, help="what it is bad at, in sentences")
    args = parser.parse_args()
    model = tb.load(args.file)
    card = {key: getattr(args, key) for key in ("data", "command", "seed")}
    card |= {"confusion": confusion(model, args.data, args.seed), "limits": args.limits}
    rows = ",\n  ".join(json.dumps(row) for row in card.pop("confusion"))
    text = json.dumps(card, indent=1, ensure_ascii=False)[:-2] + f',\n "confusion": [\n  {rows}\n ]\n}}\n'
    target = zoo.FOLDER / f"{args.name}{zoo.SUFFIX}"
    if args.file.resolve() != target:
        shutil.copyfile(args.file, target)
    target.with_name(f"{args.name}.json").write_text(text, encoding="utf-8")
    print(f"{args.name}: {100 * zoo.card(args.name).correct / zoo.card(args.name).tested:.2f} %")


if __name__ == "__main__":
    main()
