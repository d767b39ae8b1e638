import pytest
import torch

from dreamfusion_nb.cameras import (POSES, VIEWS, Cameras, Rays, angles, camera_rays, direction, look_at, orbit, pose_index,
                                    sample_cameras, sphere_interval, view_index, view_weights)
from dreamfusion_nb.utils import UserError


def generator(seed=0): return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('azimuth, elevation, expected', [
    (0., 0., (0, 0, 1)), (90., 0., (1, 0, 0)), (180., 0., (0, 0, -1)), (-90., 0., (-1, 0, 0)), (37., 90., (0, 1, 0)), (37., -90., (0, -1, 0))])
def test_direction_of_the_axes(azimuth, elevation, expected):
    assert torch.allclose(direction(torch.tensor(azimuth), torch.tensor(elevation)), torch.tensor(expected, dtype=torch.float32), atol=1e-6)


def test_angles_do_not_depend_on_distance():
    position = direction(torch.tensor([-120., 15.]), torch.tensor([-30., 70.]))
    for scale in (1e-3, 1., 1e3):
        azimuth, elevation = angles(scale*position)
        assert torch.allclose(azimuth, torch.tensor([-120., 15.]), atol=1e-3) and torch.allclose(elevation, torch.tensor([-30., 70.]), atol=1e-3)


