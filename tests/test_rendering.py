import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dreamfusion_nb.cameras import Rays, camera_rays, orbit, sphere_interval
from dreamfusion_nb.rendering import OccupancyGrid, alpha_weights, composite, render, sample_along_rays, spread, sum_per_ray, true_indices
from dreamfusion_nb.utils import UserError


def generator(seed=0): return torch.Generator().manual_seed(seed)


def fog(x, var=None):
    "Soft and coloured everywhere, so that every sample counts"
    return 3*torch.exp(-3*x.square().sum(-1)), torch.sigmoid(3*x)


def by_hand(field, rays, n, background):
    "Ray by ray and sample by sample, as slowly as one can"
    t, delta = sample_along_rays(rays, n)
    pictures = []
    for o, d, ts, ds in zip(rays.ray_o, rays.ray_d, t, delta):
        through, colour = 1., torch.zeros(3)
        for tt, dd in zip(ts, ds):
            density, albedo = field((o + tt*d)[None])
            alpha = 1 - torch.exp(-density[0]*dd)
            colour = colour + through*alpha*albedo[0]
            through = through*(1 - alpha)
        pictures.append(colour + through*background)
    return torch.stack(pictures)


def test_render_against_a_loop():
    rays = camera_rays(orbit(30., 20.), 5)
    flat = Rays(rays.ray_o.reshape(-1, 3), rays.ray_d.reshape(-1, 3))
    background = torch.tensor([.2, .5, .9])
    seen = render(fog, rays, 12, background=background)
    assert torch.allclose(seen.rgb.reshape(-1, 3), by_hand(fog, flat, 12, background), atol=1e-5)


def test_gradients_against_finite_differences():
    density, delta = torch.rand(6, 8, generator=generator(), dtype=torch.float64), torch.full((6, 8), .3, dtype=torch.float64)
    assert torch.autograd.gradcheck(alpha_weights, (density.requires_grad_(), delta))


@pytest.mark.parametrize('density', [0., 1e-12, 1., 1e6, 1e30])
def test_weights_are_finite_at_any_density(density):
    density = torch.full((4, 16), density, requires_grad=True)
    weights = alpha_weights(density, torch.full((4, 16), .1))
    weights.sum().backward()
    assert weights.isfinite().all() and density.grad.isfinite().all() and (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-5).all()


def test_splitting_an_interval_changes_nothing():
    density, delta = torch.rand(10, generator=generator())*4, torch.rand(10, generator=generator(1))
    halves = alpha_weights(density.repeat_interleave(2), (delta/2).repeat_interleave(2))
    assert torch.allclose(halves.view(10, 2).sum(-1), alpha_weights(density, delta), atol=1e-6)


def test_samples_lie_in_their_intervals():
    rays = camera_rays(orbit(torch.tensor([0., 50.])), 6)
    for g in (None, generator()):
        t, delta = sample_along_rays(rays, 7, generator=g)
        assert t.shape == delta.shape == (2, 6, 6, 7) and (delta >= 0).all()
        start = sample_along_rays(rays, 7)[0] - delta/2
        assert ((rays.ray_o[..., None, :] + t[..., None]*rays.ray_d[..., None, :]).norm(dim=-1) < 1 + 1e-4)[delta > 0].all()
        assert (t >= start - 1e-5).all() and (t <= start + delta + 1e-5).all()


