"""Module: names, state, modes, hooks; and what VisionTransformer refuses."""

import copy
import gc
import weakref

import numpy as np
import pytest
from sequential import Sequential

from tinybitvit import Tensor, nn
from tinybitvit.models import VisionTransformer
from tinybitvit.nn import Module, Parameter


class Leaf(Module):
    """w x, with a buffer beside it."""

    def __init__(self, value=1.0, n=2):
        super().__init__()
        self.w = Parameter(np.full(n, value, "float32"))
        self.register_buffer("steps", np.zeros(3, "int64"))

    def forward(self, x):
        return x * self.w


class Tree(Module):
    """Parameters and modules directly, in lists, and two levels down."""

    def __init__(self):
        super().__init__()
        self.scale = Parameter(np.ones(2, "float32"))
        self.first = Leaf(1.0)
        self.rest = [Leaf(2.0), nn.Linear(2, 2), Sequential(Leaf(3.0), Leaf(4.0))]
        self.pair = (Leaf(5.0), "not a module", None)
        self.nothing = None

    def forward(self, x):
        return self.first(x) * self.scale


TREE = [
    "scale",
    "first.w",
    "rest.0.w",
    "rest.1.weight",
    "rest.1.bias",
    "rest.2.layers.0.w",
    "rest.2.layers.1.w",
    "pair.0.w",
]


def small(**options):
    options = {"image_size": 8, "patch_size": 4, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2} | options
    return VisionTransformer(**options)


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_names_are_paths_and_lists_are_numbered():
    tree = Tree()
    assert [name for name, _ in tree.named_parameters()] == TREE
    assert [name for name, _ in tree.named_children()] == ["first", "rest.0", "rest.1", "rest.2", "pair.0"]
    names = [name for name, _ in tree.named_modules()]
    assert names == ["", "first", "rest.0", "rest.1", "rest.2", "rest.2.layers.0", "rest.2.layers.1", "pair.0"]
    assert dict(tree.named_modules())["rest.2.layers.1"] is tree.rest[2].layers[1]
    assert [id(p) for p in tree.parameters()] == [id(p) for _, p in tree.named_parameters()]


def test_a_module_appended_to_a_list_belongs_to_the_network():
    tree = Tree()
    tree.rest.append(nn.Linear(2, 5))
    assert [n for n, _ in tree.named_parameters() if n.startswith("rest.3")] == ["rest.3.weight", "rest.3.bias"]


def test_a_shared_parameter_is_listed_once():
    tree = Tree()
    tree.rest[0].w = tree.first.w  # two modules, one weight
    tree.again = tree.rest[1]  # one module under two names
    names = [name for name, _ in tree.named_parameters()]
    assert names == [n for n in TREE if n != "rest.0.w"]
    assert len(tree.parameters()) == len({id(p) for p in tree.parameters()})
    assert tree.state_dict().keys() >= set(names)


def test_a_shared_parameter_gets_the_sum_of_its_gradients():
    layer = nn.Linear(3, 3)
    twice = Sequential(layer, layer)
    x = np.arange(6.0, dtype="float32").reshape(2, 3)
    g = np.array([[1, -2, 3], [0.5, 1, -1]], "float32")
    twice(Tensor(x)).backward(g)
    w = layer.weight.data
    assert np.allclose(layer.weight.grad, g.T @ (x @ w.T) + (g @ w).T @ x, rtol=1e-5)


