"Dull checks of the relatives of score distillation: shapes, limits, bad input"
from functools import partial
import pytest
import torch
from dreamfusion_nb.beyond import SideGuess, csd, ddim_noise, distil_grad, nfsd, own_eps, sds, sjc, vsd
from dreamfusion_nb.diffusion import GaussianMixturePrior
from dreamfusion_nb.sds import sds_grad
from dreamfusion_nb.utils import UserError, seeded

@pytest.fixture(params=['points', 'pictures'])
def given(request):
    shape = (2,) if request.param == 'points' else (3, 8, 8)
    g = seeded(0)
    prior = GaussianMixturePrior(torch.randn(3, *shape, generator=g), .3, ['a', 'b', 'bad'])
    return dict(prior=prior, z=torch.randn(6, *shape, generator=g), cond=prior.encode(['a', 'b', 'a', 'b', 'a', 'b']), uncond=prior.encode(['']),
                step=torch.tensor([20, 150, 199, 200, 600, 980]), noise=torch.randn(6, *shape, generator=g))

def close(a, b): return torch.allclose(a, b, atol=1e-4*float(b.abs().max()))

def test_shapes_and_no_graph(given):
    own, bad = own_eps(given['z']), given['prior'].encode(['bad'])
    given['z'].requires_grad_()
    for push in (sds, sjc, csd, nfsd, partial(vsd, own=own)):
        grad = distil_grad(**given, push=push, negative=bad)
        assert grad.shape == given['z'].shape and not grad.requires_grad

@pytest.mark.parametrize('guidance', [0., 6.5, 100.])
def test_sds_is_that_of_notebook_7(given, guidance):
    assert torch.equal(distil_grad(**given, push=partial(sds, guidance=guidance)), sds_grad(**given, guidance=guidance))
    w = lambda a, s: a/s
    assert torch.equal(distil_grad(**given, push=partial(sds, guidance=guidance), weight=w), sds_grad(**given, guidance=guidance, weight=w))

def test_sjc_keeps_the_noise(given):
    a_shape = (6, *[1]*(given['z'].dim() - 1))
    s = given['prior'].sigma_t[given['step']].reshape(a_shape)
    assert close(distil_grad(**given, push=sjc) - distil_grad(**given, push=sds), s**2*given['noise'])

def test_csd_is_one_unit_of_guidance(given):
    # of the whole gradient's size, from whose rounding the difference comes
    difference = sds_grad(**given, guidance=3.) - sds_grad(**given, guidance=2.)
    assert (distil_grad(**given, push=csd) - difference).abs().max() < 1e-5*sds_grad(**given, guidance=3.).abs().max()

def test_nfsd_changes_its_rule_at_step_200(given):
    bad = given['prior'].encode(['bad'])
    grad, changed = (distil_grad(**given, push=partial(nfsd, scale=s), negative=bad) for s in (1., 2.))
    assert close(changed - grad, distil_grad(**given, push=csd))
    assert close(grad[:3], distil_grad(**given, push=partial(sjc, guidance=0.))[:3])           # steps below 200: the prompted guess
    asked = distil_grad(**{**given, 'cond': bad.expand(6, -1, -1)}, push=csd)                   # eps(negative) - eps()
    assert close(grad[3:], (distil_grad(**given, push=csd) - asked)[3:])

def test_vsd_with_one_particle_is_sds(given):
    one = {**given, 'z': given['z'][:1].expand_as(given['z'])}
    assert close(distil_grad(**one, push=partial(vsd, own=own_eps(one['z'][:1]), guidance=2.)), sds_grad(**one, guidance=2.))

def test_vsd_rests_where_the_prior_is(given):
    own = own_eps(given['prior'].means, given['prior'].std)
    rest = {**given, 'cond': given['uncond'].expand(6, -1, -1)}
    assert distil_grad(**rest, push=partial(vsd, own=own)).abs().max() < 1e-5
    assert sds_grad(**rest, guidance=0.).abs().max() > .01

def test_ddim_noise_is_not_random_and_guidance_nil_is_none(given):
    args = [given[k] for k in ('prior', 'z', 'cond', 'uncond', 'step')]
    found = ddim_noise(*args, calls=5)
    assert found.shape == given['z'].shape and torch.equal(found, ddim_noise(*args, calls=5))
    assert not torch.equal(found, ddim_noise(*args, guidance=-8.5, calls=5))
    with pytest.raises(UserError, match='calls'): ddim_noise(*args, calls=0)

def test_side_guess_starts_as_the_prior_and_learns():
    prior = GaussianMixturePrior(torch.randn(2, 3, 8, 8, generator=seeded(1)), .3)
    side, errors = SideGuess(lr=1e-2), []
    def own(g):
        guess = side(g)
        errors.append((float((guess - g.noise).pow(2).mean()), float((g.eps - g.noise).pow(2).mean())))
        return guess
    x = torch.ones(4, 3, 8, 8)
    for i in range(80):
        grad = distil_grad(prior, x, prior.encode(['0']*4), prior.encode(['']), torch.full((4,), 400), torch.randn(x.shape, generator=seeded(i)), partial(vsd, own=own))
        assert not grad.requires_grad
    assert errors[0][0] == errors[0][1] and errors[-1][0] < .5*errors[-1][1]
    assert torch.equal(SideGuess(seed=3).net[0].weight, SideGuess(seed=3).net[0].weight)

def test_bad_input_has_a_sentence(given):
    with pytest.raises(UserError, match='negative prompt'): distil_grad(**given, push=nfsd)
    for name, wrong in (('z', given['z'][:0]), ('noise', given['noise'][:, :1]), ('step', torch.tensor([1000]*6)), ('step', given['step'].float()), ('cond', given['cond'][:1])):
        with pytest.raises(UserError, match=f'`{name}`'): distil_grad(**{**given, name: wrong}, push=sds)
    with pytest.raises(UserError, match='uncond'): distil_grad(**given, push=nfsd, negative=torch.zeros(1, 1, 9))
    with pytest.raises(FloatingPointError, match='not finite'): distil_grad(**given, push=lambda g: g.eps/0.)