def test_same_seed_same_render():
    rays = camera_rays(orbit(0.), 8)
    one, two, other = (render(fog, rays, 6, generator=generator(s)).rgb for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize('shape', [(), (5,), (2, 3)])
def test_shapes_and_views_are_independent(shape):
    cameras = orbit(torch.linspace(0, 90, max(1, torch.Size(shape).numel())).reshape(shape), 20.)
    rays = camera_rays(cameras, 4)
    seen = render(fog, rays, 6, normals=lambda x: torch.ones_like(x))
    lead = (*shape, 4, 4)
    assert seen.rgb.shape == seen.normal.shape == (*lead, 3) and seen.opacity.shape == seen.depth.shape == lead
    assert seen.weights.shape == seen.t.shape == (*lead, 6) and seen.normals.shape == (*lead, 6, 3)
    if shape == (5,):
        alone = render(fog, Rays(rays.ray_o[3], rays.ray_d[3]), 6)
        assert torch.allclose(alone.rgb, seen.rgb[3], atol=1e-6)


def test_without_normals_there_are_zeros():
    seen = render(fog, camera_rays(orbit(0.), 4), 6)
    assert not seen.normal.any() and not seen.normals.any() and seen.normals.shape == (4, 4, 6, 3)


def test_shade_gets_what_it_was_promised():
    rays, called = camera_rays(orbit(torch.tensor([0., 90.])), 6), []
    flat_o, flat_d = rays.ray_o.reshape(-1, 3), rays.ray_d.reshape(-1, 3)
    def shade(albedo, normal, x, ray):
        called.append(len(x))
        assert albedo.shape == normal.shape == x.shape == (len(ray), 3)
        assert torch.allclose(torch.linalg.cross(x - flat_o[ray], flat_d[ray]), torch.zeros(()), atol=1e-5)   # x lies on its ray
        assert torch.equal(normal, -x)
        return albedo
    seen = render(fog, rays, 16, shade=shade, normals=lambda x: -x, weight_threshold=.01)
    assert called == [int((seen.weights > .01).sum())]
    assert torch.equal((seen.normals != 0).any(-1), seen.weights > .01)
    assert torch.allclose(composite(seen.weights, seen.normals), seen.normal, atol=1e-6)


def test_left_out_samples_darken_no_more_than_their_weight():
    rays = camera_rays(orbit(0.), 8)
    whole, part = render(fog, rays, 32), render(fog, rays, 32, normals=lambda x: x, weight_threshold=.01)
    left_out = torch.where(whole.weights > .01, 0., whole.weights).sum(-1)
    assert ((whole.rgb - part.rgb).amax(-1) <= left_out + 1e-6).all() and torch.equal(whole.opacity, part.opacity)


def test_shade_without_normals_sees_none():
    def shade(albedo, normal, x, ray):
        assert normal is None
        return torch.ones_like(albedo)
    seen = render(fog, camera_rays(orbit(0.), 4), 6, shade=shade)
    assert torch.allclose(seen.rgb, seen.opacity[..., None].expand_as(seen.rgb), atol=1e-6)


def test_gradients_reach_the_field_through_every_output():
    for pick in (lambda s: s.rgb, lambda s: s.opacity, lambda s: s.depth, lambda s: s.normal, lambda s: s.weights, lambda s: s.normals):
        scale = torch.ones((), requires_grad=True)
        field = lambda x, var: (scale*fog(x)[0], fog(x)[1])
        pick(render(field, camera_rays(orbit(0.), 4), 8, normals=lambda x: scale*x)).square().sum().backward()
        assert scale.grad.abs() > 0


def test_rays_that_miss_show_the_background_and_still_carry_a_gradient():
    rays = Rays(torch.tensor([[0., 0., 3.]]), torch.tensor([[1., 0., 0.]]))
    scale = torch.ones((), requires_grad=True)
    seen = render(lambda x, var: (scale*fog(x)[0], fog(x)[1]), rays, 8, background=torch.tensor([0., 1., 0.]), normals=lambda x: x)
    assert torch.equal(seen.rgb, torch.tensor([[0., 1., 0.]])) and seen.opacity == 0
    seen.rgb.sum().backward()
    assert scale.grad == 0


def test_nothing_occupied_is_no_crash():
    seen = render(fog, camera_rays(orbit(0.), 4), 8, occupied=lambda x: torch.zeros(x.shape[:-1], dtype=torch.bool), normals=lambda x: x)
    assert seen.rgb.isfinite().all() and seen.opacity.sum() <= 1


def test_background_per_view():
    rays = camera_rays(orbit(torch.tensor([0., 90.])), 4)
    colours = torch.tensor([[1., 0., 0.], [0., 0., 1.]])
    nothing = lambda x, var: (0*x[..., 0], x)
    assert torch.allclose(render(nothing, rays, 4, background=colours[:, None, None]).rgb, colours[:, None, None].expand(2, 4, 4, 3))


def test_depth_of_an_opaque_and_an_empty_ray():
    rays = camera_rays(orbit(0., 0., 3.), 1)
    wall = render(lambda x, var: (1e6*(x[..., 2] < .25).float(), x), rays, 400)
    empty = render(lambda x, var: (0*x[..., 2], x), rays, 400)
    assert abs(wall.depth.item() - 2.75) < 2/400 and abs(empty.depth.item() - 4) < 1e-5


def test_occupancy_grid_knows_its_axes():
    grid = OccupancyGrid(16).update(lambda x: (x - torch.tensor([.5, .25, -.75])).norm(dim=-1) < .15)
    assert grid(torch.tensor([.5, .25, -.75])) and not grid(torch.tensor([-.75, .25, .5])) and not grid(torch.tensor([.25, .5, -.75]))
    assert 0 < grid.fraction < .1 and OccupancyGrid(4).fraction == 1


def test_occupancy_grid_covers_neighbours_edges_and_other_radii():
    grid = OccupancyGrid(8, radius=2.).update(lambda x: x[..., 0] > 1.7)                     # only the last layer of cells, middles at 1.75
    x = torch.linspace(-1.99, 1.99, 50)
    points = torch.stack([x, 0*x, 0*x], -1)
    assert torch.equal(grid(points), x > 1.) and grid(torch.tensor([5., 0., 0.])) and not grid(torch.tensor([-5., 0., 0.]))
    grid.cells[:] = False
    grid.cells[..., -1] = True
    assert grid(torch.tensor([1.99, 0., 0.])) and grid(torch.tensor([1.51, 0., 0.])) and not grid(torch.tensor([1.49, 0., 0.]))


def test_occupancy_grid_with_a_generator_is_repeatable_and_stays_in_its_cells():
    ball = lambda x: (x.norm(dim=-1) < .5).float()
    one, two = (OccupancyGrid(16).update(ball, generator=generator()).cells for _ in range(2))
    assert torch.equal(one, two)
    x = torch.randn(2000, 3, generator=generator())
    x = .49*x/x.norm(dim=-1, keepdim=True)
    assert OccupancyGrid(16).update(ball, generator=generator())(x).all()


def test_helpers():
    assert true_indices(torch.zeros(5, dtype=torch.bool)).tolist() == [0] and true_indices(torch.tensor([False, True, True])).tolist() == [1, 2]
    i, values = torch.tensor([0, 4, 5]), torch.randn(3, 2, generator=generator())
    dense = spread(values, i, (2, 3, 2))
    assert dense.shape == (2, 3, 2) and torch.equal(dense[1, 1], values[1]) and not dense[0, 1:].any()
    assert torch.allclose(dense.sum(1), sum_per_ray(values, i//3, 2))


@pytest.mark.parametrize('seed', range(3))
def test_weights_agree_with_the_published_formulas(seed):
    "nerfacc's batched form (exclusive sum) and MultiNeRF's (any length of direction, last interval opaque or not), in float64"
    rng = np.random.default_rng(seed)
    edges, tau, length = np.sort(rng.uniform(0, 4, (64, 33)), -1), 10*rng.uniform(size=(64, 32))**3, rng.uniform(.5, 2, (64, 1))
    depth = tau*np.diff(edges)*length
    reference = np.exp(-np.concatenate([np.zeros((64, 1)), np.cumsum(depth, -1)[:, :-1]], -1))*(1 - np.exp(-depth))
    ours = alpha_weights(torch.tensor(tau).float(), torch.tensor(np.diff(edges)*length).float()).double().numpy()
    assert np.abs(ours - reference).max() < 1e-6 and np.allclose(ours, reference, rtol=1e-5, atol=1e-7)
    opaque = tau.copy(); opaque[:, -1] = 1e20                              # MultiNeRF's opaque background: the last interval takes what is left
    closed = alpha_weights(torch.tensor(opaque), torch.tensor(np.diff(edges)*length)).numpy()
    assert np.allclose(closed.sum(-1), 1) and np.allclose(closed[:, :-1], reference[:, :-1])


def test_depth_is_nerfaccs_with_the_rest_at_the_far_side():
    rays = camera_rays(orbit(20., 10.), 8)
    seen = render(fog, rays, 32)
    mean = (seen.weights*seen.t).sum(-1)/seen.opacity.clamp(min=1e-10)      # nerfacc and MultiNeRF
    far = sphere_interval(rays, 1.)[1]
    assert torch.allclose(seen.depth, seen.opacity*mean + (1 - seen.opacity)*far, atol=1e-5)


def test_render_against_the_equation_of_light():
    "The whole renderer along one ray, against an integrator with steps of its own"
    ray = Rays(torch.tensor([[.1, .2, 2.]], dtype=torch.float64), torch.tensor([[0., 0., -1.]], dtype=torch.float64))
    near, far = (v.item() for v in sphere_interval(ray))
    def rate(t, y):
        density, colour = fog(torch.tensor([[.1, .2, 2. - t]], dtype=torch.float64))
        return np.concatenate([[-density.item()*y[0]], y[0]*density.item()*colour[0].numpy()])
    end = solve_ivp(rate, (near, far), [1., 0, 0, 0], rtol=1e-11, atol=1e-13).y[:, -1]
    off = [np.abs(render(fog, ray, n).rgb[0].numpy() - end[1:]).max() for n in (50, 100)]
    assert off[1] < 1e-4 and 3.5 < off[0]/off[1] < 4.5                        # second order
    assert abs(render(fog, ray, 400).opacity.item() - (1 - end[0])) < 1e-5


@pytest.mark.parametrize('k', [.5, 3., 20.])
def test_linear_density(k):
    edges = torch.linspace(0, 2, 8, dtype=torch.float64)
    weights = alpha_weights(k*(edges[1:] + edges[:-1])/2, edges.diff())
    assert torch.allclose(weights, torch.exp(-k*edges[:-1]**2/2) - torch.exp(-k*edges[1:]**2/2), atol=1e-14)


@pytest.mark.parametrize('m', [.1, 1.7, 30.])
def test_delta_density(m):
    weights = alpha_weights(torch.tensor([.5, m/1e-6, .5]), torch.tensor([1.2, 1e-6, .8]))
    want = torch.tensor([1 - math.exp(-.6), math.exp(-.6)*(1 - math.exp(-m)), math.exp(-.6 - m)*(1 - math.exp(-.4))])
    assert torch.allclose(weights, want, rtol=1e-5, atol=1e-7)


RAYS = camera_rays(orbit(0.), 4)
@pytest.mark.parametrize('bad', [
    lambda: alpha_weights(torch.ones(3, 4), torch.ones(3, 5)), lambda: composite(torch.ones(3, 4), torch.ones(3, 5, 3)),
    lambda: sample_along_rays(RAYS, 0), lambda: render(fog, RAYS, 0), lambda: render(fog, RAYS, -3),
    lambda: render(fog, Rays(RAYS.ray_o[0], RAYS.ray_d)), lambda: render(fog, Rays(RAYS.ray_o[..., :2], RAYS.ray_d[..., :2])),
    lambda: alpha_weights(torch.ones(3, 0), torch.ones(3, 0)), lambda: alpha_weights(torch.ones(()), torch.ones(())), lambda: alpha_weights(-torch.ones(3, 4), torch.ones(3, 4)),
    lambda: alpha_weights(torch.full((3, 4), float('nan')), torch.ones(3, 4)), lambda: alpha_weights(torch.full((3, 4), float('inf')), torch.ones(3, 4)),
    lambda: render(fog, Rays(RAYS.ray_o, 1.1*RAYS.ray_d)), lambda: sample_along_rays(Rays(RAYS.ray_o, .5*RAYS.ray_d), 4), lambda: render(fog, Rays(RAYS.ray_o[:0], RAYS.ray_d[:0])),
    lambda: sample_along_rays(RAYS, 4, radius=0.), lambda: render(lambda x, var: (fog(x)[0][:, None], x), RAYS, 4), lambda: render(lambda x, var: (fog(x)[0], x[:, 0]), RAYS, 4),
    lambda: render(fog, RAYS, 4, background=torch.ones(2)), lambda: spread(torch.ones(3), torch.arange(2), (2, 3)), lambda: sum_per_ray(torch.ones(3), torch.arange(3), 3),
    lambda: OccupancyGrid(0), lambda: OccupancyGrid(4, radius=0.), lambda: OccupancyGrid(4).update(lambda x: x), lambda: OccupancyGrid(4)(torch.ones(5, 2))])
def test_bad_input_is_one_sentence(bad):
    with pytest.raises(UserError, match=r'^[^\n]+\.$'): bad()

@pytest.mark.parametrize('var', [None, .01])
def test_density_first_is_the_same_picture_with_the_same_gradients(var):
    "And the field is asked only where there is a weight"
    from dreamfusion_nb.field import GridField
    from dreamfusion_nb.scene import normals_of
    field = GridField((8, 16), generator=generator(0))
    with torch.no_grad(): field.levels[1].normal_(generator=generator(1))
    rays, asked = camera_rays(orbit(30., 20.), 24), []
    def counted(x, var): asked.append(len(x)); return field(x, var)
    def seen(**options):
        asked.clear()
        r = render(counted, rays, 32, var=var, background=torch.ones(3), normals=normals_of(field, .05), shade=lambda albedo, normal, x, ray: albedo*(1 + normal[:, 1:2])/2, **options)
        return r, torch.autograd.grad((r.rgb*r.depth[..., None]).square().sum(), list(field.levels)), sum(asked)
    (one, pushes, all_points), (other, pushed, few) = seen(), seen(density=field.density)
    for a, b in zip((one.rgb, one.opacity, one.depth, one.normal, *pushes), (other.rgb, other.opacity, other.depth, other.normal, *pushed)): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert few == (one.weights > 1e-3).sum() < all_points/2
    assert torch.equal(render(counted, rays, 32, density=None).rgb, render(counted, rays, 32, density=lambda x, var: 1/0).rgb)      # without normals all colours count, and the field is asked once