def test_vision_transformer_names():
    """Checkpoints depend on them."""
    names = [name for name, _ in small(pool="cls", registers=1, layer_scale=0.1, bits=1.58).named_parameters()]
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"]
    block += ["attn.proj.norm.weight", "ls1.gamma", "norm2.weight", "norm2.bias"]
    block += ["mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "mlp.fc2.norm.weight", "ls2.gamma"]
    expected = ["embed.patch.proj.weight", "embed.patch.proj.bias"]
    expected += ["embed.cls_token", "embed.reg_token", "embed.pos_embed"]
    expected += [f"blocks.{i}.{name}" for i in range(2) for name in block]
    expected += ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert sorted(names) == sorted(expected)


def test_repr_shows_the_tree():
    assert repr(Sequential(nn.Linear(2, 3), nn.Dropout(0.1))) == (
        "Sequential(\n  (layers.0): Linear(2, 3, bias=True)\n  (layers.1): Dropout(0.1)\n)"
    )
    assert repr(nn.Linear(2, 3, bias=False)) == "Linear(2, 3, bias=False)"
    text = repr(small(bits=1))
    assert "\n  (blocks.1): Block(" in text and "\n      (qkv): BitLinear(8, 24, bias=True, bits=1," in text


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        Module()(1)


# --- state ------------------------------------------------------------------------------------------------------------


def test_state_dict_has_parameters_and_buffers():
    tree = Tree()
    state = tree.state_dict()
    buffers = [f"{name}.steps" for name in ("first", "rest.0", "rest.2.layers.0", "rest.2.layers.1", "pair.0")]
    assert sorted(state) == sorted(TREE + buffers)
    assert state["first.w"] is tree.first.w.data and state["first.steps"] is tree.first.steps
    assert [name for name, _ in tree.named_buffers()] == buffers


def test_buffers_are_arrays_and_never_learnt():
    leaf = Leaf()
    assert isinstance(leaf.steps, np.ndarray) and leaf.steps.dtype == "int64"
    assert [name for name, _ in leaf.named_parameters()] == ["w"]
    leaf.register_buffer("steps", np.ones(3, "int64"))  # again: replaced, not doubled
    assert [(name, a.sum()) for name, a in leaf.named_buffers()] == [("steps", 3)]
    leaf.register_buffer("empty", None)
    assert "empty" not in leaf.state_dict()


def test_state_round_trip(rng):
    source, target = Tree(), Tree()
    for p in source.parameters():
        p.data[...] = rng.standard_normal(p.shape)
    source.first.steps[...] = 7
    arrays = {name: id(a) for name, a in target.state_dict().items()}
    target.load_state_dict(source.state_dict())
    for name, a in target.state_dict().items():
        assert (a == source.state_dict()[name]).all()
        assert id(a) == arrays[name] and not np.shares_memory(a, source.state_dict()[name])


def test_loading_the_state_of_a_trained_model_gives_its_outputs(rng):
    x = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    source, target = small(bits=1.58, rng=np.random.default_rng(1)), small(bits=1.58, rng=np.random.default_rng(2))
    assert (source(x).data != target(x).data).any()
    target.load_state_dict(source.state_dict())
    assert (source(x).data == target(x).data).all()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: s.pop("pair.0.w"), "pair.0.w is missing"),
        (lambda s: s.pop("first.steps"), "first.steps is missing"),
        (lambda s: s.update(extra=np.ones(1)), "extra is unknown here"),
        (lambda s: s.update({"scale": np.ones(3, "float32")}), r"scale is \(3,\) float32, needed \(2,\) float32"),
        (lambda s: s.update({"scale": np.ones(2)}), r"scale is \(2,\) float64, needed \(2,\) float32"),
        (lambda s: s.update({"first.steps": np.ones(3, "int32")}), "first.steps is .* int32, needed .* int64"),
        # it would broadcast
        (lambda s: s.update({"rest.1.weight": np.ones((1, 2), "float32")}), "rest.1.weight is"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, says):
    tree = Tree()
    before = {name: a.copy() for name, a in tree.state_dict().items()}
    state = {name: a + 1 for name, a in before.items()}
    change(state)
    with pytest.raises(ValueError, match=says) as error:
        tree.load_state_dict(state)
    assert "does not fit this Tree" in str(error.value) and "\n" not in str(error.value)
    assert all((a == before[name]).all() for name, a in tree.state_dict().items())


