"""A hand that writes digits on the page of a trained model with the mouse of a Chromium."""

import numpy as np


def arc(x, y, rx, ry, start, stop):
    """Points on an ellipse around x, y; angles in degrees, from the right, clockwise as y points down."""
    t = np.radians(np.linspace(start, stop, 2 + abs(stop - start) // 15))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1).tolist()


# Digits as one hand writes them: one list of points for each stroke, in units of the canvas.
STROKES = {
    "0": [arc(0.5, 0.5, 0.2, 0.33, -90, 270)],
    "1": [[[0.38, 0.3], [0.52, 0.17], [0.52, 0.83]]],
    "2": [[*arc(0.5, 0.34, 0.18, 0.17, -170, 40), [0.33, 0.82], [0.7, 0.82]]],
    "3": [[*arc(0.48, 0.33, 0.17, 0.16, -150, 90), *arc(0.48, 0.66, 0.19, 0.17, -90, 150)]],
    "4": [[[0.52, 0.16], [0.3, 0.58], [0.72, 0.58]], [[0.58, 0.4], [0.56, 0.85]]],
    "5": [[[0.68, 0.18], [0.38, 0.18], [0.35, 0.46], *arc(0.48, 0.62, 0.19, 0.2, -120, 140)]],
    "6": [[[0.6, 0.15], [0.42, 0.35], *arc(0.5, 0.64, 0.17, 0.19, -170, 190)]],
    "7": [[[0.3, 0.18], [0.7, 0.18], [0.45, 0.84]], [[0.38, 0.5], [0.64, 0.5]]],
}

# All ten in two plain styles, as one writes them with a mouse. None of them is among the styles of zoo/digits.py.
PLAIN = {
    0: [
        [arc(0.5, 0.5, 0.22, 0.3, -100, 262)],
        [arc(0.46, 0.52, 0.14, 0.22, -60, -425)],
    ],
    1: [
        [[[0.5, 0.2], [0.49, 0.5], [0.5, 0.8]]],
        [[[0.42, 0.34], [0.5, 0.22], [0.5, 0.78]]],
    ],
    2: [
        [[[0.32, 0.34], *arc(0.5, 0.34, 0.17, 0.15, 180, 375), [0.5, 0.62], [0.32, 0.8], [0.7, 0.8]]],
        [[*arc(0.47, 0.36, 0.15, 0.13, -140, 60), [0.32, 0.74], [0.36, 0.75], [0.66, 0.74]]],
    ],
    3: [
        [[*arc(0.48, 0.35, 0.16, 0.14, -145, 95), *arc(0.48, 0.64, 0.18, 0.16, -85, 145)]],
        [[[0.34, 0.22], [0.64, 0.23], [0.48, 0.44], [0.62, 0.54], [0.64, 0.68], [0.5, 0.78], [0.34, 0.74]]],
    ],
    4: [
        [[[0.36, 0.2], [0.34, 0.52], [0.68, 0.52]], [[0.6, 0.2], [0.6, 0.82]]],
        [[[0.58, 0.2], [0.32, 0.58], [0.7, 0.57]], [[0.58, 0.21], [0.58, 0.8]]],
    ],
    5: [
        [[[0.64, 0.22], [0.38, 0.22], [0.37, 0.47], *arc(0.48, 0.62, 0.16, 0.17, -110, 145)]],
        [[[0.4, 0.24], [0.38, 0.46], [0.52, 0.44], [0.63, 0.56], [0.6, 0.72], [0.4, 0.78]], [[0.4, 0.24], [0.6, 0.23]]],
    ],
    6: [
        [[[0.56, 0.2], [0.42, 0.38], *arc(0.5, 0.65, 0.14, 0.15, 200, -170)]],
        [[[0.54, 0.22], [0.4, 0.46], [0.38, 0.64], *arc(0.5, 0.65, 0.12, 0.13, 160, -200)]],
    ],
    7: [
        [[[0.32, 0.22], [0.66, 0.22], [0.46, 0.8]]],
        [[[0.36, 0.25], [0.5, 0.25], [0.64, 0.24], [0.56, 0.46], [0.5, 0.76]]],
    ],
    8: [
        [[*arc(0.5, 0.36, 0.13, 0.14, 90, 450), *arc(0.5, 0.65, 0.16, 0.15, -90, 270)]],
        [[*arc(0.5, 0.35, 0.14, 0.13, -30, -230), *arc(0.5, 0.64, 0.15, 0.15, -50, 230), [0.62, 0.3]]],
    ],
    9: [
        [[*arc(0.5, 0.36, 0.14, 0.14, -20, -370), [0.64, 0.4], [0.62, 0.8]]],
        [[*arc(0.48, 0.37, 0.13, 0.13, 10, -350), [0.61, 0.38], [0.58, 0.62], [0.5, 0.78]]],
    ],
}  # fmt: skip


def box_of(browser, node):
    """Where an element lies in the window, once it is in sight."""
    return browser.evaluate(
        f"(() => {{ const node = {node}; node.scrollIntoView({{ block: 'center' }});"
        " const box = node.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
    )


def on_pad(browser, points):
    left, top, width, _ = box_of(browser, "pad")
    return [(left + x * width, top + y * width) for x, y in points]


def draw(browser, strokes):
    for points in strokes:
        (x, y), *others = on_pad(browser, points)
        press = {"button": "left", "clickCount": 1}
        browser.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **press)
        for x, y in others:
            browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        browser.send("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **press)
