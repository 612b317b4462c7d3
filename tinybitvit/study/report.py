"""What a study found, as a table, as results.json and as one HTML page with its pictures inside."""

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ..train import undertrained
from ..viz.page import page_file, page_mark

Results = dict[str, Any]  # the content of results.json; see `tinybitvit.study`

GROUP = ("bits", "recipe", "dim", "depth")  # models that are alike in these differ in their seeds alone
COLUMNS = ("accuracy", "gap", "precision", "recall", "F1", "parameters", "bytes", "bits a weight", "seconds")
INGREDIENTS = (
    "Recipes, each a step further than the one before it; all start from the 32-bit model. paper: one scale a layer,"
    " and the labels are learnt. + rows: one scale for each output channel. + outputs: the outputs of the 32-bit model"
    " are learnt instead of the labels, at a low rate and without weight decay. + tokens: its tokens after each block,"
    " too. + blocks ('best'): in the first part of the training each block by itself learns what the 32-bit model's"
    " block does. + median: the scale is the median of the sizes of the weights, not their mean."
)


def model_name(bits: float, recipe: str | None = None) -> str:
    name = "1 bit" if bits == 1 else f"{bits:g} bits"
    return name if recipe is None else f"{name}, {recipe}"


def is_sweep(results: Results) -> bool:
    """Whether the models differ in more than their bits."""
    return len({(entry["dim"], entry["depth"]) for entry in results["summary"]}) > 1


def is_ablation(results: Results) -> bool:
    """Whether the models differ in their recipes."""
    return any(entry["recipe"] for entry in results["summary"])


def entry_name(entry: Results, results: Results) -> str:
    """The name of an entry of the summary."""
    shape = f", {entry['dim']} x {entry['depth']}" if is_sweep(results) else ""
    return model_name(entry["bits"], entry["recipe"]) + shape


def columns(results: Results) -> list[str]:
    """The head of the table; the gap is there where there is something to compare with."""
    kept = [name for name in COLUMNS if name != "gap" or any(entry["gap"] for entry in results["summary"])]
    old = any("bytes" not in entry for entry in results["summary"])
    return ["model", *("bytes of weights" if name == "bytes" and old else name for name in kept)]


def size_of(entry: Results) -> int:
    """Bytes of the model's file; those of its weights alone where an earlier version wrote the results."""
    return entry["bytes"] if "bytes" in entry else entry["weight_bytes"]


def rows(results: Results) -> list[list[str]]:
    """A row of texts for every entry of the summary, in the order of `columns`; scores in per cent."""
    return [
        [
            entry_name(entry, results) + "*" * entry["interrupted"],
            in_per_cent(entry["accuracy"]) + " †" * bool(too_short(entry, results)),
            *([in_per_cent(entry["gap"]) if entry["gap"] else ""] if "gap" in columns(results) else []),
            *(in_per_cent(entry[score]) for score in ("precision", "recall", "f1")),
            f"{entry['parameters']:,}",
            f"{size_of(entry):,}",
            f"{entry['effective_bits']:.2f}",
            f"{entry['seconds']:.1f}",
        ]
        for entry in results["summary"]
    ]


def in_per_cent(score: dict[str, Any]) -> str:
    """A mean, and half the width of its interval where there is one."""
    text = f"{100 * score['mean']:.2f}"
    return text if score["half_width"] is None else f"{text} ± {100 * score['half_width']:.2f}"


def points(results: Results) -> list[dict[str, Any]]:
    """The entries of the summary as `viz.plot_pareto` and `viz.plot_ablation` take them."""
    return [
        {
            "label": entry["recipe"] if is_ablation(results) else f"{entry['dim']} x {entry['depth']}",
            "group": model_name(entry["bits"]),
            "bytes": size_of(entry),
            "accuracy": entry["accuracy"]["mean"],
            "low": entry["accuracy"]["low"],
            "high": entry["accuracy"]["high"],
            "front": entry["front"],
        }
        for entry in results["summary"]
    ]