def test_every_mismatch_is_reported_at_once():
    tree = Tree()
    state = dict(tree.state_dict())
    del state["scale"], state["first.w"]
    state["other"] = np.ones(1)
    with pytest.raises(ValueError, match=r"first.w is missing; other is unknown here; scale is missing$"):
        tree.load_state_dict(state)
    with pytest.raises(ValueError, match=r"; and 8 more$"):
        tree.load_state_dict({})


def test_zero_grad_forgets_all_gradients():
    layer = nn.Linear(2, 3)
    layer(np.ones((1, 2), "float32")).backward(np.ones((1, 3), "float32"))
    assert all(p.grad is not None for p in layer.parameters())
    layer.zero_grad()
    assert all(p.grad is None for p in layer.parameters())


def test_a_deep_copy_is_independent(rng):
    x = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    model = small(bits=1)
    before = model(x).data
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.data += 1
    assert (model(x).data == before).all() and (twin(x).data != before).any()
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}


def test_to_the_cpu_keeps_the_arrays():
    tree = Tree()
    before = tree.state_dict()
    assert tree.to("cpu") is tree
    assert all(a is before[name] for name, a in tree.state_dict().items())
    with pytest.raises(ValueError, match="device must be"):
        tree.to("gpu")


# --- modes ------------------------------------------------------------------------------------------------------------


def test_train_and_eval_reach_every_module():
    tree = Tree()
    assert tree.eval() is tree and not any(m.training for m in tree.modules())
    assert tree.train() is tree and all(m.training for m in tree.modules())
    assert len(list(tree.modules())) == 8


def test_dropout_acts_in_training_only(rng):
    layer = nn.Dropout(0.5)
    x = rng.standard_normal((50, 50)).astype("float32")
    y = layer(Tensor(x)).data
    dropped = y == 0
    assert 0.4 < dropped.mean() < 0.6
    assert np.allclose(y[~dropped], 2 * x[~dropped])
    assert (layer.eval()(Tensor(x)).data == x).all()


def test_dropout_gradient_has_the_mask_of_the_forward(rng):
    layer = nn.Dropout(0.25)
    x, g = rng.standard_normal((20, 20)), rng.standard_normal((20, 20))
    t = Tensor(x, requires_grad=True)
    y = layer(t)
    y.backward(g)
    assert np.allclose(t.grad, np.where(y.data == 0, 0, g / 0.75))


def test_dropout_in_a_network_is_off_in_eval(rng):
    model, x = small(dropout=0.5), rng.standard_normal((2, 8, 8, 3)).astype("float32")
    assert (model(x).data != model(x).data).any()
    model.eval()
    assert (model(x).data == model(x).data).all()


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_hooks_run_in_order_and_see_what_the_one_before_made():
    leaf, calls = Leaf(2.0), []
    x = Tensor(np.ones(2, "float32"))

    def watch(module, inputs, output):
        calls.append(("watch", module, inputs, float(output.data[0])))

    def double(module, inputs, output):
        calls.append(("double", module, inputs, float(output.data[0])))
        return output * 2

    leaf.register_forward_hook(watch)
    leaf.register_forward_hook(double)
    leaf.register_forward_hook(watch)
    assert leaf(x).data.tolist() == [4, 4]
    assert calls == [("watch", leaf, (x,), 2.0), ("double", leaf, (x,), 2.0), ("watch", leaf, (x,), 4.0)]


def test_a_replaced_output_is_what_gets_the_gradient():
    leaf = Leaf(2.0)
    leaf.register_forward_hook(lambda module, inputs, output: output * 10)
    leaf(np.array([1, 3], "float32")).backward(np.array([1, 2], "float32"))
    assert leaf.w.grad.tolist() == [10, 60]


