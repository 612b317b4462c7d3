"""Units: what pixels are, when others are converted to them, and when that is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybitvit.data import Normalize, load_digits
from tinybitvit.data.images import Units, border_mean, check_images, scaled_columns

BYTES = load_digits().X_train[:60]  # uint8, 0..255

# The same pixels in other containers and units.
ALIKE = {
    "uint8": lambda X: X,
    "int64": lambda X: X.astype("int64"),
    "uint16": lambda X: X.astype("uint16"),
    "float32": lambda X: X.astype("float32"),
    "float64": lambda X: X.astype("float64"),
    "float16": lambda X: X.astype("float16"),
    "0..1": lambda X: (X / 255).astype("float32"),
    "0..1, float64": lambda X: X / 255,
}
# The same pixels in units that no rule converts.
STRANGE = {
    "standardised": lambda X: ((X / 255 - 0.3) / 0.35).astype("float32"),
    "-1..1": lambda X: X / 127.5 - 1,
    "0..16": lambda X: X / 255 * 16,
    "0..65535": lambda X: X.astype("uint16") * 257,
    "percent": lambda X: X / 2.55,
}
# (seen, asked) whose ranges lie within each other: nothing tells them apart.
INSIDE = {("standardised", "-1..1"), ("-1..1", "standardised"), ("percent", "0..16"), ("0..65535", "uint16")}


@pytest.mark.parametrize("seen", ALIKE)
@pytest.mark.parametrize("asked", ALIKE)
def test_alike_pixels_are_converted(seen, asked):
    norm = Normalize.fit(ALIKE[seen](BYTES))
    expected, X = norm(ALIKE[seen](BYTES)), ALIKE[asked](BYTES)
    np.testing.assert_allclose(norm.preparation(X)(X), expected, atol=1e-3 if asked == "float16" else 2e-6)
    if "0..1" not in seen + asked:
        np.testing.assert_array_equal(norm.preparation(X)(X[:7]), expected[:7])


@pytest.mark.parametrize("seen", [*ALIKE, *STRANGE])
@pytest.mark.parametrize("asked", [*ALIKE, *STRANGE])
def test_strange_pixels_are_refused_with_both_ranges(seen, asked):
    pixels = ALIKE | STRANGE
    norm, X = Normalize.fit(pixels[seen](BYTES)), pixels[asked](BYTES)
    if seen == asked or (seen in ALIKE and asked in ALIKE) or (seen, asked) in INSIDE:
        norm.preparation(X)
        return
    with pytest.raises(
        ValueError, match=r"X holds \w+ pixels from \S+ to \S+, but .* fitted on \w+ pixels from"
    ) as error:
        norm.preparation(X)
    assert X.dtype.name in str(error.value) and norm.units.dtype in str(error.value)


@given(st.sampled_from([*ALIKE]), st.sampled_from([*ALIKE, *STRANGE]), st.integers(1, 8), st.integers(0, 50))
def test_a_few_images_are_right_or_refused(seen, asked, count, start):
    """Also where few images hold too little to tell their units."""
    pixels, rows = ALIKE | STRANGE, slice(start, start + count)
    norm, X = Normalize.fit(pixels[seen](BYTES)), pixels[asked](BYTES[rows])
    try:
        got = norm.preparation(X)(X)
    except ValueError:
        assert seen != asked
        return
    np.testing.assert_allclose(got, norm(pixels[seen](BYTES[rows])), atol=2e-3)


@pytest.mark.parametrize("value", [0, 1])
def test_dark_bytes_are_bytes(value):
    dark = np.full((2, 8, 8, 1), value, np.uint8)
    for seen in ("uint8", "float32", "0..1"):
        norm = Normalize.fit(ALIKE[seen](BYTES))
        np.testing.assert_allclose(norm.preparation(dark)(dark), norm(ALIKE[seen](dark)), atol=1e-6)


def test_black_and_white_floats_may_be_either():
    X = (BYTES > 99).astype("float32")
    with pytest.raises(ValueError, match="not certain"):
        Normalize.fit(BYTES).preparation(X)
    norm = Normalize.fit(BYTES / 255)
    np.testing.assert_array_equal(norm.preparation(X)(X), norm(X))
    black = np.zeros((1, 8, 8, 1))
    np.testing.assert_allclose(Normalize.fit(BYTES).preparation(black)(black), norm(black), atol=1e-5)


@pytest.mark.parametrize("seen", ["bool", "float32", "uint8", "int64"])
@pytest.mark.parametrize("asked", ["bool", "float32", "uint8", "int64"])
def test_0_and_1_are_black_and_white_in_any_container(seen, asked):
    """Images of bits: a uint8 of 1 is white, and no nearly black byte."""
    X = BYTES > 99
    norm = Normalize.fit(X.astype(seen))
    found = norm.preparation(X.astype(asked))(X.astype(asked))
    np.testing.assert_allclose(found, norm(X.astype(seen)), atol=1e-5)
    mine = Normalize.fit(X.astype(asked))  # a student, whose teacher is the other
    sight = mine.sight(norm, X.astype(asked)) or (lambda x: x)
    np.testing.assert_allclose(sight(mine(X.astype(asked))), norm(X.astype(seen)), atol=1e-5)
    if seen in ("bool", "float32"):  # true bytes are converted all the same
        np.testing.assert_allclose(norm.preparation(X * np.uint8(255))(X * np.uint8(255)), found, atol=1e-5)


def test_bytes_are_not_told_to_come_as_bytes():
    with pytest.raises(ValueError, match=r"scale X to the range of the fit$"):
        norm = Normalize.fit(BYTES // 16)
        norm.preparation(BYTES)
    with pytest.raises(ValueError, match=r"or give bytes as uint8$"):
        norm = Normalize.fit(BYTES)
        norm.preparation(BYTES / 255 * 16 + 0.1)


# --- columns that were scaled each for itself -------------------------------------------------------------------------

RAW = load_digits().X_train[:200].reshape(200, -1) // 16 * 1.0
SCALERS = {
    "min and max": lambda X: (X - X.min(0)) / np.maximum(X.max(0) - X.min(0), 1),
    "largest": lambda X: X / np.maximum(np.abs(X).max(0), 1),
    "mean and std": lambda X: (X - X.mean(0)) / np.where(X.std(0), X.std(0), 1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SCALERS)
def test_columns_scaled_each_for_itself_are_recognised(name, dtype):
    rows = SCALERS[name](RAW).astype(dtype)
    assert scaled_columns(rows)
    norm = Normalize.fit(rows.reshape(-1, 8, 8, 1), scaled=True)
    assert Normalize.from_dict(norm.to_dict()).units == norm.units and norm.units.scaled
    unseen = rows[:3].reshape(-1, 8, 8, 1).copy()
    unseen[1, 3, 3], unseen[2, 3, 3] = rows.max() + 7 * np.ptp(rows), rows.min() - 7 * np.ptp(rows)
    np.testing.assert_array_equal(norm.preparation(unseen)(unseen), norm(unseen))
    one = unseen[:1]
    np.testing.assert_array_equal(norm.preparation(one)(one), norm(one))
    far = unseen.copy()
    far[0, 0, 0] = rows.max() + 9 * np.ptp(rows)
    raw = RAW[:20].reshape(-1, 8, 8, 1)
    for strange in (far, raw, raw.astype("uint8"), BYTES, BYTES.astype("float32")):
        with pytest.raises(ValueError, match="whose columns were each scaled for itself"):
            norm.preparation(strange)


@pytest.mark.parametrize("scale", [1, 1 / 16, 1 / 255, 17 / 255])
def test_one_scale_for_all_columns_is_none_each(scale):
    rows = RAW * scale
    assert (
        not scaled_columns(rows) and not scaled_columns(rows.astype("float32")) and not scaled_columns(RAW.astype(int))
    )
    full = np.vstack([BYTES.reshape(60, -1), np.zeros((1, 64)), np.full((1, 64), 255)])  # all columns reach both ends
    assert not scaled_columns(full / 255) and not scaled_columns((full / 127.5 - 1).astype("float32"))
    assert not scaled_columns(np.full((9, 4), 0.5)) and not scaled_columns(np.full((9, 4), math.nan))


def test_other_units_are_written_as_they_were():
    assert "scaled" not in Normalize.fit(BYTES).to_dict()["units"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_planes_of_colours_are_refused(channels):
    with pytest.raises(ValueError, match=r"looks like \(N, C, H, W\)"):
        check_images(np.zeros((2, channels, 32, 32)), None)
    assert check_images(np.zeros((2, 4, 32, 3)), None).shape == (2, 4, 32, 3)
    assert check_images(np.zeros((2, 4, 32)), None).shape == (2, 4, 32, 1)


def test_numbers_that_are_not_finite_are_named():
    norm = Normalize.fit(BYTES / 255)
    with pytest.raises(ValueError, match=r"NaN or inf pixels .first in image 3"):
        X = BYTES / 255
        X[3, 2, 2] = np.nan
        norm.preparation(X)
    with pytest.raises(ValueError, match=r"from 0 to 1e\+38"):
        norm.preparation(np.where(BYTES > 99, 1e38, 0))


def test_units_survive_json_and_older_files_have_none():
    norm = Normalize.fit(BYTES)
    assert norm.units == Units("uint8", 0.0, 255.0, True, "dark")
    assert Normalize.from_dict(norm.to_dict()).units == norm.units
    old = Normalize.from_dict({"mean": norm.mean.tolist(), "std": norm.std.tolist()})
    for pixels in ALIKE.values():
        np.testing.assert_allclose(old.preparation(pixels(BYTES))(pixels(BYTES)), norm(BYTES), atol=2e-3)
    unknown, X = Normalize(5.0, 6.0), BYTES * 0.5
    np.testing.assert_array_equal(unknown.preparation(X)(X), unknown(X))  # as it is: there is nothing to compare with


@pytest.mark.parametrize(
    ("X", "ground"),
    [
        (BYTES, "dark"),
        (255 - BYTES, "light"),
        (1 - BYTES / 255, "light"),
        (BYTES / 255 * 16, "dark"),
        (np.where(np.arange(60)[:, None, None, None] % 2, BYTES, 255 - BYTES), None),
        (np.repeat(BYTES, 3, axis=3), None),
    ],
)
def test_the_ground_of_drawings(X, ground):
    assert Normalize.fit(X).units.ground == ground


def test_border_mean():
    image = np.full((4, 5, 1), 9.0)
    image[1:3, 1:4] = 100
    image[0, 0] = 9 + 14
    assert border_mean(image) == 10


@pytest.mark.parametrize("seen", [*ALIKE, *STRANGE])
def test_pictures_have_the_black_and_white_of_the_fit(seen):
    """One rule: bytes of pictures, as `for_pictures` normalises them, are what the model was fitted on."""
    X = (ALIKE | STRANGE)[seen](BYTES)
    norm = Normalize.fit(X)
    stated = norm.for_pictures()
    pictures = Normalize(stated["mean"], stated["std"])(BYTES)
    np.testing.assert_allclose(pictures, norm(X), atol=5e-3)
    asked = norm.units.of_pictures(BYTES)
    assert asked.dtype == (X.dtype if seen == "0..65535" else asked.dtype)
    np.testing.assert_allclose(norm.preparation(asked)(asked), norm(X), atol=5e-3)


@pytest.mark.parametrize("seen", ["uint8", "float32", "0..1", "0..16"])
def test_another_model_sees_the_same_images(seen):
    X = (ALIKE | STRANGE)[seen](BYTES)
    mine, other = Normalize.fit(X[:20] // 2 if seen == "uint8" else X[:20] / 2), Normalize.fit(X)
    np.testing.assert_allclose(mine.sight(other, X)(mine(X)), other(X), atol=1e-5)
    assert other.sight(other, X) is None


def test_a_teacher_of_other_units_sees_its_own():
    mine, theirs = Normalize.fit(BYTES / 255 * 0.9), Normalize.fit(BYTES.astype("float32"))
    sight = mine.sight(theirs, BYTES / 255)
    np.testing.assert_allclose(sight(mine(BYTES / 255)), theirs(BYTES.astype("float32")), atol=1e-5)
