"""Trains the digits of the zoo, 32, 1.58 and 1 bit: `python zoo/digits.py --out FOLDER`, four minutes on one core.

Who draws with a mouse writes otherwise than those who wrote scikit-learn's digits, whose 7 has a bar across and whose
9 a bent foot. So the networks learn from pen strokes, too: some styles of every digit (`STYLES`), bent, turned, slanted
and stretched at random, and brought to 8 x 8 pixels by the arithmetic of the page, tinybitvit/web/draw.js.
"""

import argparse
from pathlib import Path

import numpy as np

import tinybitvit as tb

BITS = {"32bit": 32, "1.58bit": 1.58, "1bit": 1}
DRAWN = 6000  # drawings beside the 1,347 training digits
SAMPLES = 4  # along each side of a pixel, as in draw.js
BOX = (20 / 32, 1)  # the share of width and height that a digit fills
VIEW = 128  # samples along the side of the square on which a drawing is measured

Points = np.ndarray  # (n, 2), x to the right and y down in a square of side 1
Drawing = list[Points]  # one for each stroke


def arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> list[list[float]]:
    """Points on an ellipse around (x, y); angles in degrees, from the right, clockwise as y points down."""
    t = np.radians(np.linspace(start, stop, 3 + int(abs(stop - start)) // 18))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1).tolist()


# Some handwritings of each digit: a list of strokes, each a list of points.
STYLES: dict[int, list[list[list[list[float]]]]] = {
    0: [
        [arc(0.5, 0.5, 0.3, 0.42, -90, 270)],
        [arc(0.5, 0.5, 0.2, 0.42, -120, 255)],
        [arc(0.5, 0.5, 0.4, 0.4, -60, -430)],
        [[[0.55, 0.1], *arc(0.48, 0.52, 0.26, 0.4, -80, -420)]],
    ],
    1: [
        [[[0.5, 0.08], [0.5, 0.92]]],
        [[[0.58, 0.08], [0.44, 0.92]]],
        [[[0.35, 0.3], [0.55, 0.1], [0.55, 0.92]]],
        [[[0.25, 0.45], [0.6, 0.08], [0.58, 0.92]]],
        [[[0.38, 0.22], [0.52, 0.1], [0.52, 0.9]], [[0.3, 0.9], [0.74, 0.9]]],
    ],
    2: [
        [[*arc(0.5, 0.32, 0.26, 0.22, -175, 30), [0.24, 0.9], [0.8, 0.9]]],
        [[*arc(0.48, 0.3, 0.22, 0.2, -150, 45), [0.3, 0.8], *arc(0.32, 0.8, 0.09, 0.08, 120, 330), [0.8, 0.92]]],
        [[[0.22, 0.12], [0.72, 0.12], [0.72, 0.42], [0.24, 0.88], [0.78, 0.88]]],
        [[[0.25, 0.2], *arc(0.5, 0.3, 0.24, 0.2, -120, 60), [0.4, 0.68], [0.2, 0.9], [0.5, 0.84], [0.8, 0.9]]],
    ],
    3: [
        [[*arc(0.47, 0.3, 0.24, 0.2, -160, 85), *arc(0.47, 0.7, 0.28, 0.21, -85, 160)]],
        [[[0.24, 0.1], [0.74, 0.1], [0.46, 0.42], *arc(0.46, 0.66, 0.28, 0.24, -80, 155)]],
        [[*arc(0.45, 0.27, 0.26, 0.17, -140, 60), [0.42, 0.47], *arc(0.46, 0.7, 0.3, 0.2, -70, 140)]],
        [[[0.26, 0.14], *arc(0.5, 0.28, 0.2, 0.18, -90, 90), [0.4, 0.46],
          *arc(0.5, 0.68, 0.24, 0.22, -90, 120), [0.24, 0.86]]],
    ],
    4: [
        [[[0.32, 0.1], [0.24, 0.56], [0.8, 0.56]], [[0.64, 0.28], [0.62, 0.92]]],
        [[[0.62, 0.92], [0.62, 0.08], [0.18, 0.62], [0.84, 0.62]]],
        [[[0.55, 0.08], [0.2, 0.6], [0.82, 0.6]], [[0.66, 0.4], [0.66, 0.94]]],
        [[[0.28, 0.08], [0.28, 0.5], [0.72, 0.5]], [[0.72, 0.08], [0.72, 0.92]]],
        [[[0.25, 0.12], *arc(0.48, 0.36, 0.22, 0.14, 170, 20), [0.72, 0.1], [0.66, 0.92]]],
    ],
    5: [
        [[[0.74, 0.1], [0.34, 0.1], [0.3, 0.46], *arc(0.46, 0.66, 0.28, 0.24, -120, 150)]],
        [[[0.34, 0.12], [0.3, 0.44], *arc(0.44, 0.66, 0.3, 0.23, -110, 140)], [[0.34, 0.12], [0.76, 0.1]]],
        [[[0.72, 0.16], [0.42, 0.12], [0.32, 0.4], [0.6, 0.5], [0.68, 0.68], [0.54, 0.88], [0.26, 0.86]]],
        [[[0.78, 0.12], [0.28, 0.12], [0.28, 0.48], [0.7, 0.48], [0.74, 0.9], [0.24, 0.9]]],
    ],
    6: [
        [[[0.62, 0.08], [0.34, 0.42], *arc(0.5, 0.68, 0.22, 0.22, -190, 180)]],
        [[*arc(0.62, 0.5, 0.36, 0.42, -80, -180), *arc(0.5, 0.7, 0.24, 0.2, 180, -185)]],
        [[[0.4, 0.08], [0.3, 0.4], [0.3, 0.72], *arc(0.5, 0.72, 0.2, 0.2, 170, -190)]],
        [[[0.7, 0.12], *arc(0.56, 0.5, 0.28, 0.38, -100, -260), *arc(0.52, 0.7, 0.22, 0.18, 90, -200)]],
    ],
    7: [
        [[[0.2, 0.1], [0.8, 0.1], [0.42, 0.92]]],
        [[[0.24, 0.1], [0.76, 0.1], [0.58, 0.45], [0.52, 0.92]]],
        [[[0.24, 0.26], [0.24, 0.1], [0.78, 0.1], [0.4, 0.92]]],
        [[[0.2, 0.1], [0.78, 0.12], [0.4, 0.92]], [[0.34, 0.5], [0.76, 0.5]]],
        [[[0.22, 0.18], [0.4, 0.1], [0.58, 0.16], [0.8, 0.1], [0.46, 0.92]], [[0.36, 0.54], [0.7, 0.5]]],
        [[[0.26, 0.14], [0.72, 0.1], [0.66, 0.92]]],
    ],
    8: [
        [[*arc(0.5, 0.3, 0.2, 0.2, 90, -270), *arc(0.5, 0.71, 0.24, 0.21, -90, 270)]],
        [[*arc(0.5, 0.29, 0.22, 0.2, -30, -250), [0.6, 0.52], *arc(0.5, 0.71, 0.23, 0.2, -30, 210), [0.72, 0.2]]],
        [arc(0.5, 0.29, 0.22, 0.19, -90, 270), arc(0.5, 0.7, 0.27, 0.22, -90, 270)],
        [[[0.68, 0.16], [0.5, 0.08], [0.32, 0.2], [0.68, 0.72], [0.5, 0.92], [0.3, 0.74], [0.7, 0.2]]],
    ],
    9: [
        [[*arc(0.48, 0.32, 0.22, 0.22, -10, -360), [0.7, 0.4], [0.64, 0.92]]],
        [[*arc(0.48, 0.3, 0.24, 0.2, -20, -370), *arc(0.42, 0.6, 0.3, 0.32, -30, 120)]],
        [[*arc(0.5, 0.3, 0.24, 0.22, 0, -360), [0.74, 0.3], [0.46, 0.94]]],
        [[[0.7, 0.14], *arc(0.48, 0.3, 0.22, 0.2, -60, -330), [0.7, 0.12], [0.7, 0.92]]],
        [[*arc(0.46, 0.34, 0.2, 0.24, -30, -380), [0.68, 0.6], *arc(0.44, 0.72, 0.24, 0.2, 0, 140)]],
    ],
}  # fmt: skip


def written(drawing: list[list[list[float]]], rng: np.random.Generator) -> Drawing:
    """The drawing as another hand would write it: bent by a slow wave, slanted, stretched, turned, strokes shifted."""
    angle, slant = rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine = turn @ np.array([[1, -slant], [0, 1]]) @ np.diag(rng.uniform((0.5, 0.7), 1))
    frequency, phase = rng.uniform(2, 7, (2, 2)), rng.uniform(0, 2 * np.pi, 2)
    size = rng.uniform(0, 0.05)
    strokes = []
    for stroke in drawing:
        points = _resampled(np.array(stroke)) - 0.5
        wave = np.sin(points @ frequency.T + phase)
        shift = rng.normal(0, 0.012, 2) + rng.normal(0, 0.004, points.shape)
        strokes.append((points + size * wave + shift) @ affine.T + 0.5)
    return strokes


def _resampled(points: Points, step: float = 0.06) -> Points:
    """The same line with a point at least every `step`."""
    lengths = np.hypot(*np.diff(points, axis=0).T)
    parts = [
        np.linspace(a, b, max(1, int(np.ceil(n / step))), endpoint=False)
        for a, b, n in zip(points[:-1], points[1:], lengths, strict=True)
    ]
    return np.concatenate([*parts, points[-1:]])


# --- from strokes to pixels, as draw.js does it -----------------------------------------------------------------------


def rasterize(drawing: Drawing, side: int, scale: np.ndarray, shift: np.ndarray, width: float) -> np.ndarray:
    """The samples (side, side) that lie within width / 2 of a line whose points p are at p scale + shift."""
    strokes = [points * scale + shift for points in drawing]
    a = np.concatenate([np.concatenate([points[:1], points[:-1]]) for points in strokes])
    b = np.concatenate(strokes)
    (dx, dy), (ax, ay) = (b - a).T, a.T
    x, y = (np.arange(side)[:, None] + 0.5 - start for start in (ax, ay))  # (side, segments)
    length = np.maximum(dx * dx + dy * dy, 1e-12)
    along = np.clip((x * dx / length)[None] + (y * dy / length)[:, None], 0, 1)  # (rows, columns, segments)
    away = (x[None] - along * dx) ** 2 + (y[:, None] - along * dy) ** 2
    return away.min(2) <= width * width / 4


def extent(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest edge of the ink, each (x, y)."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min()]), np.array([x.max() + 1, y.max() + 1])


def drawn_image(drawing: Drawing, pen: float, ink: float) -> np.ndarray:
    """8 x 8 bytes: `drawnImage` of draw.js for lines `pen` wide, brought to the given share of ink."""
    size = 8 * SAMPLES
    low, high = extent(rasterize(drawing, VIEW, np.full(2, VIEW), np.zeros(2), pen * VIEW))
    middles = np.maximum((high - low) / VIEW - pen, 0.05)

    def draw(line: float) -> np.ndarray:
        fits = (np.array(BOX) * size - line) / middles
        scale = np.array([fits.min(), fits[1]])
        return rasterize(drawing, size, scale, size / 2 - (low + high) / 2 / VIEW * scale, line)

    thin, thick = 1.0, size / 2
    for _ in range(7):
        middle = (thin + thick) / 2
        if draw(middle).sum() > ink * size * size:
            thick = middle
        else:
            thin = middle
    sums = draw(thin).reshape(8, SAMPLES, 8, SAMPLES).sum((1, 3))
    return np.floor(sums * 255 / SAMPLES**2 + 0.5).astype(np.uint8)


def drawings(count: int, ink: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """X (count, 8, 8, 1) and the digits y (count,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 10
    X = [drawn_image(written(STYLES[c][rng.integers(len(STYLES[c]))], rng), rng.uniform(0.04, 0.14), ink) for c in y]
    return np.stack(X)[..., None], y


# --- training ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tinybitvit/zoo"), help="folder for the three files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = tb.data.load_digits()
    X, y = drawings(DRAWN, float(data.X_train.mean() / 255), args.seed)
    X, y = np.concatenate([data.X_train, data.X_train, X]), np.concatenate([data.y_train, data.y_train, y])
    args.out.mkdir(parents=True, exist_ok=True)
    for name, bits in BITS.items():
        model = tb.ViT(bits=bits, random_state=args.seed, workers=1, verbose=0).fit(X, y)
        path = args.out / f"digits-{name}.safetensors"
        model.save(path, packed=bits != 32)
        accuracy = model.score(data.X_test, data.y_test)
        print(f"{path}: {path.stat().st_size:,} bytes, {accuracy:.2%} of the digits' test images", flush=True)


if __name__ == "__main__":
    main()