def test_hooks_can_be_removed_one_by_one():
    leaf, calls = Leaf(), []
    first = leaf.register_forward_hook(lambda *_: calls.append(1))
    second = leaf.register_forward_hook(lambda *_: calls.append(2))
    first.remove()
    first.remove()  # a second time is no error
    leaf(np.ones(2, "float32"))
    assert calls == [2] and leaf.has_hooks
    second.remove()
    leaf(np.ones(2, "float32"))
    assert calls == [2] and not leaf.has_hooks


def test_a_hook_in_a_with_block_ends_with_it_also_after_an_error():
    leaf, calls = Leaf(), []
    with leaf.register_forward_hook(lambda *_: calls.append(1)) as handle:
        leaf(np.ones(2, "float32"))
        assert isinstance(handle, nn.HookHandle)
    with pytest.raises(KeyError), leaf.register_forward_hook(lambda *_: calls.append(1)):
        raise KeyError
    leaf(np.ones(2, "float32"))
    assert calls == [1] and not leaf.has_hooks


def test_a_hook_that_removes_itself_does_not_disturb_the_others():
    leaf, calls = Leaf(), []
    once = leaf.register_forward_hook(lambda *_: (calls.append("once"), once.remove())[0])
    leaf.register_forward_hook(lambda *_: calls.append("always"))
    leaf(np.ones(2, "float32"))
    leaf(np.ones(2, "float32"))
    assert calls == ["once", "always", "always"]


def test_modules_hold_no_reference_cycle():
    gc.disable()
    try:
        model = small()
        model(np.zeros((1, 8, 8, 3), "float32"))
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


# --- the Vision Transformer: configuration and refusals ---------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "cls", "registers": 2, "layer_scale": 0.1, "dropout": 0.1},
        {"bits": 1.58, "sub_norm": False, "granularity": "tensor", "scale": "absmedian", "ste": "clipped"},
        {"bits": 4, "activation_bits": None, "scale": "absmax", "mlp_ratio": 1.5, "class_token": True},
        {"image_size": (8, 12), "patch_size": (2, 4), "in_channels": 1, "num_classes": 0, "eps": 1e-3, "gelu": "none"},
    ],
)
def test_config_builds_the_same_model_again(options, rng):
    model = small(**options, rng=np.random.default_rng(1)).eval()
    twin = VisionTransformer(**model.config).eval()
    assert twin.config == model.config
    assert repr(twin) == repr(model)
    twin.load_state_dict(model.state_dict())
    size = model.embed.patch.image_size
    x = rng.standard_normal((2, *size, model.config["in_channels"])).astype("float32")
    assert (twin(x).data == model(x).data).all()


