"""policy_loss against autograd through the formula in float64."""

import pytest
import torch
from three_way import (
    assert_guards,
    assert_same_bits,
    assert_three_way,
    error,
    guarded,
    on_threads,
)

import kernels
from kernels.cpp_impl.policy_loss import _policy_loss
from kernels.ops.policy_loss import _op

pytestmark = pytest.mark.usefixtures("backend")  # all of them on both backends

SETTINGS = {
    "clip_low": 0.2,
    "clip_high": 0.3,
    "kl_coef": 0.1,
    "kl_grad": "k3",
    "entropy_coef": 0.01,
}


def batch(rows, sequences=3, spread=0.3, seed=0):
    """logprob, old, ref, entropy, advantage, seq_weight, seq_ids; about half the tokens clip."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size):
        return torch.randn(size, generator=generator)

    logprob = -normal(rows).abs() - 0.1
    old, ref = logprob + spread * normal(rows), logprob + spread * normal(rows)
    seq_ids = torch.randint(0, sequences, (rows,), generator=generator).int()
    weight = torch.rand(sequences, generator=generator) + 0.1
    return logprob, old, ref, normal(rows).abs(), normal(sequences), weight, seq_ids


def formula(logprob, old, ref, entropy, advantage, weight, seq_ids, **settings):
    """The definition, for autograd; `corrected`: value of k3, gradient of ratio·k3."""
    a, w = advantage[seq_ids.long()], weight[seq_ids.long()]
    ratio = (logprob - old).clamp(-20, 20).exp()
    bounded = ratio.clamp(1 - settings["clip_low"], 1 + settings["clip_high"])
    value = torch.maximum(-ratio * a, -bounded * a)
    if ref is not None:
        d = (ref - logprob).clamp(-10, 10)
        kl = d.exp() - d - 1
        if settings["kl_grad"] == "corrected":
            weighted = ratio * kl
            kl = kl.detach() + weighted - weighted.detach()
        value = value + settings["kl_coef"] * kl
    if entropy is not None:
        value = value - settings["entropy_coef"] * entropy
    return (w * value).sum()


def run(function, tensors, settings):
    """(loss, d logprob, d entropy) with an upstream gradient that is not 1."""
    logprob, old, ref, entropy, *rest = tensors
    logprob = logprob.detach().requires_grad_()
    entropy = entropy.detach().requires_grad_()
    loss = function(logprob, old, ref, entropy, *rest, **settings)
    loss = loss[0] if isinstance(loss, tuple) else loss
    (loss * 1.7).backward()
    return loss.detach(), logprob.grad, entropy.grad


def doubled(tensors):
    return [x.double() if x is not None and x.is_floating_point() else x for x in tensors]


# Rows as in the other grids. Spread 0.3: inside and outside the clip range on either side.
@pytest.mark.parametrize("rows", [1, 2, 17, 128, 129])
@pytest.mark.parametrize("kl_grad", ["k3", "corrected"])
def test_loss_and_gradient(rows, kl_grad):
    tensors, settings = batch(rows), SETTINGS | {"kl_grad": kl_grad}
    got = run(kernels.policy_loss, tensors, settings)
    plain = run(formula, tensors, settings)
    truth = run(formula, doubled(tensors), settings)
    for name, a, b, c in zip(("loss", "logprob", "entropy"), got, plain, truth, strict=True):
        assert_three_way(a, b, c, 1e-6, name)


def test_clipping_stops_the_gradient_on_the_right_side_only():
    # ratio below, inside and above the range, for either sign of the advantage
    log_ratio = torch.tensor([-0.5, 0.0, 0.5] * 2)
    advantage = torch.tensor([1.0, -1.0])
    seq_ids = torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.int32)
    logprob = log_ratio.clone().requires_grad_()
    settings = SETTINGS | {"kl_coef": 0.0, "entropy_coef": 0.0}
    loss, stats = kernels.policy_loss(
        logprob, torch.zeros(6), None, None, advantage, torch.ones(2), seq_ids, **settings
    )
    loss.backward()
    ratio = log_ratio.exp()
    want = [-ratio[0], -ratio[1], 0, 0, ratio[4], ratio[5]]
    assert error(logprob.grad, torch.tensor([float(x) for x in want])) < 1e-6
    assert stats.clip_count.item() == 2
    assert stats.ratio_max_dev.item() == pytest.approx(float(ratio[2]) - 1, rel=1e-6)


def test_first_update_has_ratio_one():
    logprob, _, _, entropy, *rest = batch(129)
    leaf = logprob.clone().requires_grad_()
    settings = SETTINGS | {"kl_coef": 0.0, "entropy_coef": 0.0}
    loss, stats = kernels.policy_loss(leaf, logprob, None, entropy, *rest, **settings)
    loss.backward()
    advantage, weight, seq_ids = rest
    assert stats.ratio_max_dev == 0 and stats.clip_count == 0 and stats.old_kl_sum == 0
    assert leaf.grad.equal((weight * -advantage)[seq_ids.long()])


def test_stats():
    logprob, old, ref, entropy, *rest = batch(129)
    _, stats = kernels.policy_loss(logprob, old, ref, entropy, *rest, **SETTINGS)
    d, r = (ref - logprob).double(), (logprob - old).double()
    assert error(stats.kl_sum, (d.exp() - d - 1).sum()) < 1e-4
    assert error(stats.old_kl_sum, (r.exp() - r - 1).sum()) < 1e-4
    assert error(stats.entropy_sum, entropy.double().sum()) < 1e-4
    assert error(stats.ratio_max_dev, (r.exp() - 1).abs().max()) < 1e-5
    assert stats.tokens == 129 and not stats.kl_sum.requires_grad


def test_corrected_gradient_is_that_of_the_kl():
    """Summed over all tokens with the old policy's weights, it is the gradient of KL(π ‖ ref)."""
    generator = torch.Generator().manual_seed(0)
    logits, old, ref = (torch.randn(7, generator=generator).double() for _ in range(3))
    logits.requires_grad_()
    old, ref = old.log_softmax(0), ref.log_softmax(0)
    log_pi = logits.log_softmax(0)
    want = torch.autograd.grad((log_pi.exp() * (log_pi - ref)).sum(), logits, retain_graph=True)[0]
    found = {}
    for kl_grad in ("k3", "corrected"):
        settings = SETTINGS | {"kl_coef": 1.0, "kl_grad": kl_grad, "entropy_coef": 0.0}
        # one sequence a token, weighing its probability under the policy that sampled it
        loss, _ = kernels.policy_loss(
            log_pi.float(),
            old.float(),
            ref.float(),
            None,
            torch.zeros(7),
            old.exp().float(),
            torch.arange(7, dtype=torch.int32),
            **settings,
        )
        found[kl_grad] = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert error(found["corrected"], want) < 1e-6
    assert error(found["k3"], want) > 0.05  # k3 as it stands is another gradient


