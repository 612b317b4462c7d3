"""Token similarity, principal components, norms and occlusion against plain NumPy, and their pictures."""

import numpy as np
import pytest

import tinybitvit as tb
from tinybitvit.models import VisionTransformer
from tinybitvit.nn import Module
from tinybitvit.tensor import Tensor
from tinybitvit.viz import measures


@pytest.fixture(params=[32, 1])
def network(request, rng):
    """6 x 8 pixels, 2 x 4 patches, a class token and a register."""
    return VisionTransformer((6, 8), (3, 2), 2, 4, 12, 3, 3, 2, request.param, pool="cls", registers=1, rng=rng).eval()


@pytest.fixture
def X(rng):
    return rng.standard_normal((5, 6, 8, 2), dtype="float32")


def tokens_by_hand(network, X):
    with tb.no_grad():
        x, layers = network.tokens(Tensor(X)), []
        for block in network.blocks:
            x = block(x)
            layers.append(x.numpy().astype(np.float64))
    return layers


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_similarity_is_the_cosine_of_tokens(network, X):
    found = tb.viz.similarity(network, X, batch_size=2)
    for maps, tokens in zip(found.maps, tokens_by_hand(network, X), strict=True):
        for n, i, j in ((0, 0, 0), (1, 2, 7), (4, 9, 1)):
            a, b = tokens[n, i], tokens[n, j]
            assert maps[n, i, j] == pytest.approx(sum(a * b) / (sum(a * a) * sum(b * b)) ** 0.5, abs=1e-6)
    np.testing.assert_allclose(found.image_map(1, (1, 2)), found.maps[1][:, 8, 2:].reshape(5, 2, 4))
    np.testing.assert_allclose(found.image_map(), found.maps[2][:, 0, 2:].reshape(5, 2, 4))  # what the head reads


def test_components_are_the_singular_vectors(network, X):
    found = tb.viz.components(network, X, batch_size=2)
    for scores, explained, tokens in zip(found.scores, found.explained, tokens_by_hand(network, X), strict=True):
        patches = tokens[:, 2:].reshape(-1, 12)
        u, s, vt = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
        signs = np.sign(vt[range(3), np.abs(vt[:3]).argmax(1)])
        np.testing.assert_allclose(scores.reshape(-1, 3), (u * s)[:, :3] * signs, atol=1e-5)
        np.testing.assert_allclose(explained, s[:3] ** 2 / (s**2).sum(), atol=1e-6)
    colors = found.image_map()
    assert colors.shape == (5, 2, 4, 3) and colors.min() == 0 and colors.max() == 1
    order = np.argsort(found.scores[-1][..., 1].ravel())
    assert (np.diff(colors[..., 1].ravel()[order]) >= 0).all()


def test_more_components_than_dimensions_are_zero():
    scores, shares = measures.principal_components(np.array([[1.0, 0], [-1, 0], [0, 0.5], [0, -0.5]]))
    np.testing.assert_allclose(scores, [[1, 0, 0], [-1, 0, 0], [0, 0.5, 0], [0, -0.5, 0]])
    np.testing.assert_allclose(shares, [0.8, 0.2, 0])
    assert measures.component_colors(np.zeros((2, 3))).max() == 0  # of equal tokens


def test_an_outlier_leaves_the_other_patches_their_colours(rng):
    scores = rng.uniform(-1, 1, (500, 3))
    scores[7] = 1000
    colors = measures.component_colors(scores)
    assert (colors[7] == 1).all() and np.std(np.delete(colors, 7, 0)) > 0.2


def test_occlusion_is_what_a_covered_patch_changes(network, X):
    found = tb.viz.occlusion(network, X, batch_size=3)
    with tb.no_grad():
        whole = softmax(network(Tensor(X)).numpy().astype(np.float64))
        assert found.target == whole.argmax(1).tolist()
        np.testing.assert_allclose(found.probability, whole.max(1), atol=1e-6)
        for row, column in ((0, 0), (1, 3), (0, 2)):
            covered = X.copy()
            covered[:, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2] = 0
            after = softmax(network(Tensor(covered)).numpy().astype(np.float64))
            expected = (whole - after)[range(5), found.target]
            np.testing.assert_allclose(found.drops[:, row, column], expected, atol=1e-6)
    assert np.abs(found.drops).max() > 1e-3
    chosen = tb.viz.occlusion(network, X, target=[0, 1, 2, 3, 0])
    np.testing.assert_allclose(chosen.probability, whole[range(5), [0, 1, 2, 3, 0]], atol=1e-6)