def test_same_seed_same_weights():
    a, b, c = (small(bits=1.58, rng=np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert all((x == y).all() for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert (a.head.weight.data != c.head.weight.data).any()


def test_initial_weights():
    model = small(pool="cls")
    assert all(p.dtype == "float32" for p in model.parameters())
    for name, p in model.named_parameters():
        if name.endswith("bias") or name == "embed.cls_token":
            assert not p.data.any(), name
        elif p.ndim == 1:
            assert (p.data == 1).all(), name
        else:
            assert p.data.std() > 0.01, name
    bound = (6 / (8 + 24)) ** 0.5
    weight = model.blocks[0].attn.qkv.weight.data
    assert 0.8 * bound < np.abs(weight).max() <= bound


@pytest.mark.parametrize(
    "shape, says",
    [
        (
            (2, 3, 8, 12),
            r"\(2, 3, 8, 12\), needed .*: channels come last here, use x.transpose\(0, 2, 3, 1\)$",
        ),
        ((2, 8, 8, 3), r"\(2, 8, 8, 3\), needed \(N, 8, 12, 3\)$"),
        ((2, 12, 8, 3), r"needed \(N, 8, 12, 3\)$"),
        ((2, 8, 12, 1), r"needed \(N, 8, 12, 3\)$"),
        ((8, 12, 3), r"needed \(N, 8, 12, 3\)$"),
        ((2, 8, 12), r"needed \(N, 8, 12, 3\)$"),
        ((2, 288), r"needed \(N, 8, 12, 3\)$"),
    ],
)
def test_images_of_another_shape_are_refused(shape, says):
    with pytest.raises(ValueError, match=says):
        small(image_size=(8, 12))(np.zeros(shape, "float32"))


def test_the_hint_for_channels_first_works():
    model, x = small(), np.zeros((2, 3, 8, 8), "float32")
    with pytest.raises(ValueError, match="channels come last"):
        model(x)
    assert model(x.transpose(0, 2, 3, 1)).shape == (2, 3)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"patch_size": 3}, "patches of 3 x 3 pixels do not tile an image of 8 x 8"),
        ({"image_size": (8, 9)}, "do not tile an image of 8 x 9"),
        ({"patch_size": 16}, "do not tile"),
        ({"heads": 3}, "heads must divide dim: 8 is not a multiple of 3"),
        ({"heads": 0}, "heads must divide dim"),
        ({"pool": "max"}, "pool must be 'mean' or 'cls'"),
        ({"bits": 7}, "bits must be one of"),
        ({"bits": 1, "activation_bits": 2}, "activation_bits must be"),
        ({"bits": 1, "ste": "nothing"}, "ste must be one of"),
        ({"bits": 4, "ste": "ede"}, "ste for 4 bits must be"),
        ({"bits": 1.58, "granularity": "column"}, "granularity must be"),
        ({"bits": 1, "scale": "absmax"}, "scale must be"),
    ],
)
def test_impossible_networks_are_refused_at_construction(options, says):
    with pytest.raises(ValueError, match=says) as error:
        small(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [{"dim": 0}, {"depth": -1}, {"mlp_ratio": 0.01}, {"in_channels": 0}])
def test_impossible_sizes_are_named(size):
    with pytest.raises(ValueError, match=f"{next(iter(size))} is too small"):
        VisionTransformer(**{"image_size": 8, "patch_size": 2, "dim": 16, "heads": 2, **size})


# --- Parameters in a list ---------------------------------------------------------------------------------------------


class Lists(Module):
    def __init__(self):
        super().__init__()
        self.scales = [Parameter(np.full(2, i, "float32")) for i in range(2)]
        self.pair = (Parameter(np.ones(1, "float32")), nn.Linear(2, 1, bias=False))
        self.again = self.scales[0]

    def forward(self, x):
        return self.pair[1](x * self.scales[0] + self.scales[1]) + self.pair[0]


def test_parameters_in_lists_are_found():
    module = Lists()
    names = ["scales.0", "scales.1", "pair.0", "pair.1.weight"]
    assert [n for n, _ in module.named_parameters()] == list(module.state_dict()) == names
    module(Tensor(np.ones((3, 2), "float32"))).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    other = copy.deepcopy(module)
    other.load_state_dict({n: a + 1 for n, a in module.state_dict().items()})
    assert other.scales[1].data.tolist() == [2.0, 2.0] and module.scales[1].data.tolist() == [1.0, 1.0]


# --- what is refused leaves no trace ----------------------------------------------------------------------------------


def test_a_state_for_a_read_only_parameter_changes_nothing():
    layer = nn.Linear(2, 2)
    layer.bias = Parameter(np.frombuffer(np.zeros(2, "float32").tobytes(), "float32"))
    before = layer.weight.data.copy()
    with pytest.raises(ValueError, match="bias is read-only here: give the module a copy of it"):
        layer.load_state_dict({n: a + 1 for n, a in layer.state_dict().items()})
    assert np.array_equal(layer.weight.data, before)


def test_a_buffer_that_is_refused_is_not_noted():
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="weight is a Parameter"):
        layer.register_buffer("weight", np.ones(2))
    assert dict(layer.named_buffers()) == {}
