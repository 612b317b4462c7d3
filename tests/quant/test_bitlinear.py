"""BitLinear against a torch BitLinear written from the papers' formulas, and the properties of its codes."""

import numpy as np
import pytest
import torch
import torch_reference as reference
from devices import each_device, each_run, send
from torch_reference import assert_close, compare, randomize

from tinybitvit import Tensor, nn
from tinybitvit.autograd import no_grad
from tinybitvit.backend import array_module, to_numpy
from tinybitvit.quant import (
    ACTIVATION_BITS,
    WEIGHT_BITS,
    BitLinear,
    PackedLinear,
    check_bits,
    describe,
    make_linear,
    weight_codes,
)

LOW_BITS = [b for b in WEIGHT_BITS if b != 32]
RANGE = {1: (-1, 1), 1.58: (-1, 1), 2: (-2, 1), 3: (-4, 3), 4: (-8, 7), 8: (-128, 127)}
GRANULARITIES = pytest.mark.parametrize("granularity", ["row", "tensor"])


def layer(rng, *shape, dtype="float64", **options):
    return randomize(BitLinear(*(shape or (12, 7)), **options), rng, dtype)


def run(module, x, g):
    """(y, dx, {name: gradient}) of one pass."""
    module.zero_grad()
    t = Tensor(x, requires_grad=True)
    y = module(t)
    y.backward(g)
    return y.data, t.grad, {name: p.grad for name, p in module.named_parameters()}


# --- against torch ----------------------------------------------------------------------------------------------------


@each_run
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bits", [1.58, 1])
def test_paper_mode_is_bitnet(bits, norm, dtype, device, rng):
    """granularity='tensor' is what the authors of BitNet publish: quantise per tensor, activations per token."""
    module = layer(rng, 33, 17, bits=bits, granularity="tensor", norm=norm, dtype=dtype)
    theirs = reference.PaperBitLinear(33, 17, bits, norm=norm)
    compare(module, theirs, rng.standard_normal((4, 5, 33)).astype(dtype), rng, device=device)


@each_device
@pytest.mark.parametrize("bits", [1.58, 1])
def test_paper_mode_without_bias(bits, device, rng):
    module = layer(rng, bits=bits, granularity="tensor", bias=False)
    compare(module, reference.PaperBitLinear(12, 7, bits, bias=False), rng.standard_normal((9, 12)), rng, device=device)


@each_device
@GRANULARITIES
@pytest.mark.parametrize("activation_bits", ACTIVATION_BITS)
@pytest.mark.parametrize("bits", LOW_BITS)
def test_every_width(bits, activation_bits, granularity, device, rng):
    options = {"bits": bits, "activation_bits": activation_bits, "granularity": granularity}
    x = 2 * rng.standard_normal((2, 5, 12))
    compare(layer(rng, **options), reference.BitLinear(12, 7, **options), x, rng, device=device)


@each_device
@GRANULARITIES
@pytest.mark.parametrize(
    "bits, scale",
    [(b, "absmedian") for b in LOW_BITS] + [(b, "absmax") for b in LOW_BITS if b >= 2] + [(1.58, "twn")],
)
def test_every_scale(bits, scale, granularity, device, rng):
    """Rows of even length, where a median is the mean of the middle two, and of odd length."""
    options = {"bits": bits, "scale": scale, "granularity": granularity, "norm": True}
    for width in (12, 13):
        x = rng.standard_normal((5, width))
        compare(layer(rng, width, 7, **options), reference.BitLinear(width, 7, **options), x, rng, device=device)


