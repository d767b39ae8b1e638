"Dull checks of score distillation: shapes, seeds, edges, bad numbers"
import pytest
import torch
from dreamfusion_nb.diffusion import GaussianMixturePrior, guided
from dreamfusion_nb.sds import annealed_range, apply_grad, hold_contrast, perp_neg, sample_steps, sds_grad
from dreamfusion_nb.utils import UserError, seeded

@pytest.fixture
def toy(): return GaussianMixturePrior(torch.tensor([[-1., 0.], [1., 0.]]), .3, names=['left', 'right'])

def draw(toy, z, guidance=2., weight=None, prompt='left', contrast=None):
    n = len(z)
    return sds_grad(toy, z, toy.encode([prompt]*n), toy.encode(['']), torch.linspace(50, 950, n).long(),
                    torch.randn(z.shape, generator=seeded(0)), guidance, weight, contrast)

def test_shape_and_no_graph(toy):
    z = torch.randn(6, 2, requires_grad=True)
    grad = draw(toy, z)
    assert grad.shape == z.shape and not grad.requires_grad

def test_a_batch_is_its_items(toy):
    z, noise, step = torch.randn(4, 2), torch.randn(4, 2), torch.tensor([50, 300, 600, 950])
    cond, uncond = toy.encode(['left', 'right', '', 'left']), toy.encode([''])
    whole = sds_grad(toy, z, cond, uncond, step, noise, 3.)
    for i in range(4):
        assert torch.allclose(whole[i:i+1], sds_grad(toy, z[i:i+1], cond[i:i+1], uncond, step[i:i+1], noise[i:i+1], 3.), atol=1e-5)

def test_weight_is_a_factor(toy):
    z = torch.randn(6, 2)
    plain = draw(toy, z, weight=lambda a, s: torch.ones_like(a))
    sigma_t = toy.sigma_t[torch.linspace(50, 950, 6).long()][:, None]
    assert torch.allclose(draw(toy, z), sigma_t**2*plain, atol=1e-5)

def test_works_on_pictures():
    prior = GaussianMixturePrior(torch.randn(2, 3, 8, 8), .3)
    z = prior.to_latent(torch.rand(2, 3, 8, 8))
    assert sds_grad(prior, z, prior.encode(['0', '1']), prior.encode(['']), torch.tensor([100, 900]), torch.randn(z.shape), 1.).shape == z.shape

@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_not_finite_stops(toy, bad):
    z = torch.randn(6, 2); z[3, 1] = bad
    with pytest.raises(FloatingPointError, match='not finite'): draw(toy, z)

def test_held_contrast_hides_no_infinity(toy, monkeypatch):
    only_the_prompt = lambda z_t, step, cond: torch.cat([torch.full_like(z_t[:6], float('inf')), torch.zeros_like(z_t[6:])])   # guided, still infinite, not NaN
    monkeypatch.setattr(toy, 'eps', only_the_prompt)
    for contrast in (None, .6):
        with pytest.raises(FloatingPointError, match='not finite'): draw(toy, torch.randn(6, 2), contrast=contrast)

def test_a_contrast_that_nothing_reaches_changes_nothing_but_the_mean(toy):
    z = torch.randn(6, 2)
    assert torch.allclose(draw(toy, z, guidance=0., contrast=1e3), draw(toy, z, guidance=0.), atol=1e-5)
    gap = draw(toy, z, guidance=5., contrast=1e3) - draw(toy, z, guidance=5.)
    assert gap.abs().max() > .01 and torch.allclose(gap[:, 0], gap[:, 1], atol=1e-4)

def test_hold_contrast():
    guess, plain = 5*torch.randn(3, 3, 8, 8) + 1, torch.randn(3, 3, 8, 8)
    guess[2] = .1*guess[2]                                             # little contrast: left alone
    held = hold_contrast(guess, plain, .6)
    mean, std = held.flatten(1).mean(1), held.flatten(1).std(1)
    assert torch.allclose(mean, plain.flatten(1).mean(1), atol=1e-5)
    assert torch.allclose(std, torch.tensor([.6, .6, guess[2].std().item()]), atol=1e-5)
    assert torch.allclose(held[1:2], hold_contrast(guess[1:2], plain[1:2], .6))
    assert torch.equal(hold_contrast(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), .6), torch.zeros(1, 3, 4, 4))   # no contrast at all

def test_apply_grad_gives_the_gradient():
    theta, grad = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    apply_grad(torch.sin(theta), grad).backward()
    assert torch.allclose(theta.grad, grad*torch.cos(theta.detach()), atol=1e-6)

