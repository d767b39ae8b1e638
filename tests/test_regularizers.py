"Numerical checks of regularizers.py that are too dull for the notebook"
import math
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from dreamfusion_nb.regularizers import anneal, distortion_loss, entropy_loss, opacity_loss, orientation_loss, smoothness_loss
from dreamfusion_nb.utils import UserError, seeded

def double(*shape, seed=0): return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)

def test_all_are_scalars_for_any_leading_dims():
    for lead in [(), (4,), (2, 3, 3)]:
        w, t, n, d = double(*lead, 5), double(*lead, 5).sort(-1)[0], double(*lead, 5, 3), F.normalize(double(*lead, 3), dim=-1)
        for loss in (orientation_loss(w, n, d), opacity_loss(w.sum(-1)/5), entropy_loss(w.sum(-1)/5), distortion_loss(w, t, w)):
            assert loss.shape == () and loss.isfinite()

def test_gradients_against_finite_differences():
    w, t, n, d = double(3, 5), double(3, 5, seed=1).cumsum(-1), double(3, 5, 3, seed=2) - .5, F.normalize(double(3, 3, seed=3), dim=-1)
    assert gradcheck(lambda n: orientation_loss(w, n, d), (n.requires_grad_(),))
    assert gradcheck(opacity_loss, (double(9).requires_grad_(),))
    assert gradcheck(entropy_loss, ((.1 + .8*double(9)).requires_grad_(),))
    delta = double(3, 5, seed=4)
    assert gradcheck(lambda w, t: distortion_loss(w, t, delta), (w.requires_grad_(), t.requires_grad_()))

def test_orientation_stops_at_the_weights():
    w, n, d = double(2, 4).requires_grad_(), double(2, 4, 3).requires_grad_(), F.normalize(double(2, 3), dim=-1)
    orientation_loss(w, n, d).backward()
    assert w.grad is None and n.grad.norm() > 0

def test_orientation_signs():
    w, n = torch.ones(1, 1), torch.tensor([[[0., 0, 1]]])
    assert orientation_loss(w, n, torch.tensor([[0., 0, -1]])) == 0     # faces the eye
    assert orientation_loss(w, n, torch.tensor([[0., 0, 1]])) == 1      # faces away
    assert orientation_loss(w, 0*n, torch.tensor([[0., 0, 1]])) == 0    # not known

def test_entropy_is_finite_at_the_ends_and_symmetric():
    o = torch.tensor([0., 1.], requires_grad=True)
    entropy_loss(o).backward()
    assert o.grad.isfinite().all() and entropy_loss(o) < 3e-4
    v = double(50)
    assert torch.isclose(entropy_loss(v), entropy_loss(1 - v))

def test_distortion_matches_the_sum_over_pairs():
    for n in (1, 2, 33):
        w, t, d = double(7, n), double(7, n, seed=1).sort(-1)[0], double(7, n, seed=2)
        slow = (w[:, :, None]*w[:, None]*(t[:, :, None] - t[:, None]).abs()).sum((1, 2)) + (w**2*d).sum(-1)/3
        assert torch.isclose(distortion_loss(w, t, d), slow.mean())

def test_distortion_of_rays_that_miss_is_zero():
    w, t = torch.zeros(3, 8, requires_grad=True), torch.zeros(3, 8)
    loss = distortion_loss(w, t, t)
    loss.backward()
    assert loss == 0 and (w.grad == 0).all()

def test_anneal():
    for kind in ('linear', 'log', 'cosine'):
        values = [anneal(step, .1, 10., 100, kind) for step in range(-5, 120, 5)]
        assert values == sorted(values) and all(isinstance(v, float) for v in values)
        assert math.isclose(values[0], .1) and math.isclose(values[-1], 10)
        assert math.isclose(anneal(30, 2., 2., 100, kind), 2.)
    assert anneal(5, 1., 0., 10) == .5                                  # down as well as up