@each_device
@GRANULARITIES
@pytest.mark.parametrize("bits", [1.58, 1])
@pytest.mark.parametrize(
    "ste, temperature", [("clipped", 1.0), ("approx_sign", 1.0), ("ede", 0.1), ("ede", 1.0), ("ede", 4.0)]
)
def test_every_estimator(ste, temperature, bits, granularity, device, rng):
    options = {"bits": bits, "ste": ste, "granularity": granularity}
    module = layer(rng, 64, 5, **options)
    module.temperature = temperature
    module.weight.data[:, :8] *= 3  # some weights far out, where the estimators let nothing through
    theirs = reference.BitLinear(64, 5, **options, temperature=temperature)
    compare(module, theirs, rng.standard_normal((6, 64)), rng, 1e-10, device=device)
    if ste in ("clipped", "approx_sign"):
        stopped = (module.weight.grad == 0).mean()
        assert 0 < stopped < 0.9


@each_device
@GRANULARITIES
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clipped_estimator_of_rounded_weights(bits, granularity, device, rng):
    options = {"bits": bits, "ste": "clipped", "granularity": granularity, "scale": "absmedian"}
    module = layer(rng, **options)
    module.weight.data[:, 0] *= 40
    compare(module, reference.BitLinear(12, 7, **options), rng.standard_normal((6, 12)), rng, device=device)
    assert 0 < (module.weight.grad == 0).sum() < 12 * 7


# --- the backward, by its formulas ------------------------------------------------------------------------------------


@GRANULARITIES
@pytest.mark.parametrize("activation_bits", [8, 4, None])
@pytest.mark.parametrize("bits", LOW_BITS)
def test_backward_formulas(bits, activation_bits, granularity, rng):
    """dX = g W_q with the quantised weight, dW = g^T x_q with the quantised activation, db = sum g."""
    module = layer(rng, bits=bits, activation_bits=activation_bits, granularity=granularity)
    x, g = rng.standard_normal((9, 12)), rng.standard_normal((9, 7))
    y, dx, grads = run(module, x, g)
    x_q = module.quantize_input(Tensor(x)).data
    w_q = module.quantized_weight()
    assert_close(y, x_q @ w_q.T + module.bias.data, "y", 1e-14)
    assert_close(dx, g @ w_q, "dX", 1e-14)
    assert_close(grads["weight"], g.T @ x_q, "dW", 1e-14)
    assert_close(grads["bias"], g.sum(axis=0), "db", 1e-14)
    assert not np.allclose(w_q, module.weight.data)  # or the test could not tell the two apart


def central_differences(function, w, h=1e-6):
    slopes = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[index] = h
        slopes[index] = (function(w + step) - function(w - step)) / (2 * h)
    return slopes


@pytest.mark.parametrize("bits", LOW_BITS)
def test_the_gradient_is_that_of_the_surrogate_and_not_the_true_one(bits, rng):
    """Finite differences of the layer itself do not give dW, and should not: rounding is a staircase.

    With codes and scale frozen at W0 the surrogate y = x_q (W_q + W - W0)^T is smooth and its slope is dW. With the
    scale alone frozen, the true slope is 0. Of the whole layer, what moves is the scale, which dW leaves out.
    """
    module = layer(rng, 6, 3, bits=bits)
    x, g = rng.standard_normal((4, 6)), rng.standard_normal((4, 3))
    _, _, grads = run(module, x, g)
    x_q, w_q, w0 = module.quantize_input(Tensor(x)).data, module.quantized_weight(), module.weight.data.copy()
    scale, mean, (low, high) = module.codes()[1], w0.mean(axis=1, keepdims=True), RANGE[bits]

    def loss(quantised):
        return float((g * (x_q @ quantised.T)).sum())

    def staircase(w):
        return loss(scale * (np.where(w >= mean, 1, -1) if bits == 1 else (w / scale).round().clip(low, high)))

    def whole(w):
        module.weight.data = w
        return loss(module.quantized_weight())

    assert np.allclose(central_differences(lambda w: loss(w_q + w - w0), w0), grads["weight"], rtol=1e-6, atol=1e-6)
    assert staircase(w0) == pytest.approx(loss(w_q))
    assert (central_differences(staircase, w0) == 0).all()
    assert not np.allclose(central_differences(whole, w0), grads["weight"], rtol=0.1)


