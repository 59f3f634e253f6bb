"""The optimizer: AdamW's own numbers, the schedule, clipping, and what a bad gradient leaves."""

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_helpers import make_config

from trainer.config import OptimSettings
from trainer.optim import Optimizer


def make_settings(**values) -> OptimSettings:
    defaults = {
        "lr": 0.1, "warmup_steps": 0, "half_life": 0, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8,
        "weight_decay": 0.0, "grad_clip": 1e9, "max_skips": 3,
    }  # fmt: skip
    return OptimSettings(**{**defaults, **values})


class Tiny(torch.nn.Module):
    """Two parameters that train and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.bias = torch.nn.Parameter(torch.tensor([0.5]))
        self.frozen = torch.nn.Parameter(torch.tensor([9.0]), requires_grad=False)


def set_gradients(model: Tiny, weight, bias=0.0) -> None:
    model.weight.grad = torch.tensor(weight)
    model.bias.grad = torch.tensor([bias])


def state_of(model: Tiny, optimizer: Optimizer) -> tuple:
    """All that a skipped step must leave alone, copied."""
    moments = optimizer.adamw.state_dict()["state"]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return copy.deepcopy((weights, moments)), optimizer.updates, optimizer.lr


def assert_same(found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    assert found[1:] == expected[1:]


GRADIENTS = [([0.3, -0.2, 0.0], 1.0), ([-0.1, 0.4, 2.0], -3.0), ([0.5, 0.5, 0.5], 0.25)]


def test_moments_and_steps_are_those_of_adamw():
    """Against the formulas of arXiv 1711.05101 in float64."""
    model, lr, b1, b2, decay = Tiny(), 0.1, 0.9, 0.99, 0.2
    optimizer = Optimizer(model, make_settings(lr=lr, weight_decay=decay))
    w, m, v = (
        torch.tensor(x, dtype=torch.float64) for x in ([1.0, -2.0, 3.0], [0.0] * 3, [0.0] * 3)
    )
    for t, (gradient, bias) in enumerate(GRADIENTS, start=1):
        set_gradients(model, gradient, bias)
        optimizer.step()
        g = torch.tensor(gradient, dtype=torch.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        update = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
        w = w * (1 - lr * decay) - lr * update
        state = optimizer.adamw.state[model.weight]
        torch.testing.assert_close(state["exp_avg"].double(), m, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(state["exp_avg_sq"].double(), v, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(model.weight.double().detach(), w, rtol=1e-6, atol=1e-7)
    assert (optimizer.updates, optimizer.skipped) == (3, 0)
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


def test_settings_reach_adamw():
    settings = make_config("scale=paper").optim
    (group,) = Optimizer(Tiny(), settings).adamw.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.0)


def test_frozen_parameters_are_left_out():
    model = Tiny()
    optimizer = Optimizer(model, make_settings(weight_decay=0.5))
    assert optimizer.names == ["weight", "bias"]
    set_gradients(model, [1.0, 1.0, 1.0])
    optimizer.step()
    assert model.frozen.item() == 9.0


def test_gradients_are_freed():
    model = Tiny()
    optimizer = Optimizer(model, make_settings())
    for gradient in ([1.0, 1.0, 1.0], [math.nan, 1.0, 1.0]):
        set_gradients(model, gradient)
        optimizer.step()
        assert model.weight.grad is None and model.bias.grad is None


def test_learning_rate_warms_up_linearly_and_stays():
    model = Tiny()
    optimizer = Optimizer(model, make_settings(lr=0.4, warmup_steps=4))
    used = []
    for _ in range(6):
        expected = optimizer.lr
        set_gradients(model, [1.0, 1.0, 1.0])
        optimizer.step()
        used.append(optimizer.adamw.param_groups[0]["lr"])
        assert used[-1] == expected, "lr is that of the next step"
    assert used == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert Optimizer(Tiny(), make_settings(lr=0.4)).lr == 0.4


def test_learning_rate_halves_in_each_half_life_and_a_skip_does_not_count():
    model = Tiny()
    optimizer = Optimizer(model, make_settings(lr=0.4, warmup_steps=2, half_life=2))
    used = []
    for weight in ([1.0, 1.0, 1.0], [1.0, math.nan, 1.0], *[[1.0, 1.0, 1.0]] * 4):
        set_gradients(model, weight)
        optimizer.step()
        used.append(optimizer.adamw.param_groups[0]["lr"])
    root = math.sqrt(0.5)
    assert used == pytest.approx([0.2, 0.4 * root, 0.4 * root, 0.2, 0.2 * root, 0.1])


def test_first_steps_move_by_the_warmed_up_rate():
    """A constant gradient makes each of Adam's steps as large as the learning rate."""
    model = Tiny()
    optimizer = Optimizer(model, make_settings(lr=0.4, warmup_steps=4))
    moved = []
    for _ in range(3):
        before = model.weight[0].item()
        set_gradients(model, [2.0, 2.0, 2.0])
        optimizer.step()
        moved.append(before - model.weight[0].item())
    assert moved == pytest.approx([0.1, 0.2, 0.3], rel=1e-4)