def notes(results: Results) -> list[str]:
    """What a reader of the table has to know."""
    texts = [
        "Scores are per cent of the test images; precision, recall and F1 are means over the classes (macro).",
        bytes_note(results),
    ]
    if absent := absent_classes(results):
        texts.append(
            f"There is no test image of {', '.join(absent)}: the means count such a class, as 0, only where a model"
            " takes an image of another one for it."
        )
    if "gap" in columns(results):
        texts.append(
            "Gap: points of accuracy below the 32-bit model of the same seed and shape. An interval that holds 0 leaves"
            " open which of the two is better."
        )
    if len(results["seeds"]) > 1:
        texts.append(
            f"Means over {len(results['seeds'])} seeds; ±: half of the 95 % interval of the mean (Student's t)."
        )
    else:
        texts.append(
            f"±: half of the 95 % interval for a share of {results['test_size']:,} test images (Wilson; of a gap, as if"
            " each model had images of its own: Newcombe). It says nothing about other seeds."
        )
    if is_sweep(results):
        front = [entry_name(entry, results) for entry in by_bytes(results) if entry["front"]]
        texts.append(
            f"Names are bits, width x depth. No other model has fewer bytes and at least the accuracy of"
            f" {'; '.join(front)} (the Pareto front)."
        )
    if is_ablation(results):
        texts += [INGREDIENTS, "The epochs of the 32-bit model come before those of the low-bit models."]
    if any(entry["interrupted"] for entry in results["summary"]):
        texts.append("* stopped by Ctrl-C before its last epoch.")
    late = [f"{entry_name(e, results)} ({why})" for e in results["summary"] if (why := too_short(e, results))]
    if late:
        texts.append(f"† undertrained: {'; '.join(late)}. Their gaps are no finding: train for more epochs.")
    return texts


def absent_classes(results: Results) -> list[str]:
    """The classes that no test image has, with any seed."""
    images = confusion(results["models"]).sum(axis=1)
    return [name for name, count in zip(results["classes"], images, strict=True) if not count]


def bytes_note(results: Results) -> str:
    """What is counted as bytes, and as bits a weight."""
    rest = "Embeddings, norms, biases, scales and head stay in 32 bits and are counted, so that they exceed the nominal"
    counted = f"Bits a weight: of all arrays, low-bit weights packed. {rest} width."
    if "bytes" not in columns(results):
        return (
            f"Bytes of weights: all arrays of the model, low-bit weights packed, without the rest of a file. {counted}"
        )
    of_seed = f" (of seed {results['seeds'][0]})" * (len(results["seeds"]) > 1)
    return (
        f"Bytes: of the model's file{of_seed}, low-bit weights packed; arrays, names, sizes, classes and history of the"
        f" training. {counted}"
    )


def findings(results: Results) -> list[str]:
    """What became of each low-bit model, a sentence each, where there is a 32-bit one of its kind to compare with."""
    full = {(e["dim"], e["depth"]): e for e in results["summary"] if e["bits"] == 32}
    texts = []
    for entry in results["summary"]:
        if entry["gap"] and not is_ablation(results) and not is_sweep(results):
            twin, gap = full[entry["dim"], entry["depth"]], entry["gap"]
            text = f"{entry_name(entry, results)}: {100 * entry['accuracy']['mean']:.2f} % of the test images,"
            text += f" {100 * abs(gap['mean']):.2f} points {'above' if gap['mean'] < 0 else 'below'} 32 bits"
            if gap["low"] is not None:
                text += f" (95 % interval of the gap: {100 * gap['low']:.2f} to {100 * gap['high']:.2f}"
                text += ", which may be chance)" if gap["low"] <= 0 <= gap["high"] else ")"
            texts.append(f"{text}, in a file {times(size_of(twin), size_of(entry))}.")
    return texts


def times(before: int, now: int) -> str:
    """How much smaller or larger a file has become."""
    ratio = f"{max(before, now) / min(before, now):.1f}"
    if ratio == "1.0":
        return "of about the same size"
    return f"{ratio} times {'smaller' if now < before else 'as large'}"


def confusion(models: Sequence[Results]) -> np.ndarray:
    """The confusion matrices of some models, added up."""
    return np.sum([model["confusion_matrix"] for model in models], axis=0)


def mistakes(results: Results, most: int = 5) -> list[str]:
    """What each model takes for what most often, with the numbers of images, a line each."""
    names, texts = results["classes"], []
    for entry in results["summary"]:
        matrix = confusion(members(entry, results))
        wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
        pairs = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:most]]
        if found := [f"{names[a]} for {names[b]} ({wrong[a, b]})" for a, b in pairs if wrong[a, b]]:
            texts.append(f"{entry_name(entry, results)}: {', '.join(found)}.")
    return texts


