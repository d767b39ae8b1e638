"The captioned world: dull numbers, bad input, and the promise that training data can be made again"
import pytest
import torch
import torch.nn.functional as F
from dreamfusion_nb.cameras import POSES, camera_rays, orbit, pose_index
from dreamfusion_nb.shading import Light
from dreamfusion_nb.shapeworld import (COLOURS, OBJECTS, OWN, SHADED, above, as_field, ball, both, box, caption, compose, cone, cut, cylinder, distance, ellipsoid,
                                       gable, layer_batch, mirrored, part_distances, pick, random_prompts, render_layers, sample_backgrounds,
                                       sample_pictures, sample_world_cameras, sample_world_light, surface_normals, to_front, torus, trace, union)
from dreamfusion_nb.utils import UserError, seeded

MUG_MEANS = [[82.06, 0., 0., 0., 105.81], [65.10, 0., 0., 0., 111.01]]   # of the pictures that `train` starts from

def points(n, seed=0, size=1.): return (2*torch.rand(n, 3, generator=seeded(seed)) - 1)*size

def gradient(shape, p):
    p = p.clone().requires_grad_()
    return torch.autograd.grad(shape(p).sum(), p)[0]

EXACT = {'ball': ball((.1, 0, 0), .4), 'box': box((0, .1, 0), (.5, .3, .2)), 'cylinder': cylinder((0, 0, .1), .3, .5),
         'torus': torus((0, 0, 0), .5, .2), 'cone': cone((0, -.5, 0), 1., .5, .2), 'tip': cone((0, -.5, 0), 1., .5)}

@pytest.mark.parametrize('name', EXACT)
def test_exact_distances_grow_as_fast_as_one_walks(name):
    length = gradient(EXACT[name], points(2000)).norm(dim=-1)
    assert ((length - 1).abs() < 1e-3).float().mean() > .995         # not on the medial axis, where there is no gradient
    assert length.max() < 1 + 1e-3

@pytest.mark.parametrize('name', EXACT)
def test_walking_the_distance_leads_to_the_surface(name):
    shape, p = EXACT[name], points(2000, 1)
    p = p[shape(p) > 0]
    landed = p - shape(p)[:, None]*F.normalize(gradient(shape, p), dim=-1)
    assert shape(landed).abs().max() < 1e-3

def test_known_values():
    p = torch.tensor([[0., 0, 0], [2, 0, 0], [0, 2, 0], [1, 1, 1]])
    assert torch.allclose(ball((0, 0, 0), 1.)(p), torch.tensor([-1., 1, 1, 3**.5 - 1]))
    assert torch.allclose(box((0, 0, 0), (.5, .5, .5), 0.)(p), torch.tensor([-.5, 1.5, 1.5, .75**.5]))
    assert torch.allclose(cylinder((0, 0, 0), .5, 1., 0.)(p), torch.tensor([-.5, 1.5, 1, 2**.5 - .5]))
    assert torch.allclose(torus((0, 0, 0), 1., .25)(p), torch.tensor([.75, .75, 5**.5 - .25, ((2**.5 - 1)**2 + 1)**.5 - .25]))
    assert torch.allclose(above(.5)(p), torch.tensor([.5, .5, -1.5, -.5]))
    e = ellipsoid((0, 0, 0), (1., .5, .25))
    assert e(torch.tensor([[1., 0, 0], [0, .5, 0], [0, 0, .25]])).abs().max() < 1e-6
    roof = gable((0, 0, 0), (.6, .8), .5)
    assert roof(torch.tensor([[0., .5, 0], [.6, 0, 0], [0, 0, 0], [0, .2, .8]])).abs().max() < 1e-6

def test_rounding_keeps_the_size():
    for sharp, round_ in ((box((0, 0, 0), (.5, .4, .3), 0.), box((0, 0, 0), (.5, .4, .3), .1)),
                          (cylinder((0, 0, 0), .3, .5, 0.), cylinder((0, 0, 0), .3, .5, .1))):
        faces = torch.tensor([[.7, 0, 0], [0, .9, 0], [0, 0, .6]])
        assert torch.allclose(sharp(faces), round_(faces), atol=1e-6)

