"""What a study found, as a table, as results.json and as one HTML page with its pictures inside."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

Results = dict[str, Any]  # the content of results.json; see `study.run_study`

COLUMNS = ("model", "accuracy", "precision", "recall", "F1", "parameters", "bytes", "bits a weight", "seconds")


def model_name(bits: float) -> str:
    return "1 bit" if bits == 1 else f"{bits:g} bits"


def rows(results: Results) -> list[list[str]]:
    """A row of texts for every model, in the order of COLUMNS; scores in per cent."""
    return [
        [
            model_name(model["bits"]) + ("*" if model["interrupted"] else ""),
            *(f"{100 * model[score]:.2f}" for score in ("accuracy", "precision", "recall", "f1")),
            f"{model['parameters']:,}",
            f"{model['weight_bytes']:,}",
            f"{model['effective_bits']:.2f}",
            f"{model['seconds']:.1f}",
        ]
        for model in results["models"]
    ]


def notes(results: Results) -> list[str]:
    """What a reader of the table has to know."""
    texts = [
        "Scores are per cent of the test images; precision, recall and F1 are means over the classes (macro).",
        "Bytes: the whole model with its low-bit weights packed. Embeddings, norms, biases, scales and head stay in 32"
        " bits and are counted, so that bits a weight exceed the nominal width.",
    ]
    if any(model["interrupted"] for model in results["models"]):
        texts.append("* stopped by Ctrl-C before its last epoch.")
    return texts


def text_table(results: Results) -> str:
    """The table for a terminal, and what to know about it."""
    return "\n".join([align([list(COLUMNS), *rows(results)]), "", *notes(results)])


def align(cells: list[list[str]]) -> str:
    """Rows of texts as columns, the first one to the left, a line below the first row."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def page(results: Results, pictures: Mapping[str, tuple[bytes, str]]) -> str:
    """The report: one HTML text that asks the network for nothing. pictures: heading -> (PNG bytes, caption)."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        f"<tr><th scope='row'>{html.escape(first)}</th>{''.join(f'<td>{html.escape(c)}</td>' for c in rest)}</tr>"
        for first, *rest in rows(results)
    )
    figures = "".join(
        f"<section><h2>{html.escape(heading)}</h2><figure>"
        f"<img alt='{html.escape(heading)}' src='data:image/png;base64,{base64.b64encode(png).decode('ascii')}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure></section>"
        for heading, (png, caption) in pictures.items()
    )
    facts = {
        "training images": f"{results['train_size']:,}",
        "test images": f"{results['test_size']:,}",
        "image size": as_text(results["image_shape"]),
        "classes": ", ".join(results["classes"]),
        "seed": str(results["seed"]),
        **{name.replace("_", " "): as_text(value) for name, value in results["settings"].items()},
        "made with": ", ".join(f"{name} {version}" for name, version in results["environment"].items()),
    }
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"Low-bit Vision Transformers on {results['dataset']}"),
        table=f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes(results)),
        figures=figures,
        facts="".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()),
    )


def as_text(value: Any) -> str:
    """A setting as text, sizes as 4 x 4."""
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


def to_json(results: Results) -> bytes:
    return (json.dumps(results, indent=1, allow_nan=False, default=str) + "\n").encode()