@pytest.mark.parametrize("kl_grad", ["k3", "corrected"])
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("damaged", [*range(5), "all"])
def test_a_token_without_weight_adds_nothing_whatever_it_holds(kl_grad, bad, damaged):
    tensors = [x.clone() for x in batch(17)]
    settings = SETTINGS | {"kl_grad": kl_grad}
    seq_ids = tensors[6]
    tensors[5][1] = 0.0  # the weight of sequence 1
    dead = seq_ids == 1
    assert dead.any()
    want = run(kernels.policy_loss, tensors, settings)
    for i in range(5) if damaged == "all" else [damaged]:  # per token, and the advantage
        tensors[i][dead if i < 4 else 1] = bad
    got = run(kernels.policy_loss, tensors, settings)
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))
    assert got[1][dead].eq(0).all()


# exp(88.8) overflows float32; 20 and 10 are the clamps themselves.
@pytest.mark.parametrize("gap", [10.0, 11.0, 20.0, 21.0, 81.0, 1e4])
def test_t16_extreme_log_ratios(gap):
    logprob = torch.tensor([-gap, 0.0])
    old = torch.tensor([0.0, -gap])
    for advantage in (1.0, -1.0):
        rest = (torch.ones(2), torch.full((1,), advantage), torch.ones(1))
        tensors = (logprob, old, old, *rest, torch.zeros(2, dtype=torch.int32))
        got = run(kernels.policy_loss, tensors, SETTINGS)
        want = run(formula, doubled(tensors), SETTINGS)
        for a, b in zip(got, want, strict=True):
            assert a.isfinite().all() and a.double().allclose(b, rtol=1e-5, atol=1e-6)
        corrected = run(kernels.policy_loss, tensors, SETTINGS | {"kl_grad": "corrected"})
        without = run(formula, doubled(tensors), SETTINGS | {"kl_coef": 0.0})
        log_ratio = (logprob - old).double()
        pull = 1.7 * 0.1 * log_ratio.clamp(-20, 20).exp() * log_ratio.clamp(-10, 10)
        assert corrected[0].equal(got[0])
        assert corrected[1].double().allclose(without[1] + pull, rtol=1e-5, atol=1e-6)


def test_no_tokens():
    logprob = torch.zeros(0, requires_grad=True)
    none, per_sequence = torch.zeros(0), (torch.zeros(2), torch.ones(2))
    arguments = (logprob, none, none, none, *per_sequence, none.int())
    loss, stats = kernels.policy_loss(*arguments, **SETTINGS)
    loss.backward()
    assert loss == 0 and logprob.grad.shape == (0,)
    assert [float(x) for x in stats] == [0.0] * 6