def test_putting_together():
    a, b, p = ball((-.3, 0, 0), .5), ball((.3, 0, 0), .5), points(4000)
    in_a, in_b = a(p) < 0, b(p) < 0
    assert torch.equal(union(a, b)(p) < 0, in_a | in_b)
    assert torch.equal(both(a, b)(p) < 0, in_a & in_b)
    assert torch.equal(cut(a, b)(p) < 0, in_a & ~in_b)
    two = mirrored(ball((.4, .1, .2), .2))
    assert torch.equal(two(p), two(p*torch.tensor([-1., 1, 1])))
    four = mirrored(ball((.4, .1, .2), .2), (0, 2))
    assert torch.equal(four(p), four(p*torch.tensor([-1., 1, -1])))
    forward = to_front(cone((0, 0, 0), 1., .3))
    assert forward(torch.tensor([[0., 0, .9]])) < 0 < forward(torch.tensor([[0., .9, 0]]))

@pytest.mark.parametrize('name', OBJECTS)
def test_objects(name):
    rim = 1.13*F.normalize(torch.randn(3000, 3, generator=seeded(0)), dim=-1)
    assert distance(name, rim).min() > 0
    assert (distance(name, points(20000)) < 0).any()
    p = points(500)
    assert torch.equal(distance(name, p), part_distances(name, p).amin(-1)) and part_distances(name, p).shape == (500, len(OBJECTS[name]))
    assert any(colour == OWN for _, colour in OBJECTS[name])        # something takes the colour of the caption

def test_unknown_object():
    with pytest.raises(UserError, match="'teapot'.*mug"): distance('teapot', points(2))

def test_tracing_misses_what_is_not_there():
    t, hit = trace(ball((0, 0, 0), .1), camera_rays(orbit(0., 0.), 16))
    assert hit.any() and not hit.view(16, 16)[0].any()
    rays = camera_rays(orbit(0., 0.), 16)
    away = type(rays)(rays.ray_o, -rays.ray_d)
    assert not trace(ball((0, 0, 0), .5), away)[1].any()

def test_normals_of_a_box():
    p = torch.tensor([[.5, .1, .05], [-.1, .4, .1], [.1, 0, -.3]])
    n = surface_normals(box((0, 0, 0), (.5, .4, .3)), p)
    assert torch.allclose(n, torch.tensor([[1., 0, 0], [0, 1, 0], [0, 0, -1]]), atol=1e-3)

def test_layers_do_not_depend_on_their_company():
    cameras = sample_world_cameras(3, seeded(1))
    light = sample_world_light(cameras, seeded(2))
    together = render_layers('car', cameras, light, 16)
    one = torch.tensor([2])
    alone = render_layers('car', pick(cameras, one), pick(light, one), 16)
    assert (together[2].int() - alone[0].int()).abs().max() <= 1     # a batch may round differently
    assert together.shape == (3, 5, 16, 16) and together.dtype == torch.uint8

def test_compose_is_linear_in_the_colours():
    layers, _ = layer_batch('house', 2, seed=0, size=16)
    black, red = torch.zeros(2, 3), torch.tensor([[.85, .1, .1]]).expand(2, 3)
    nothing = compose(layers, black, black)
    assert torch.allclose(compose(layers, red, black) - nothing, layers[:, :1].float()/255*red[..., None, None], atol=1e-6)
    assert torch.allclose(compose(layers, black, red) - nothing, (1 - layers[:, 4:].float()/255)*red[..., None, None], atol=1e-6)

def test_ambient_light_is_flat():
    flat = Light(torch.tensor([[0., 0, 3]]), torch.zeros(1), torch.ones(1))
    layers = render_layers('cube', orbit(torch.tensor([30.]), torch.tensor([20.])), flat, 32)
    assert torch.equal(layers[:, 0], layers[:, 4])                   # shading 1 wherever there is something