# --- codes and scales -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@GRANULARITIES
@pytest.mark.parametrize("bits", LOW_BITS)
def test_codes_are_whole_numbers_in_range(bits, granularity, dtype, rng):
    module = layer(rng, 40, 30, bits=bits, granularity=granularity, dtype=dtype)
    codes, scale = module.codes()
    low, high = RANGE[bits]
    assert codes.shape == (30, 40) and codes.dtype == dtype and scale.dtype == dtype
    assert scale.shape == ((30, 1) if granularity == "row" else (1, 1)) and (scale > 0).all()
    assert (codes == np.rint(codes)).all() and codes.min() >= low and codes.max() <= high
    if bits < 3:
        assert set(np.unique(codes)) == set(range(low, high + 1)) - ({0} if bits == 1 else set())


@GRANULARITIES
@pytest.mark.parametrize("scale_by", ["absmean", "absmedian"])
@pytest.mark.parametrize("bits", LOW_BITS)
def test_codes_times_scale_is_what_the_forward_multiplies_by(bits, scale_by, granularity, rng):
    options = {"bits": bits, "granularity": granularity, "scale": scale_by}
    module = layer(rng, 40, 30, **options, activation_bits=None, bias=False, dtype="float32")
    codes, scale = module.codes()
    assert (module.quantized_weight() == codes * scale).all()
    assert (module(np.eye(40, dtype="float32")).data == (codes * scale).T).all()
    latent = module.weight.data
    same_codes, same_scale = weight_codes(latent, **options)
    assert (same_codes == codes).all() and (same_scale == scale).all()
    assert not np.shares_memory(codes, latent)


@pytest.mark.parametrize("activation_bits", [8, 4, 1])
def test_input_codes_times_step_is_the_quantised_input(activation_bits, rng):
    module = layer(rng, activation_bits=activation_bits, dtype="float32")
    x = rng.standard_normal((3, 5, 12)).astype("float32")
    codes, step = module.input_codes(x)
    top = 2 ** (activation_bits - 1) - 1 or 1
    assert step.shape == (3, 5, 1) and codes.shape == x.shape
    assert (codes == np.rint(codes)).all()
    assert (np.abs(codes).max(axis=-1) == top).all()  # every token uses its whole range
    assert (codes * step == module.quantize_input(Tensor(x)).data).all()


def test_one_bit_has_no_third_value():
    """sign(0) is +1: rows of equal weights, where w - mean w is 0, still get codes +-1."""
    module = BitLinear(4, 3, bits=1)
    module.weight.data[...] = np.array([[2, 2, 2, 2], [0, 0, 0, 0], [1, -1, 0, 0]])
    for granularity in ("row", "tensor"):
        module.granularity = granularity
        codes, _ = module.codes()
        assert (np.abs(codes) == 1).all()
    module.granularity = "row"
    assert module.codes()[0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, -1, 1, 1]]


def test_rounding_is_half_to_even():
    module = BitLinear(8, 1, bits=1.58)
    module.weight.data[...] = [[0.5, -0.5, 1.5, -1.5, 1, -1, 1, -1]]  # mean |w| = 1: halves are on the edge
    codes, scale = module.codes()
    assert float(scale[0, 0]) == 1.0
    assert codes.tolist() == [[0, 0, 1, -1, 1, -1, 1, -1]]