def test_gradient_is_clipped_to_its_global_norm():
    model = Tiny()
    optimizer = Optimizer(model, make_settings(grad_clip=2.6))
    set_gradients(model, [3.0, 4.0, 0.0], 12.0)  # norm 13, so a fifth is left
    optimizer.step()
    assert optimizer.last_norm == pytest.approx(13), "the norm reported is that before clipping"
    kept = [optimizer.adamw.state[p]["exp_avg"] / 0.1 for p in (model.weight, model.bias)]
    torch.testing.assert_close(kept[0], torch.tensor([0.6, 0.8, 0.0]))
    torch.testing.assert_close(kept[1], torch.tensor([2.4]))


def test_small_gradient_is_not_clipped():
    model = Tiny()
    optimizer = Optimizer(model, make_settings(grad_clip=2.6))
    set_gradients(model, [0.3, 0.4, 0.0])
    optimizer.step()
    moment = optimizer.adamw.state[model.weight]["exp_avg"] / 0.1
    torch.testing.assert_close(moment, torch.tensor([0.3, 0.4, 0.0]))
    assert optimizer.last_norm == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30], ids=str)
def test_a_gradient_that_is_not_finite_skips_the_step(bad):
    """T10. 1e30 is finite, but its square is not: the norm decides."""
    model = Tiny()
    optimizer = Optimizer(model, make_settings(lr=0.4, warmup_steps=10, weight_decay=0.1))
    set_gradients(model, *GRADIENTS[0])
    optimizer.step()
    before = state_of(model, optimizer)
    set_gradients(model, [0.1, bad, 0.1], 0.5)
    optimizer.step()
    assert_same(state_of(model, optimizer), before)
    assert (optimizer.skipped, optimizer.skips_in_row) == (1, 1)
    assert not math.isfinite(optimizer.last_norm)


def test_a_skip_leaves_no_trace_in_what_follows():
    def run(gradients) -> tuple:
        model = Tiny()
        optimizer = Optimizer(model, make_settings(lr=0.4, warmup_steps=4))
        for gradient, bias in gradients:
            set_gradients(model, gradient, bias)
            optimizer.step()
        return state_of(model, optimizer)

    bad = ([math.nan, 0.0, 0.0], 0.0)
    straight = run(GRADIENTS)
    assert_same(run([bad, GRADIENTS[0], bad, bad, *GRADIENTS[1:]]), straight)
    with pytest.raises(AssertionError):  # the comparison sees what one more step does
        assert_same(run([*GRADIENTS, GRADIENTS[0]]), straight)


def test_so_many_skips_in_a_row_stop_the_run():
    model = Tiny()
    optimizer = Optimizer(model, make_settings(max_skips=3))

    def step(value: float) -> None:
        set_gradients(model, [value, 0.0, 0.0])
        optimizer.step()
        optimizer.check("5/0")

    for value in (math.nan, math.nan, 1.0, math.inf, math.inf):  # a good one starts over
        step(value)
    assert (optimizer.updates, optimizer.skipped, optimizer.skips_in_row) == (1, 4, 2)
    before = state_of(model, optimizer)
    with pytest.raises(FloatingPointError, match=r"3 optimizer steps in a row.*nan.*max_skips"):
        step(math.nan)
    assert_same(state_of(model, optimizer), before)


class NoRead(TorchDispatchMode):
    """Refuses what would make the host wait for a device: reading a tensor's value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a tensor was read"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_a_step_reads_no_tensor(value):
    model = Tiny()
    optimizer = Optimizer(model, make_settings(warmup_steps=2, max_skips=1))
    set_gradients(model, [value, 0.0, 0.0])
    with NoRead():
        optimizer.step()
        with pytest.raises(AssertionError, match="a tensor was read"):
            optimizer.check("5/0")


def test_a_step_without_gradients_moves_nothing():
    """algorithm.drop_truncated can leave an optimizer step without a sequence."""
    model = Tiny()
    optimizer = Optimizer(model, make_settings(weight_decay=0.5))
    optimizer.step()
    assert model.weight.tolist() == [1.0, -2.0, 3.0] and optimizer.last_norm == 0.0