def test_a_fitted_classifier_packed_or_not(tmp_path):
    data = tb.data.load_digits()
    model = tb.ViT(bits=1, dim=16, depth=1, epochs=2, verbose=0, random_state=0).fit(data.X_train, data.y_train + 5)
    X = data.X_test[:3]
    found = tb.viz.occlusion(model, X)
    assert found.target == model.predict(X).tolist()
    np.testing.assert_allclose(found.probability, model.predict_proba(X).max(1), atol=1e-6)
    assert tb.viz.occlusion(model, X, target=9).target == [9, 9, 9]
    model.save(tmp_path / "model.safetensors", packed=True)
    packed = tb.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(tb.viz.occlusion(packed, X).drops, found.drops, atol=1e-4)
    mean = tb.viz.similarity(packed, X).image_map()  # no class token: the mean over all patches
    np.testing.assert_allclose(mean, tb.viz.similarity(packed, X).maps[0].mean(1).reshape(3, 4, 4))


def test_a_record_holds_the_same(network, X):
    record = tb.viz.attention(network, X, batch_size=2, occlude=True)
    np.testing.assert_array_equal(record.tokens[1], tokens_by_hand(network, X)[1].astype("float32"))
    np.testing.assert_allclose(record.norms(1), np.sqrt((record.tokens[1].astype(float) ** 2).sum(-1)), rtol=1e-6)
    np.testing.assert_allclose(record.similarity(0), tb.viz.similarity(network, X).maps[0], atol=1e-6)
    np.testing.assert_allclose(record.component_colors(), tb.viz.components(network, X).image_map(), atol=1e-6)
    np.testing.assert_allclose(record.occlusion, tb.viz.occlusion(network, X).drops, atol=1e-7)
    assert tb.viz.attention(network, X).occlusion is None


class Bare(Module):
    """Attention without blocks."""

    def __init__(self):
        super().__init__()
        self.attn = tb.nn.MultiHeadAttention(4, 2)

    def forward(self, x):
        return self.attn(x.reshape(len(x), -1, 4)).mean(axis=1)


def test_networks_without_blocks_and_heads_are_refused_in_words(rng):
    layout, X = tb.viz.Layout((2, 3)), rng.standard_normal((2, 2, 3, 4), dtype="float32")
    with pytest.raises(RuntimeError, match=r"Bare holds no tb\.models\.Block"):
        tb.viz.similarity(Bare(), X, layout=layout)
    record = tb.viz.attention(Bare(), X, layout=layout)
    assert record.tokens is None
    with pytest.raises(RuntimeError, match="this record has no tokens"):
        record.norms()
    headless = VisionTransformer((6, 8), (3, 2), 2, 0, 12, 1, 3, 2, rng=rng)
    with pytest.raises(RuntimeError, match="no classification head, so covering"):
        tb.viz.occlusion(headless, rng.standard_normal((1, 6, 8, 2), dtype="float32"))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_of_one_model_and_of_two(network, X, tmp_path):
    found = tb.viz.similarity(network, X)
    figure = found.plot(images=[0, 3], query=(1, 1))
    figure.savefig(tmp_path / "one.png")
    assert len(figure.axes) == 2 * 2 + 1 and "Row 1, column 1" in figure._supxlabel.get_text()
    shown = figure.axes[1].images[-1].get_array()
    np.testing.assert_allclose(shown, found.image_map(-1, (1, 1))[0])
    both = {"teacher": found, "student": found}
    assert [ax.get_title() for ax in tb.viz.plot_patches(both, images=[1], layer=0).axes[:3]] == [
        "image",
        "teacher\nlayer 0",
        "student\nlayer 0",
    ]


def test_pictures_of_components_and_occlusion(network, X):
    found = tb.viz.components(network, X)
    figure = found.plot(images=[2], layer=1)
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), found.image_map(1)[2])
    assert figure.axes[1].get_title() == f"layer 1, {found.explained[1].sum():.0%} of variance"
    drops = tb.viz.occlusion(network, X)
    figure = drops.plot(images=[2])
    np.testing.assert_allclose(figure.axes[1].images[-1].get_array(), 100 * drops.drops[2])
    low, high = figure.axes[1].images[-1].get_clim()
    assert low == -high and figure.axes[1].get_xlabel() == f"{drops.target[2]} ({drops.probability[2]:.0%})"
    with pytest.raises(ValueError, match="records of one kind"):
        tb.viz.plot_patches({"a": found, "b": drops})
