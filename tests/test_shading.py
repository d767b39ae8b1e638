"Numerical checks of shading.py that are too dull for the notebook"
import math
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dreamfusion_nb.shading import (Light, albedo_shade, analytic_normals, diffuse_shade, downhill, finite_difference_normals, lambert,
                                    light_of, sample_light, sample_mode, textureless_shade)
from dreamfusion_nb.utils import UserError, seeded
from scipy.stats import kstest

def hill(x): return (-2*x.pow(2).sum(-1)).exp()

@pytest.mark.parametrize('shape', [(3,), (5, 3), (2, 4, 3), (0, 3)])
def test_normals_keep_leading_dims(shape):
    x = torch.rand(shape, generator=seeded(0)) + .1
    for normals in (analytic_normals, finite_difference_normals):
        n = normals(hill, x)
        assert n.shape == x.shape and n.dtype == x.dtype
        assert (F.normalize(x, dim=-1) - n).norm(dim=-1).lt(.02).all()

def test_normals_do_not_depend_on_the_scale_of_the_density():
    x = torch.rand(20, 3, generator=seeded(1)) + .1
    for normals in (analytic_normals, finite_difference_normals):
        assert torch.allclose(normals(hill, x), normals(lambda x: 500*hill(x), x), atol=1e-3)

def test_flat_density_gives_no_normal_and_no_nan():
    grid = torch.zeros(1, 1, 4, 4, 4, requires_grad=True)
    def flat(x): return F.grid_sample(grid, x.reshape(1, 1, 1, -1, 3), align_corners=True).reshape(x.shape[:-1])
    n = finite_difference_normals(flat, torch.zeros(6, 3))
    n.sum().backward()
    assert (n == 0).all() and grid.grad.isfinite().all()
    assert downhill(torch.zeros(3)).isfinite().all()

def test_analytic_normals_under_no_grad_hold_no_graph():
    scale = torch.ones(3, requires_grad=True)
    x = torch.rand(4, 3)
    with torch.no_grad(): n = analytic_normals(lambda x: hill(scale*x), x)
    assert not n.requires_grad and not x.requires_grad
    assert analytic_normals(lambda x: hill(scale*x), x).requires_grad

def test_one_call_of_the_density_for_four_probes():
    calls = []
    def density(x): calls.append(x.shape); return hill(x)
    finite_difference_normals(density, torch.rand(7, 3))
    assert calls == [(4, 7, 3)]

def test_lambert_is_between_ambient_and_full():
    g = seeded(2)
    n, x, at = (torch.randn(200, 3, generator=g) for _ in range(3))
    factor = lambert(F.normalize(n, dim=-1), x, Light(at, .9, .1))
    assert factor.min() >= .1 and factor.max() <= 1 + 1e-6
    assert (factor == .1).any()                                              # some points face away

def test_light_of_picks_the_view_and_takes_plain_numbers():
    light = Light(torch.arange(6.).view(2, 3), torch.tensor([1., 2]), .5)
    here = light_of(light, torch.tensor([0, 3, 4, 7]), 4)
    assert here.position.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert here.diffuse.tolist() == [1, 1, 2, 2] and here.ambient.tolist() == [.5]*4

def test_shaders():
    g = seeded(3)
    albedo, x, ray = torch.rand(8, 3, generator=g), torch.randn(8, 3, generator=g), torch.arange(8)
    normal = F.normalize(torch.randn(8, 3, generator=g), dim=-1)
    light = Light(torch.randn(2, 3, generator=g), torch.tensor([.9, .4]), torch.tensor([.1, .6]))
    assert torch.equal(albedo_shade(albedo, normal, x, ray), albedo)
    lit, white = (shade(light, 4)(albedo, normal, x, ray) for shade in (diffuse_shade, textureless_shade))
    assert torch.allclose(lit, albedo*white) and torch.allclose(white[:, 0], white[:, 2])
    assert torch.allclose(white[:4, 0], lambert(normal[:4], x[:4], Light(light.position[0], .9, .1)))
    assert torch.allclose(white[4:, 0], lambert(normal[4:], x[4:], Light(light.position[1], .4, .6)))

def test_sample_light_is_reproducible_and_in_range():
    camera = torch.randn(500, 3, generator=seeded(4))
    a, b = (sample_light(camera, (2., 3.), generator=seeded(5)) for _ in range(2))
    assert torch.equal(a, b) and a.norm(dim=-1).min() >= 2 and a.norm(dim=-1).max() <= 3 + 1e-5
    still = sample_light(camera, (2., 3.), spread=0., generator=seeded(5))
    assert torch.allclose(F.normalize(still, dim=-1), F.normalize(camera, dim=-1), atol=1e-6)

def test_sample_light_draws_in_a_fixed_order():
    camera = torch.ones(2, 3)
    g = seeded(6)
    toward, u = F.normalize(camera + torch.randn(2, 3, generator=g), dim=-1), torch.rand(2, 1, generator=g)
    assert torch.allclose(sample_light(camera, generator=seeded(6)), toward*(.8 + .7*u))

def test_sample_mode_uses_the_same_random_numbers_at_every_step():
    a, b = seeded(7), seeded(7)
    for step in range(50): sample_mode(step, generator=a), sample_mode(5000, generator=b)
    assert torch.equal(a.get_state(), b.get_state())