def test_scales_by_hand():
    w = np.array([[1.0, -2.0, 3.0, 6.0], [0.5, 0.5, -0.5, 0.5]])
    assert weight_codes(w, 1.58)[1].tolist() == [[3.0], [0.5]]
    assert weight_codes(w, 1.58, "tensor")[1].tolist() == [[1.75]]
    assert weight_codes(w, 1.58, scale="absmedian")[1].tolist() == [[2.5], [0.5]]
    assert weight_codes(w, 1.58, scale="twn")[1].tolist() == [[4.5], [0.5]]  # above 0.7 mean |w| = 2.1: 3 and 6
    assert weight_codes(w, 1.58, scale="twn")[0].tolist() == [[0, 0, 1, 1], [1, 1, -1, 1]]
    assert weight_codes(w, 1)[1].tolist() == [[2.5], [0.375]]  # mean |w - mean w|
    assert weight_codes(w, 1, "tensor")[1].tolist() == [[1.75]]  # the paper's: mean |w|
    assert weight_codes(w, 4, scale="absmax")[1].tolist() == [[6 / 7], [0.5 / 7]]
    assert weight_codes(w, 2)[1].tolist() == [[6.0], [1.0]]  # 2 mean |w| / sqrt(1)


def test_the_scale_of_twn_is_the_best_for_its_codes(rng):
    """No other factor brings its codes closer to the weights, and the codes of 'absmean' come less close."""
    w = rng.standard_normal((6, 200))
    codes, scale = weight_codes(w, 1.58, scale="twn")
    np.testing.assert_allclose(scale, (w * codes).sum(1, keepdims=True) / (codes**2).sum(1, keepdims=True))
    usual, size = weight_codes(w, 1.58)
    assert (((w - codes * scale) ** 2).mean(1) < 0.9 * ((w - usual * size) ** 2).mean(1)).all()


@each_device
@GRANULARITIES
@pytest.mark.parametrize(
    "bits, scale",
    [(b, "absmean") for b in (1, 1.58, 4, 8)]
    + [(1, "absmedian"), (1.58, "absmedian"), (1.58, "twn"), (2, "absmax"), (8, "absmax")],
)
def test_centred_weights_keep_codes_and_scales(bits, scale, granularity, device):
    module = layer(np.random.default_rng(0), 24, 9, bits=bits, scale=scale, granularity=granularity)
    module.weight.data[3] = 0.0
    module.to(device)
    before = [to_numpy(a) for a in module.codes()]
    latent = module.weight.data
    module.centre()
    assert module.weight.data is latent  # the optimiser's view of it stays valid
    codes, scales = (to_numpy(a) for a in module.codes())
    np.testing.assert_array_equal(codes, before[0])
    np.testing.assert_allclose(scales, before[1], rtol=1e-12)
    apart = to_numpy(module.quantizer.distance(array_module(latent), latent))
    assert np.delete(apart, 3, axis=0).min() > 0.1  # some random weight is much closer
    sizes = [np.unique(np.abs(row).round(9)) for row in to_numpy(latent)]
    assert all(len(row) <= 1 + (bits > 1) * 2 ** max(1, bits - 1) for row in sizes)  # one size a code


@pytest.mark.parametrize("pattern", ["all +127", "alternating", "random"])
def test_integer_codes_in_a_float32_product_are_exact(pattern, rng):
    """127 K < 2^24 up to K = 132,104: every partial sum is a whole number that float32 holds."""
    K = 132_104
    x = {
        "all +127": np.full((2, K), 127),
        "alternating": np.where(np.arange(2 * K).reshape(2, K) % 2, -127, 127),
        "random": rng.integers(-127, 128, (2, K)),
    }[pattern]
    w = np.ones((3, K), "int64") if pattern == "all +127" else rng.integers(-1, 2, (3, K))
    w[1] = -w[0]
    exact = x @ w.T
    if pattern == "all +127":
        assert exact[0, 0] == 127 * K
    y = x.astype("float32") @ w.astype("float32").T
    assert y.dtype == "float32" and (y.astype("int64") == exact).all()