@pytest.mark.parametrize('arguments', [(1, 0., 1., 5, 'log'), (1, 1., 2., 5, 'quadratic')])
def test_anneal_refuses(arguments):
    with pytest.raises(ValueError): anneal(*arguments)

def test_losses_agree_with_the_published_formulas():
    "Ref-NeRF's orientation loss (min, direction to the eye), threestudio's sparsity, MultiNeRF's distortion from edges; NumPy, float64 against our float32"
    rng = np.random.default_rng(0)
    w, n, d = rng.dirichlet(np.ones(9), 32)[:, :8], rng.normal(size=(32, 8, 3)), rng.normal(size=(32, 3))
    n, d = n/np.linalg.norm(n, axis=-1, keepdims=True), d/np.linalg.norm(d, axis=-1, keepdims=True)
    edges = np.sort(rng.uniform(size=(32, 9)), -1)
    middle, o = (edges[:, 1:] + edges[:, :-1])/2, w.sum(-1)
    pairs = np.einsum('ri,rj,rij->r', w, w, np.abs(middle[:, :, None] - middle[:, None]))
    reference = [(w*np.minimum(0, np.einsum('rik,rk->ri', n, -d))**2).sum(-1).mean(), np.sqrt(o**2 + .01).mean(), (pairs + (w**2*np.diff(edges)).sum(-1)/3).mean()]
    f = lambda a: torch.tensor(a, dtype=torch.float32)
    ours = [orientation_loss(f(w), f(n), f(d)), opacity_loss(f(o)), distortion_loss(f(w), f(middle), f(np.diff(edges)))]
    assert all(math.isclose(a.item(), b, rel_tol=1e-5) for a, b in zip(ours, reference))

def test_smoothness():
    flat = lambda x: torch.tensor([0., 0, 1]).expand_as(x)
    x, w = torch.rand(4, 5, 3, generator=seeded(3)) + .2, torch.full((4, 5), .2, requires_grad=True)
    assert smoothness_loss(flat, x, w, generator=seeded(0)) == 0
    scale = torch.ones(3, requires_grad=True)
    ball = lambda x: F.normalize(scale*x, dim=-1)
    one, two = (smoothness_loss(ball, x, w, generator=seeded(0)) for _ in range(2))
    one.backward()
    assert one == two and w.grad is None and scale.grad.norm() > 0
    assert torch.isclose(smoothness_loss(ball, 2*x, w, .04, seeded(0)), one.detach(), rtol=1e-4)      # twice the scene, twice the step

HALF, D = torch.full((2, 4), .2), torch.tensor([[1., 0, 0], [1, 0, 0]])
@pytest.mark.parametrize('bad', [
    lambda: orientation_loss(HALF, torch.zeros(2, 4), D), lambda: orientation_loss(HALF, torch.zeros(2, 4, 3), D[0]), lambda: orientation_loss(HALF, torch.zeros(2, 4, 3), 2*D),
    lambda: orientation_loss(-HALF, torch.zeros(2, 4, 3), D), lambda: orientation_loss(HALF[:0], torch.zeros(0, 4, 3), D[:0]), lambda: opacity_loss(torch.zeros(0)),
    lambda: opacity_loss(torch.tensor([1.2])), lambda: opacity_loss(torch.tensor([float('nan')])), lambda: entropy_loss(torch.zeros(0)), lambda: entropy_loss(torch.tensor([-.1])),
    lambda: distortion_loss(HALF, HALF[:, :3], HALF), lambda: distortion_loss(HALF, -HALF.cumsum(-1), HALF), lambda: distortion_loss(HALF[:0], HALF[:0], HALF[:0]),
    lambda: smoothness_loss(lambda x: x, torch.zeros(2, 3), HALF), lambda: smoothness_loss(lambda x: x, torch.zeros(2, 4, 3), HALF, 0.), lambda: anneal(float('nan'), 0., 1., 5), lambda: anneal(1, 0., math.inf, 5)])
def test_bad_input_is_one_sentence(bad):
    with pytest.raises(UserError, match=r'^[^\n]+\.$'): bad()