def test_parts_add_up_to_the_whole():
    # T12: the loss is a plain weighted sum, so any split into micro-batches gives the same.
    tensors = batch(129)
    whole = run(kernels.policy_loss, tensors, SETTINGS)
    loss, grads = 0.0, []
    for part in (slice(0, 1), slice(1, 60), slice(60, 129)):
        cut = [x[part] for x in tensors[:4]]
        piece = run(kernels.policy_loss, (*cut, *tensors[4:6], tensors[6][part]), SETTINGS)
        loss, grads = loss + piece[0], [*grads, piece[1]]
    assert error(loss, whole[0]) < 1e-4
    assert torch.cat(grads).equal(whole[1])


def test_gradient_of_the_entropy_alone():
    logprob, old, _, entropy, *rest = batch(17)
    entropy.requires_grad_()
    settings = SETTINGS | {"kl_coef": 0.0}
    loss, _ = kernels.policy_loss(logprob, old, None, entropy, *rest, **settings)
    loss.backward()
    assert error(entropy.grad, -0.01 * rest[1][rest[2].long()]) < 1e-8
    entropy.grad = None
    logprob.requires_grad_()
    loss, _ = kernels.policy_loss(
        logprob, old, None, entropy, *rest, **settings | {"entropy_coef": 0.0}
    )
    loss.backward()
    assert entropy.grad is None  # the head is not asked for a gradient that is 0


# Blocks of sums hold 2,048 tokens; fewer than five of them stay on one thread.
@pytest.mark.parametrize("rows", [2047, 2049, 12_000])
def test_cpp_does_not_depend_on_threads(cpp, rows):
    tensors = batch(rows)
    with kernels.override("policy_loss=cpp"):

        def call():
            _, stats = kernels.policy_loss(*tensors, **SETTINGS)
            return *run(kernels.policy_loss, tensors, SETTINGS), *stats

        found = on_threads(call)
    assert_same_bits(found)
    truth = run(formula, doubled(tensors), SETTINGS)
    for name, a, b in zip(("loss", "logprob", "entropy"), found[0], truth, strict=False):
        assert error(a, b) <= 1e-6 * max(1.0, float(b.abs().max())), name


def test_cpp_writes_all_its_outputs_and_nothing_else(cpp):
    tensors = batch(129)
    outputs = [guarded(size) for size in (1, 129, 129, 6)]
    _policy_loss(
        *(x.data_ptr() for x in tensors),
        *(129, 0.2, 0.2, 0.1, False, 0.01),
        *(inside.data_ptr() for _, inside in outputs),
        2,
    )
    for whole, _ in outputs:
        assert_guards(whole)


def test_opcheck():
    logprob, old, ref, entropy, *rest = batch(17)
    settings = (0.2, 0.2, 0.1, "k3", 0.01)
    arguments = (logprob.requires_grad_(), old, ref, entropy.requires_grad_(), *rest, *settings)
    torch.library.opcheck(_op, arguments)
    without = (logprob, old, None, None, *rest, 0.2, 0.2, 0.0, "corrected", 0.0)
    torch.library.opcheck(_op, without)


def test_compiles_as_one_graph():
    tensors = batch(17)

    def function(*arguments, **settings):
        return kernels.policy_loss(*arguments, **settings)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, want = (run(f, tensors, SETTINGS) for f in (compiled, function))
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def test_refusals():
    logprob, old, ref, entropy, *rest = batch(17)
    with pytest.raises(ValueError, match=r"kl_coef=0.1 needs reference log-probs"):
        kernels.policy_loss(logprob, old, None, entropy, *rest, **SETTINGS)
    with pytest.raises(ValueError, match=r"entropy_coef=0.01 needs the entropy"):
        kernels.policy_loss(logprob, old, ref, None, *rest, **SETTINGS)
    with pytest.raises(ValueError, match="unknown kl_grad 'k2'"):
        kernels.policy_loss(logprob, old, ref, entropy, *rest, **SETTINGS | {"kl_grad": "k2"})
    with pytest.raises(ValueError, match=r"old has shape \[16\], expected \[17\]"):
        kernels.policy_loss(logprob, old[1:], ref, entropy, *rest, **SETTINGS)
    with pytest.raises(ValueError, match=r"logprob is torch\.bfloat16"):
        kernels.policy_loss(logprob.bfloat16(), old, ref, entropy, *rest, **SETTINGS)
    rest[2] = rest[2] + 1
    with pytest.raises(ValueError, match="seq_ids holds 3"):
        kernels.policy_loss(logprob, old, ref, entropy, *rest, **SETTINGS)
