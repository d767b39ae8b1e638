"Score distillation's relatives: limits in which one becomes another, and what is refused"
from functools import partial
import pytest, torch
from dreamfusion_nb import beyond as B
from dreamfusion_nb.prior import GaussianMixturePrior
from dreamfusion_nb.sds import sds_grad
from dreamfusion_nb.utils import UserError, seeded

@pytest.fixture
def given():
    prior, g = GaussianMixturePrior(torch.tensor([[-1., 0.], [1., 0.], [0., 1.]]), .3, ['left', 'right', 'top']), seeded(0)
    z, noise, step = torch.randn(40, 2, generator=g), torch.randn(40, 2, generator=g), torch.randint(20, 980, (40,), generator=g)
    return dict(prior=prior, z=z, cond=prior.encode(['left']).expand(40, -1, -1), uncond=prior.encode(['']), step=step, noise=noise)

def test_sds_is_sds(given):
    for w in (0., 7., 100.): assert torch.equal(B.distil_grad(**given, push=partial(B.sds, guidance=w)), sds_grad(**given, guidance=w))

def test_sjc_differs_from_sds_by_the_noise(given):
    gap = B.distil_grad(**given, push=partial(B.sjc, guidance=3.), weight=lambda a, s: torch.ones_like(a)) - B.distil_grad(**given, push=partial(B.sds, guidance=3.), weight=lambda a, s: torch.ones_like(a))
    assert torch.allclose(gap, given['noise'], atol=1e-4)

def test_csd_is_one_more_unit_of_guidance(given):
    assert torch.allclose(B.distil_grad(**given, push=B.csd), sds_grad(**given, guidance=8.) - sds_grad(**given, guidance=7.), atol=1e-4)

def test_nfsd_asks_for_a_negative_prompt(given):
    with pytest.raises(UserError, match='negative'): B.distil_grad(**given, push=B.nfsd)
    high = given['step'] >= 200
    same = B.distil_grad(**given, push=B.nfsd, negative=given['uncond'])
    assert torch.allclose(same[high], 7.5*B.distil_grad(**given, push=B.csd)[high], atol=1e-4) and not torch.allclose(same[~high], 7.5*B.distil_grad(**given, push=B.csd)[~high], atol=1e-2)

def test_vsd_with_one_particle_is_sds(given):
    alone = {**given, 'z': given['z'][:1].expand(40, -1)}
    assert torch.allclose(B.distil_grad(**alone, push=partial(B.vsd, own=B.own_eps(given['z'][:1]))), sds_grad(**alone, guidance=6.5), atol=1e-3)
    crowd = B.distil_grad(**given, push=partial(B.vsd, own=B.own_eps(given['z'])))
    assert not torch.allclose(crowd, sds_grad(**given, guidance=6.5), atol=1e-2)

def test_the_side_guess_begins_as_the_prior_and_learns():
    side, g = B.SideGuess(), seeded(1)
    ones = torch.ones(2, 1, 1, 1)
    def guesses(): return B.Guesses(*torch.randn(2, 2, 3, 8, 8, generator=g), torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), None, torch.tensor([500, 500]), .7*ones, .7*ones)
    first = guesses()
    assert torch.equal(side(first), first.eps) and not torch.equal(side(first), first.eps)

def test_the_noise_that_is_found_leads_back(given):
    few, many = (B.ddim_noise(given['prior'], given['z'], given['cond'], given['uncond'], torch.full((40,), 600), calls=n) for n in (10, 200))
    assert torch.equal(few, B.ddim_noise(given['prior'], given['z'], given['cond'], given['uncond'], torch.full((40,), 600), calls=10)) and 0 < (few - many).norm() < .5*many.norm()

def test_what_does_not_fit_is_named(given):
    with pytest.raises(UserError, match='step'): B.distil_grad(**{**given, 'step': given['step'] + 1000}, push=B.sds)
    with pytest.raises(UserError, match='noise'): B.distil_grad(**{**given, 'noise': given['noise'][:3]}, push=B.sds)