@pytest.mark.parametrize("bits", [1, 1.58])
def test_integer_arithmetic_gives_the_layers_output(bits, rng):
    """int64 codes, one product, then the two scales: what a kernel for packed weights computes."""
    module = layer(rng, 64, 16, bits=bits, bias=False)
    x = rng.standard_normal((10, 64))
    codes, scale = module.codes()
    x_codes, step = module.input_codes(x)
    exact = x_codes.astype("int64") @ codes.astype("int64").T
    assert_close(module(Tensor(x)).data, exact * step * scale.T, "y", 1e-14)


# --- edges ------------------------------------------------------------------------------------------------------------


@GRANULARITIES
@pytest.mark.parametrize("activation_bits", ACTIVATION_BITS)
@pytest.mark.parametrize("bits", LOW_BITS)
@pytest.mark.parametrize("dead", ["row of the weight", "token", "whole weight and input"])
def test_zeros_give_no_nan(dead, bits, activation_bits, granularity, rng):
    module = layer(rng, bits=bits, activation_bits=activation_bits, granularity=granularity, norm=True, dtype="float32")
    x, g = rng.standard_normal((5, 12)).astype("float32"), rng.standard_normal((5, 7)).astype("float32")
    if dead != "token":
        module.weight.data[2 if dead.startswith("row") else ...] = 0
    if dead != "row of the weight":
        x[1 if dead == "token" else ...] = 0
    y, dx, grads = run(module, x, g)
    assert all(np.isfinite(a).all() for a in (y, dx, *grads.values()))


def test_tiny_and_huge_weights_stay_finite(rng):
    for size in (1e-30, 1e-6, 1e30):
        module = layer(rng, dtype="float32")
        module.weight.data *= np.float32(size)
        x = rng.standard_normal((5, 12)).astype("float32")
        y, dx, grads = run(module, x, rng.standard_normal((5, 7)).astype("float32"))
        assert all(np.isfinite(a).all() for a in (y, dx, *grads.values()))


def test_one_token_does_not_touch_another(rng):
    """Activation scales are per token: an outlier in one must not change the codes of the next."""
    module = layer(rng)
    x = rng.standard_normal((3, 12))
    before = module(Tensor(x)).data
    x[0] *= 1000
    after = module(Tensor(x)).data
    assert (after[1:] == before[1:]).all() and (after[0] != before[0]).any()


def test_a_pass_leaves_the_latent_weight_alone(rng):
    module = layer(rng, norm=True)
    kept = {name: a.copy() for name, a in module.state_dict().items()}
    run(module, rng.standard_normal((5, 12)), rng.standard_normal((5, 7)))
    assert all((a == kept[name]).all() for name, a in module.state_dict().items())