def test_sample_mode_corners():
    assert {sample_mode(10**6, shaded=0.) for _ in range(50)} == {'albedo'}
    assert {sample_mode(0, albedo_steps=0, shaded=1., textureless=1.) for _ in range(50)} == {'textureless'}
    assert {sample_mode(0, albedo_steps=0, shaded=1., textureless=0.) for _ in range(50)} == {'shaded'}

def test_gradients_through_normals_and_light():
    scale = torch.tensor([1., 2., .5], dtype=torch.float64, requires_grad=True)
    x = torch.rand(6, 3, generator=seeded(8), dtype=torch.float64) + .2
    light = Light(torch.tensor([2., 2, 2], dtype=torch.float64), .9, .1)
    for normals in (analytic_normals, finite_difference_normals):
        assert torch.autograd.gradcheck(lambda s: lambert(normals(lambda x: hill(s*x), x), x, light), (scale,))

def torus(x): return 100*torch.sigmoid(-(torch.stack([x[..., [0, 2]].norm(dim=-1) - .7, x[..., 1]], -1).norm(dim=-1) - .2)/.05)
def plane(x): return 100*torch.sigmoid(-(x@x.new_tensor([1/3, 2/3, -2/3]) - .3)/.05)

@pytest.mark.parametrize('surface', ['sphere', 'torus', 'plane'])
def test_normals_of_known_surfaces_and_the_order_of_their_error(surface):
    u, a = F.normalize(torch.randn(300, 3, generator=seeded(9)).double(), dim=-1), 2*math.pi*torch.rand(2, 300, generator=seeded(10)).double()
    tube = torch.stack([a[0].cos()*a[1].cos(), a[1].sin(), a[0].sin()*a[1].cos()], -1)
    n = torch.tensor([1/3, 2/3, -2/3]).double().expand(300, 3)
    density, x, normal = {'sphere': (hill, .5*u, u), 'torus': (torus, .7*torch.stack([a[0].cos(), 0*a[0], a[0].sin()], -1) + .21*tube, tube),
                          'plane': (plane, torch.linalg.cross(u, n) + .31*n, n)}[surface]
    normal = F.normalize(normal, dim=-1)
    assert (analytic_normals(density, x) - normal).norm(dim=-1).max() < 1e-6
    error = [(finite_difference_normals(density, x, e) - normal).norm(dim=-1).mean().item() for e in (4e-3, 4e-4)]
    assert error[0] < .1 and .95 < math.log10(error[0]/error[1]) < 1.05

def test_lambert_against_numpy():
    g = seeded(11)
    n, x, at = (torch.randn(100, 3, generator=g).double() for _ in range(3))
    n, toward = F.normalize(n, dim=-1), (at - x).numpy()
    want = .2 + .7*np.maximum(0, (n.numpy()*toward).sum(-1)/np.sqrt((toward**2).sum(-1)))
    assert np.abs(lambert(n, x, Light(at, .7, .2)).numpy() - want).max() < 1e-12

def test_the_lamp_has_its_stated_distribution():
    "The norm is uniform; the direction of N(camera, I) along the line of sight and across it"
    lamp = sample_light(torch.tensor([[0., 0, 1.25]]).expand(4000, 3), generator=seeded(12))
    assert kstest(lamp.norm(dim=-1).numpy(), 'uniform', (.8, .7)).pvalue > .01
    around = torch.atan2(lamp[:, 1], lamp[:, 0])/(2*math.pi) + .5          # any azimuth about the line of sight is as likely as any other
    assert kstest(around.numpy(), 'uniform').pvalue > .01
    slope = (lamp[:, :2].norm(dim=-1)/lamp[:, 2])[lamp[:, 2] > 0]            # of the cone: compared with NumPy's own normal numbers
    own = np.random.default_rng(0).normal([0, 0, 1.25], 1, (4000, 3))
    assert kstest(slope.numpy(), (np.hypot(own[:, 0], own[:, 1])/own[:, 2])[own[:, 2] > 0]).pvalue > .01

X = torch.rand(5, 3)
@pytest.mark.parametrize('bad', [
    lambda: downhill(torch.ones(5)), lambda: analytic_normals(hill, X[:, :2]), lambda: analytic_normals(lambda x: hill(x)[:, None], X), lambda: finite_difference_normals(hill, X[:, :2]),
    lambda: finite_difference_normals(lambda x: hill(x)[..., None], X), lambda: finite_difference_normals(hill, X, 0.), lambda: lambert(X[:, 0], X, Light(X, .9, .1)),
    lambda: lambert(X, X, Light(X[:, :2], .9, .1)), lambda: sample_light(X[0]), lambda: sample_light(X[:0]), lambda: sample_light(X, (0., 1.)), lambda: sample_light(X, (2., 1.)),
    lambda: sample_light(X, spread=-1.), lambda: sample_mode(-1), lambda: sample_mode(5, shaded=1.2), lambda: sample_mode(5, textureless=-.1),
    lambda: light_of(Light(X, .9, .1), torch.arange(5), 0), lambda: light_of(Light(X[0], .9, .1), torch.arange(5), 1), lambda: diffuse_shade(Light(X[0], .9, .1))(X, None, X, torch.arange(5))])
def test_bad_input_is_one_sentence(bad):
    with pytest.raises(UserError, match=r'^[^\n]+\.$'): bad()