def test_sample_steps():
    steps = sample_steps(5000, generator=seeded(0))
    assert steps.dtype == torch.int64 and steps.min() >= 20 and steps.max() <= 980
    assert torch.equal(steps, sample_steps(5000, generator=seeded(0)))
    assert sample_steps(5000, 0., 1.).max() <= 999 and set(sample_steps(9, .5, .5).tolist()) == {500}

def test_annealed_range():
    assert annealed_range(0.) == (.02, .98) and annealed_range(1.) == (.02, .5)
    assert annealed_range(-1) == annealed_range(0) and annealed_range(2) == annealed_range(1)
    low, high = annealed_range(.5, high=(.9, .1), low=(.3, .1))
    assert abs(low - .2) < 1e-9 and abs(high - .5) < 1e-9

# ---- bad input: one sentence that names the argument

GOOD = dict(z=torch.zeros(3, 2), step=torch.tensor([0, 500, 999]), noise=torch.zeros(3, 2))

@pytest.mark.parametrize('name, wrong', [
    ('z', torch.zeros(0, 2)), ('z', torch.tensor(1.)), ('noise', torch.zeros(3, 1)), ('noise', torch.zeros(1, 2)), ('step', torch.tensor([1, 2])), ('step', torch.tensor(5)),
    ('step', torch.tensor([0., .5, 1.])), ('step', torch.tensor([-1, 2, 3])), ('step', torch.tensor([1, 2, 1000])), ('cond', torch.ones(1, 1, 2)/2), ('cond', torch.ones(3, 2)/2),
    ('uncond', torch.ones(2, 1, 2)/2), ('uncond', torch.ones(1, 1, 3)/3)])
def test_sds_grad_says_what_is_wrong(toy, name, wrong):
    good = dict(GOOD, cond=toy.encode(['left']*3), uncond=toy.encode(['']))
    assert sds_grad(toy, **good, guidance=1.).shape == (3, 2)
    with pytest.raises(UserError, match=f'`{name}`'): sds_grad(toy, **{**good, name: wrong}, guidance=1.)

def test_the_others_say_what_is_wrong():
    with pytest.raises(UserError, match='`grad`'): apply_grad(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(UserError, match='`n`'): sample_steps(0)
    for low, high in ((.5, .4), (-.1, .5), (0., 1.1), (float('nan'), .5)):
        with pytest.raises(UserError, match='`low` and `high`'): sample_steps(3, low, high)
    with pytest.raises(UserError, match='shares'): annealed_range(.5, high=(.98, 1.5))
    with pytest.raises(UserError, match='`guess`'): hold_contrast(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 1), .5)
    for contrast in (0., -1., float('nan')):
        with pytest.raises(UserError, match='`contrast`'): hold_contrast(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), contrast)

# ---- Perp-Neg

def test_perp_neg_leaves_the_direction_of_the_prompt_alone():
    g = seeded(0)
    for shape in ((2,), (3, 8, 8)):
        eps, uncond, negative = torch.randn(5, *shape, generator=g), torch.randn(5, *shape, generator=g), torch.randn(2, 5, *shape, generator=g)
        for strength in (.5, torch.tensor([.5, 2.]), torch.rand(2, 5, generator=g)):
            change = perp_neg(eps, uncond, negative, strength, 7.) - guided(eps, uncond, 7.)
            assert ((change*(eps - uncond)).flatten(1).sum(1)).abs().max() < 1e-3*change.abs().max() and change.abs().max() > .1
        one_each = [perp_neg(eps[i:i+1], uncond[i:i+1], negative[:, i:i+1], torch.tensor([.5, 2.]), 7.) for i in range(5)]
        assert torch.allclose(perp_neg(eps, uncond, negative, torch.tensor([.5, 2.]), 7.), torch.cat(one_each), atol=1e-4)

def test_perp_neg_limits():
    g = seeded(1)
    eps, uncond = torch.randn(4, 3, 8, 8, generator=g), torch.randn(4, 3, 8, 8, generator=g)
    plain = guided(eps, uncond, 3.)
    for negative in (eps[None], uncond[None], torch.zeros(0, 4, 3, 8, 8)): assert torch.allclose(perp_neg(eps, uncond, negative, 1., 3.), plain, atol=1e-4)
    assert torch.isfinite(perp_neg(eps, eps, uncond[None], 1., 3.)).all()             # a prompt that says nothing: no direction to keep
    with pytest.raises(UserError, match='eps_negative'): perp_neg(eps, uncond, eps, 1., 3.)