@pytest.mark.parametrize(
    "options, says",
    [
        ({"bits": 5}, "bits must be one of"),
        ({"bits": 1.5}, "bits must be one of"),
        ({"bits": "1.58"}, "bits must be one of"),
        ({"bits": None}, "bits must be one of"),
        ({"bits": 32}, "nn.Linear"),
        ({"activation_bits": 3}, "activation_bits must be"),
        ({"activation_bits": 32}, "activation_bits must be"),
        ({"ste": "straight"}, "ste must be one of"),
        ({"bits": 4, "ste": "ede"}, "ste for 4 bits must be"),
        ({"bits": 8, "ste": "approx_sign"}, "ste for 8 bits must be"),
        ({"scale": "mean"}, "scale must be"),
        ({"bits": 1, "scale": "absmax"}, "scale must be"),
        ({"bits": 4, "scale": "lsq"}, "scale must be"),
        ({"granularity": "column"}, "granularity must be"),
        ({"bits": 4, "granularity": "column"}, "granularity must be"),
    ],
)
def test_wrong_options_are_refused_at_construction(options, says):
    with pytest.raises(ValueError, match=says) as error:
        BitLinear(8, 4, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", WEIGHT_BITS)
@pytest.mark.parametrize("activation_bits", ACTIVATION_BITS)
def test_check_bits_takes_every_width_there_is(bits, activation_bits):
    check_bits(bits, activation_bits)


def test_make_linear():
    full = make_linear(6, 4)
    assert type(full) is nn.Linear and full.weight.shape == (4, 6)
    assert make_linear(6, 4, bias=False).bias is None
    low = make_linear(6, 4, 1, bias=False, activation_bits=4, granularity="tensor", ste="clipped", norm=True)
    assert type(low) is BitLinear and low.bias is None and low.norm is not None
    assert (low.bits, low.activation_bits, low.granularity, low.ste) == (1, 4, "tensor", "clipped")
    with pytest.raises(ValueError, match="bits must be one of"):
        make_linear(6, 4, 7)


def test_same_seed_gives_the_same_latent_weight_at_every_width():
    first, *others = [make_linear(6, 4, bits, rng=np.random.default_rng(3)).weight.data for bits in WEIGHT_BITS]
    assert all((w == first).all() for w in others)


def test_repr_names_the_width():
    assert repr(BitLinear(6, 4)) == "BitLinear(6, 4, bias=True, bits=1.58, activation_bits=8, granularity='row')"


def test_reference_quantisers_agree_with_each_other(rng):
    """The paper's code and the general reference, at the setting where both are defined."""
    w = torch.tensor(rng.standard_normal((9, 7)))
    for bits, paper in ((1, reference.paper_binary), (1.58, reference.paper_ternary)):
        general = reference.BitLinear(7, 9, bits=bits, granularity="tensor").quantise_weight(w)
        assert_close(general.numpy(), paper(w), f"{bits} bits")


@pytest.mark.parametrize("scale", ["absmean", "absmedian"])
@pytest.mark.parametrize("bits", LOW_BITS)
def test_the_scale_has_an_axis_for_each_of_the_weight(bits, scale, rng):
    w = rng.standard_normal((4, 6))
    assert weight_codes(w, bits, "row", scale)[1].shape == (4, 1)
    assert weight_codes(w, bits, "tensor", scale)[1].shape == (1, 1)


# --- inputs of other widths -------------------------------------------------------------------------------------------


@each_device
@pytest.mark.parametrize("activation_bits", [8, 4, 1, None])
@pytest.mark.parametrize("bits", [1, 1.58, 8])
def test_half_precision_is_summed_in_float32(bits, activation_bits, device):
    """768 codes of 127 are beyond float16."""
    module = BitLinear(768, 2, bits=bits, activation_bits=activation_bits, norm=activation_bits == 8)
    module.weight.data[...] = np.where(np.arange(768) % 8, 0.05, -0.05)
    module.to(device)
    x = send(np.ones((1, 768), "float16"), device)
    wide = module(Tensor(x.astype("float32"))).numpy()
    with no_grad():
        found = module(Tensor(x)).numpy()
        assert np.array_equal(found, module(Tensor(x.astype("float32"))).numpy())
    assert np.array_equal(PackedLinear.from_bitlinear(module)(Tensor(x)).numpy(), found)
    np.testing.assert_allclose(found, wide, rtol=1e-4)


@pytest.mark.parametrize("activation_bits", [8, 4, 1, None])
def test_input_codes_of_another_byte_order(activation_bits, rng):
    module, x = BitLinear(12, 3, activation_bits=activation_bits), rng.standard_normal((5, 12)).astype("float32")
    for a, b in zip(module.input_codes(x.astype(">f4")), module.input_codes(x), strict=True):
        assert np.array_equal(a, b)


# --- what a model weighs ----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = BitLinear(4, 4, bias=False), BitLinear(4, 4)
        self.second.weight = self.first.weight
        self.scales = [nn.Parameter(np.zeros(5, "float32"))]


def test_describe_counts_what_is_shared_once_and_what_is_in_a_list():
    rows = describe(Tied())
    assert [(r.name, r.weights) for r in rows] == [("", 5), ("first", 16), ("second", 4), ("total", 25)]
    assert sum(r.bytes for r in rows[:-1]) == rows[-1].bytes == 100
