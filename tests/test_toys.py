"Shapes as distances, and the toys made of them: known values, invariances, and that no toy leaves its sphere"
import pytest
import torch
import torch.nn.functional as F
from dreamfusion_nb.toys import (COLOURS, OBJECTS, OWN, SHADED, above, ball, both, box, cone, cut, cylinder, ellipsoid, gable, mirrored, placed, rod,
                                 to_front, torus, union, wedge)
from dreamfusion_nb.utils import seeded

def points(n, seed=0, size=1.): return (2*torch.rand(n, 3, generator=seeded(seed)) - 1)*size

def gradient(shape, p):
    p = p.clone().requires_grad_()
    return torch.autograd.grad(shape(p).sum(), p)[0]

EXACT = {'ball': ball((.1, 0, 0), .4), 'box': box((0, .1, 0), (.5, .3, .2)), 'cylinder': cylinder((0, 0, .1), .3, .5),
         'torus': torus((0, 0, 0), .5, .2), 'cone': cone((0, -.5, 0), 1., .5, .2), 'tip': cone((0, -.5, 0), 1., .5),
         'rod': rod((-.4, -.2, 0), (.3, .4, .1), .2)}

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

def test_a_rod_tapers_and_has_round_ends():
    stick = rod((0, -.5, 0), (0, .5, 0), .2, .1)
    assert stick(torch.tensor([[.2, -.5, 0], [.1, .5, 0], [.15, 0, 0], [0, -.7, 0], [0, .6, 0]])).abs().max() < 1e-6
    assert torch.equal(rod((0, -.5, 0), (0, .5, 0), .2)(points(100)), rod((0, -.5, 0), (0, .5, 0), .2, .2)(points(100)))

def test_a_wedge_opens_to_the_front():
    quarter = wedge(1.)                                              # 45 degrees to either side
    assert torch.allclose(quarter(torch.tensor([[0., 0, 1], [0, 5, -1], [1, 0, 1], [2, 0, 0]])), torch.tensor([-.5**.5, .5**.5, 0, 2**.5]), atol=1e-6)

def test_placed_parts_are_smaller_and_elsewhere():
    (shape, colour), = placed([(ball((.2, 0, 0), .4), OWN)], .5, (0., .3, 0.))
    assert colour == OWN and torch.allclose(shape(points(500)), ball((.1, .3, 0), .2)(points(500)), atol=1e-6)

@pytest.mark.parametrize('name', OBJECTS)
def test_toys(name):
    shapes, colours = zip(*OBJECTS[name])
    rim, p = F.normalize(torch.randn(2000, 3, generator=seeded(0)), dim=-1), points(150_000)
    assert all(shape(rim).min() > 0 for shape in shapes)            # inside the unit sphere
    assert all((shape(p) < 0).any() for shape in shapes)            # no part is empty
    assert any(colour == OWN for colour in colours)                 # something takes the colour of the caption
    assert all(colour in (OWN, SHADED) or isinstance(colour, tuple) and all(0 <= c <= 1 for c in colour) for colour in colours)

def test_there_are_36_toys_in_12_colours():
    assert len(OBJECTS) == 36 and len(COLOURS) == 12
    assert torch.pdist(torch.tensor(list(COLOURS.values()))).min() > .2