def test_the_hollow_of_the_mug_lies_in_the_shade():
    flat = Light(torch.tensor([[0., 3, 0]]), torch.zeros(1), torch.ones(1))
    layers = render_layers('mug', orbit(torch.tensor([0.]), torch.tensor([89.])), flat, 32).float()/255
    share = layers[0, 0][layers[0, 4] == 1]
    assert share[share < .9].numel() > 40 and abs(share.min() - SHADED) < .01 and share.max() == OWN
    side = render_layers('mug', orbit(torch.tensor([0.]), torch.tensor([0.])), flat, 32)
    assert torch.equal(side[:, 0], side[:, 4])                       # from the side nobody sees it

def test_training_data_can_be_made_again():
    layers, views = layer_batch('mug', 2, seed=10)
    assert layers.shape == (2, 5, 64, 64) and views.tolist() == [0, 8]
    sums = layers.double().mean((-1, -2))
    assert torch.allclose(sums, torch.tensor(MUG_MEANS).double(), atol=.05), sums   # not bit by bit: other machines round otherwise
    again, _ = layer_batch('mug', 2, seed=10)
    assert torch.equal(layers, again)

def test_cameras_lights_and_backgrounds():
    cameras = sample_world_cameras(500, seeded(0))
    d = cameras.position.norm(dim=-1)
    assert d.min() > 2.1 and d.max() < 2.9 and cameras.elevation.min() > -16 and cameras.elevation.max() < 90
    assert set(pose_index(cameras.azimuth, cameras.elevation).tolist()) == set(range(24))
    light = sample_world_light(cameras, seeded(1))
    assert torch.allclose(light.ambient + light.diffuse, torch.ones(500))
    assert abs((light.ambient == 1).float().mean() - .25) < .06
    assert ((light.ambient == 1) | ((light.ambient >= .25) & (light.ambient <= .5))).all()
    background = sample_backgrounds(4000, seeded(2))
    assert background.shape == (4000, 3) and background.min() >= 0 and background.max() <= 1
    assert abs(background.mean() - .575) < .01 and abs((background[:, 0] - background[:, 1]).std() - .05*2**.5) < .005

def test_captions():
    assert caption('mug', 'red') == 'a red mug' and caption('ball', 'orange', 'overhead') == 'an orange ball, overhead view' and caption('car', 'blue', 'low front left') == 'a blue car, low front left view'
    for bad in (('teapot', 'red'), ('mug', 'beige'), ('mug', 'red', 'bottom')):
        with pytest.raises(UserError, match=bad[0] if bad[0] == 'teapot' else bad[-1]): caption(*bad)

def test_sample_pictures():
    pictures, captions = sample_pictures(5, seed=1, size=16)
    assert pictures.shape == (5, 3, 16, 16) and len(captions) == 5 and pictures.dtype == torch.float32
    again, same = sample_pictures(5, seed=1, size=16)
    assert torch.equal(pictures, again) and captions == same
    assert sample_pictures(5, seed=2, size=16)[1] != captions
    for text in captions:
        words, view = text.split(', ')
        assert words.split()[1] in COLOURS and words.split()[2] in OBJECTS and view.removesuffix(' view') in POSES
    with pytest.raises(UserError, match='n >= 1'): sample_pictures(0, seed=0)

def test_random_prompts():
    assert len(set(random_prompts(40, seed=0))) == 40 and random_prompts(5, 1) == random_prompts(5, 1) != random_prompts(5, 2)
    assert random_prompts(0, 0) == [] and len(random_prompts(len(OBJECTS)*len(COLOURS), 0)) == 150
    with pytest.raises(UserError, match='150'): random_prompts(151, 0)

@pytest.mark.parametrize('name', ['ball', 'car'])
def test_as_field(name):
    p = points(2000)
    density, albedo = as_field(name, 'pink', plateau=50., edge=.01)(p)
    assert density.shape == (2000,) and albedo.shape == (2000, 3)
    assert torch.equal(density > 25, distance(name, p) < 0) and density.max() <= 50
    own = torch.tensor(COLOURS['pink'])
    allowed = torch.stack([torch.tensor(c) if isinstance(c, tuple) else c*own for _, c in OBJECTS[name]])
    assert (torch.cdist(albedo, allowed).amin(1) < 1e-6).all()