def members(entry: Results, results: Results) -> list[Results]:
    """The models that an entry of the summary sums up, one a seed."""
    return [model for model in results["models"] if all(model[key] == entry[key] for key in GROUP)]


def too_short(entry: Results, results: Results) -> str | None:
    """Why the training of such models ended too early, or None; one that Ctrl-C cut short has a note of its own."""
    found = [undertrained(model["history"]) for model in members(entry, results) if not model["interrupted"]]
    return next(filter(None, found), None)


def by_bytes(results: Results) -> list[Results]:
    return sorted(results["summary"], key=size_of)


def text_table(results: Results) -> str:
    """The table for a terminal, and what to know about it."""
    return "\n".join([align([columns(results), *rows(results)]), "", *notes(results)])


def markdown_table(results: Results) -> str:
    """The table for a page in Markdown."""
    head, *body = columns(results), *rows(results)
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def align(cells: list[list[str]]) -> str:
    """Rows of texts as columns, the first one to the left, a line below the first row."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def page(results: Results, pictures: Mapping[str, tuple[Mapping[str, bytes], str]], live: str | None = None) -> str:
    """The report: one HTML text that asks the network for nothing.

    pictures: heading -> (PNG bytes by name, '' for the only one; caption). live: the file beside it to try the models.
    """
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in columns(results))
    body = "".join(
        f"<tr><th scope='row'>{html.escape(first)}</th>{''.join(f'<td>{html.escape(c)}</td>' for c in rest)}</tr>"
        for first, *rest in rows(results)
    )
    figures = "".join(figure(heading, *found) for heading, found in pictures.items())
    link = f"<p><a href='{live}'>Try these models on a picture of your own</a>, in the browser.</p>" if live else ""
    facts = {
        "training images": f"{results['train_size']:,}",
        "test images": f"{results['test_size']:,}",
        "image size": as_text(results["image_shape"]),
        "classes": ", ".join(results["classes"]),
        "seeds": ", ".join(map(str, results["seeds"])),
        **{name.replace("_", " "): as_text(value) for name, value in results["settings"].items()},
        **({"command": results["command"]} if results["command"] else {}),
        "made with": ", ".join(f"{name} {version}" for name, version in results["environment"].items()),
        "computed on": results["machine"],
    }
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        theme=page_file("theme.css"),
        mark=page_mark(),
        title=html.escape(f"Low-bit Vision Transformers on {results['dataset']}"),
        table=f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        findings="".join(f"<li>{html.escape(text)}</li>" for text in findings(results)),
        live=link,
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes(results)),
        figures=figures,
        mistakes=mistakes_section(mistakes(results)),
        facts="".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()),
    )


def mistakes_section(texts: list[str]) -> str:
    """The section of `mistakes`; nothing where there are none."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    about = "<h2>What is taken for what</h2><p>Most often, and how many test images.</p>"
    return f"<section>{about}<ul>{items}</ul></section>" if texts else ""


def figure(heading: str, pictures: Mapping[str, bytes], caption: str) -> str:
    """A section of the report. One picture keeps a width at which it can be read, several stand side by side."""
    images = "".join(
        f"<img alt='{html.escape(f'{heading}, {name}' if name else heading)}'"
        f" src='data:image/png;base64,{base64.b64encode(png).decode('ascii')}'>"
        for name, png in pictures.items()
    )
    kind = "panels" if len(pictures) > 1 else "scroll"
    return (
        f"<section><h2>{html.escape(heading)}</h2><figure><div class='{kind}'>{images}</div>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure></section>"
    )


def as_text(value: Any) -> str:
    """A setting as text, sizes as 4 x 4."""
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return "none" if value is None else str(value)


def to_json(results: Results) -> bytes:
    """The text of results.json, each list of numbers on one line."""
    text = json.dumps(results, indent=1, allow_nan=False, default=str)
    # A text cannot hold the newline after the bracket: JSON writes it as two characters.
    text = re.sub(r'\[\n[^][{}"]*\]', lambda found: " ".join(found[0].split()), text)
    return f"{text}\n".encode()