@pytest.mark.parametrize('elevation', [-90., -45., 0., 30., 89.99, 90.])
def test_orbit_is_rigid_and_looks_at_the_origin(elevation):
    cameras = orbit(torch.arange(0., 360., 30.), elevation)
    rotation = cameras.c2w[:, :3, :3]
    assert torch.allclose(rotation.mT @ rotation, torch.eye(3).expand(12, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(12), atol=1e-5)
    assert torch.allclose(-rotation[:, :, 2], -cameras.position/2.75, atol=1e-5)


def test_orbit_is_continuous_at_the_pole():
    near, at = orbit(40., 89.9).c2w, orbit(40., 90.).c2w
    assert (near - at).abs().max() < .01


def test_look_at_with_up_along_the_line_of_sight_is_finite():
    up = torch.tensor([[0., 1., 0.], [0., 1., 0.]])
    c2w = look_at(torch.tensor([[0., 2., 0.], [0., -2., 0.]]), torch.zeros(2, 3), up)
    assert c2w.isfinite().all() and torch.allclose(torch.linalg.det(c2w[:, :3, :3]), torch.ones(2))


def test_the_middle_of_the_picture_looks_at_the_origin():
    cameras = orbit(torch.tensor([0., 123.]), torch.tensor([20., -50.]))
    ray_d = camera_rays(cameras, 1).ray_d[:, 0, 0]
    assert torch.allclose(ray_d, -cameras.position/2.75, atol=1e-6)


def test_first_row_is_the_top_and_first_column_the_left():
    ray_d = camera_rays(orbit(0., 0.), 9).ray_d          # from +Z, right in the picture is +X
    assert ray_d[0, 4, 1] > 0 > ray_d[8, 4, 1] and ray_d[4, 0, 0] < 0 < ray_d[4, 8, 0]


@pytest.mark.parametrize('shape', [(), (3,), (2, 3)])
def test_leading_dimensions(shape):
    cameras = orbit(torch.zeros(shape), 10.)
    rays = camera_rays(cameras, 5)
    assert cameras.c2w.shape == (*shape, 4, 4) and rays.ray_o.shape == rays.ray_d.shape == (*shape, 5, 5, 3)
    assert torch.allclose(rays.ray_d.norm(dim=-1), torch.ones(()), atol=1e-6)


def test_jittered_pixels_stay_in_their_pixel():
    cameras = orbit(torch.zeros(2), 10.)
    low, high = (camera_rays(cameras, 4, offset=o).ray_d for o in (0., 1.))
    offset = torch.rand(2, 4, 4, 2, generator=generator())
    ray_d = camera_rays(cameras, 4, offset=offset).ray_d
    ratio = lambda d: -d[..., 0]/(d @ cameras.c2w[0, :3, 2])         # horizontal place in the picture: azimuth 0, so right is +X
    lowest, highest = ratio(low), ratio(high)
    assert (ratio(ray_d) <= torch.maximum(lowest, highest) + 1e-6).all() and (ratio(ray_d) >= torch.minimum(lowest, highest) - 1e-6).all()


@pytest.mark.parametrize('radius', [.3, 1., 1.4])
def test_sphere_interval_against_the_quadratic_formula(radius):
    ray_o, ray_d = 2*torch.randn(500, 3, generator=generator()), torch.randn(500, 3, generator=generator(1))
    rays = Rays(ray_o, ray_d/ray_d.norm(dim=-1, keepdim=True))
    near, far = sphere_interval(rays, radius)
    b, c = 2*(rays.ray_o*rays.ray_d).sum(-1), rays.ray_o.square().sum(-1) - radius**2
    root = (b**2 - 4*c).clamp(min=0).sqrt()
    hit = (b**2 > 4*c) & (root > b)                                  # and not behind the camera
    assert torch.allclose(far[hit], ((root - b)/2)[hit], atol=1e-3) and torch.allclose(near[hit], ((-root - b)/2).clamp(min=0)[hit], atol=1e-3)
    assert torch.allclose(near[~hit], far[~hit]) and (near >= 0).all()


def test_same_seed_same_cameras():
    one, two, other = (sample_cameras(50, generator=generator(s)) for s in (3, 3, 4))
    assert torch.equal(one.c2w, two.c2w) and torch.equal(one.focal, two.focal) and not torch.equal(one.c2w, other.c2w)


def test_cameras_report_the_angles_of_their_jittered_position():
    cameras = sample_cameras(200, position_jitter=.3, generator=generator())
    where = direction(cameras.azimuth, cameras.elevation)*cameras.position.norm(dim=-1, keepdim=True)
    assert torch.allclose(where, cameras.position, atol=2e-3)


def test_samples_stay_in_range_and_one_elevation_is_allowed():
    cameras = sample_cameras(1000, elevation=(20., 20.), distance=(2., 3.), focal=(1., 2.), position_jitter=0., generator=generator())
    assert torch.allclose(cameras.elevation, torch.tensor(20.), atol=.01)
    distance = cameras.position.norm(dim=-1)
    assert distance.min() >= 2 - 1e-5 and distance.max() <= 3 + 1e-5 and cameras.focal.min() >= 1 and cameras.focal.max() <= 2


def test_view_index_at_its_borders():
    azimuth = torch.tensor([45., 46., 134., 136., -46., 180., -180., 405., 0., 0.])
    elevation = torch.tensor([0., 0., 0., 0., 0., 0., 0., 0., 60., 60.1])
    expected = ['front', 'side', 'side', 'back', 'side', 'back', 'back', 'front', 'front', 'overhead']
    assert [VIEWS[i] for i in view_index(azimuth, elevation)] == expected


def test_pose_index_at_its_borders():
    azimuth = torch.tensor([0., 22., 23., 90., -90., 180., -180., 337., 338., 0., 45., 45., -45., 0.])
    elevation = torch.tensor([-10., 20., 20., 0., 0., 0., 0., 0., 0., 21., 60., 61., 75., 90.])
    expected = ['low front', 'low front', 'low front left', 'low left side', 'low right side', 'low back', 'low back', 'low front right', 'low front', 'high front',
                'high front left', 'overhead front left', 'overhead front right', 'overhead front']
    assert [POSES[i] for i in pose_index(azimuth, elevation)] == expected and len(set(POSES)) == 24


def test_to_moves_everything():
    cameras, rays = orbit(torch.zeros(2)).to('meta'), camera_rays(orbit(0.), 2).to('meta')
    assert isinstance(cameras, Cameras) and cameras.position.is_meta and cameras.elevation.is_meta and rays.ray_o.is_meta


@pytest.mark.parametrize('bad', [
    lambda: sample_cameras(0), lambda: sample_cameras(3, elevation=(50., 10.)), lambda: sample_cameras(3, elevation=(-10., 120.)),
    lambda: camera_rays(orbit(0.), 0)])
def test_bad_input_is_one_sentence(bad):
    with pytest.raises(UserError, match=r'^[^\n]+\.$'): bad()


def test_view_weights_at_their_corners():
    azimuth = torch.tensor([0., 45., 90., -90., 135., 180., -180., 360., 720., 0., 0.])
    elevation = torch.tensor([0.]*9 + [60., 60.1])
    expected = torch.tensor([[1, 0, 0, 0], [.5, .5, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, .5, .5, 0], [0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.]])
    assert torch.allclose(view_weights(azimuth, elevation), expected, atol=1e-6)


def test_view_weights_sum_to_one_and_do_not_jump():
    azimuth = torch.arange(-400., 400., .25)
    weights = view_weights(azimuth.reshape(2, -1), torch.zeros(2, 1600)).reshape(-1, 4)
    assert torch.allclose(weights.sum(-1), torch.ones(3200), atol=1e-6) and weights.min() >= 0
    assert (weights[1:] - weights[:-1]).abs().max() < .25/90 + 1e-4


@pytest.mark.parametrize('bad, named', [
    (lambda: look_at(torch.zeros(2), torch.ones(3), torch.ones(3)), r'\(2,\)'), (lambda: look_at(torch.ones(4, 3), torch.ones(3), torch.ones(3)), 'position and target'),
    (lambda: camera_rays(orbit(0.), 4, torch.zeros(4, 4, 3)), r'offset[^\n]+\(4, 4, 3\)'), (lambda: camera_rays(orbit(0.), 4, torch.zeros(5, 5, 2)), r'\(5, 5, 2\)'),
    (lambda: sphere_interval(Rays(torch.zeros(3), torch.tensor([0., 0., 2.]))), 'ray_d[^\n]+unit'), (lambda: sphere_interval(Rays(torch.zeros(4, 3), torch.ones(3))), r'\(4, 3\) and \(3,\)'),
    (lambda: sphere_interval(Rays(torch.zeros(3), torch.full((3,), torch.nan))), 'ray_d'),
    (lambda: sample_cameras(2, distance=(2., 1.)), 'distance'), (lambda: sample_cameras(2, focal=(0., 1.)), 'focal'),
    (lambda: sample_cameras(2, up_jitter=-1.), 'Jitters'), (lambda: sample_cameras(2, uniform_area=2.), 'uniform_area')])
def test_bad_input_names_the_argument(bad, named):
    with pytest.raises(UserError, match=rf'^[^\n]*{named}[^\n]*\.$'): bad()


def test_no_cameras_no_rays():
    near, far = sphere_interval(camera_rays(orbit(torch.zeros(0)), 4))
    assert near.shape == far.shape == (0, 4, 4)
