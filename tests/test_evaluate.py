"The marks: a true shape gets full ones, what is wrong costs the mark that it should, and what cannot be judged says so"
import pytest
import torch
from functools import partial
from torch import nn
from dreamfusion_nb.evaluate import (Placement, best_placement, chamfer, colour_accuracy, colour_difference, floaters, fog, inside, iou, marks, meaning,
                                     spread_points, surface_points, true_mesh)
from dreamfusion_nb.generate import Scene, Settings
from dreamfusion_nb.mesh import Mesh, extract_mesh
from dreamfusion_nb.shapeworld import as_field, ball, box, cut, distance
from dreamfusion_nb.utils import UserError, seeded

class Truth(nn.Module):
    "A toy of the world in the place of an optimised field"
    def __init__(self, name, colour):
        super().__init__()
        self.field, self.nothing = as_field(name, colour, edge=.01), nn.Parameter(torch.zeros(1))
    def density(self, x): return self.field(x)[0]
    def forward(self, x, var=None): return self.field(x)

def solid(shape): return extract_mesh(lambda x: (100*torch.sigmoid(-shape(x)/.01), torch.ones_like(x)), 64, threshold=50.)

def test_iou():
    a, b = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert iou(a, b) == iou(b, a) == pytest.approx(1/3) and iou(a, a) == 1 and iou(a & b, ~a & ~b) == 0
    assert iou(torch.zeros(3).bool(), torch.zeros(3).bool()) == 0

def test_spread_points():
    p = spread_points(8, 2.)
    assert p.shape == (512, 3) and torch.equal(p, spread_points(8, 2.)) and not torch.equal(p, spread_points(8, 2., seed=1))
    cells = ((p + 2)/.5).floor().long()
    assert len(cells.unique(dim=0)) == 512 and cells.min() == 0 and cells.max() == 7        # one in each cell

@pytest.mark.parametrize('shape', [box((.1, 0, 0), (.5, .3, .2)), cut(ball((0, 0, 0), .7), ball((0, .5, 0), .5))], ids=['box', 'bowl'])
def test_inside(shape):
    p = spread_points(24)
    assert ((shape(p) < 0) != inside(solid(shape), p)).float().mean() < .002
    corners = 5*torch.tensor([[x, y, z] for x in (-1., 1) for y in (-1., 1) for z in (-1., 1)])
    assert not inside(solid(shape), corners).any()

def test_placement():
    there, p = Placement(-70., 1.3, torch.tensor([.2, -.1, .4])), torch.randn(20, 3, generator=seeded(0))
    assert torch.allclose(there.undo(there.place(p)), p, atol=1e-5)
    assert torch.allclose((there.place(p[0]) - there.place(p[1])).norm(), 1.3*(p[0] - p[1]).norm())
    assert torch.equal(there.place(p)[:, 1], 1.3*p[:, 1] - .1)                              # upright stays upright

def test_best_placement_finds_a_turned_chair():
    there, mesh = Placement(200., .7, torch.tensor([-.1, .1, .05])), true_mesh('chair')
    found, agreement = best_placement(Mesh(there.place(mesh.vertices), mesh.faces, mesh.colours), partial(distance, 'chair'))
    assert agreement > .93 and abs(found.yaw - 200) < 3 and abs(found.scale - .7) < .02 and (found.shift - there.shift).norm() < .03

def test_a_shape_that_holds_no_point_cannot_be_placed():
    with pytest.raises(UserError, match='too thin'): best_placement(solid(ball((0, 0, 0), .04)), ball((0, 0, 0), .04), points=4)

def test_chamfer():
    a = torch.tensor([[0., 0, 0], [1., 0, 0]])
    assert chamfer(a, a) == 0 and chamfer(a, a[:1]) == chamfer(a[:1], a) == .25              # one way (0 + 1)/2, the other 0
    points = surface_points(solid(ball((0, 0, 0), .6)), 2000)
    assert points.shape == (2000, 3) and (points.norm(dim=-1) - .6).abs().max() < .01 and points.mean(0).norm() < .05

def test_colour_difference():
    a = torch.rand(50, 3, generator=seeded(0))
    assert (colour_difference(a, a) == 0).all() and torch.allclose(colour_difference(a, 1 - a), colour_difference(1 - a, a))

def test_colours_are_judged_where_they_are():
    still, house = Placement(0., 1., torch.zeros(3)), true_mesh('house', 'blue')
    assert colour_accuracy(house, house, still) == 0
    assert colour_accuracy(Mesh(house.vertices, house.faces, house.colours.flip(1)), house, still) > 5

def test_floaters_and_bubbles():
    bubble = cut(ball((0, 0, 0), .6), ball((0, 0, 0), .3))
    assert floaters(solid(bubble)) == 0
    two = solid(lambda p: torch.minimum(ball((-.4, 0, 0), .4)(p), ball((.5, 0, 0), .3)(p)))
    assert floaters(two) == pytest.approx(27/(27 + 64), abs=.01)

def test_fog():
    assert fog(torch.zeros(4)) == 0 and fog(torch.ones(4)) == 0 and fog(torch.full((4,), .5)) == 1
    assert fog(torch.tensor([[.2, 1.], [0., 1.]])) == pytest.approx(1/3)

def test_meaning():
    assert meaning('A blue Car, low front view') == ('car', 'blue') and meaning('a photo of an orange ring') == ('ring', 'orange')
    for prompt in ('', 'a mug', 'red', 'a red mug and a red car', 'a red and blue mug', 'a red dragon'):
        with pytest.raises(UserError, match='one object and one colour'): meaning(prompt)

def test_truth_gets_full_marks_and_another_toy_does_not():
    found, placement = marks(Scene(Truth('car', 'blue'), 'a blue car', Settings(), 0), size=32)
    assert found['iou'] > .9 and found['chamfer'] < .02 and found['colour'] < 3 and found['floaters'] == 0 and found['fog'] < .35
    assert abs((placement.yaw + 180) % 360 - 180) < 3 and abs(placement.scale - 1) < .05
    wrong, _ = marks(Scene(Truth('tree', 'green'), 'a blue car', Settings(), 0), size=32)
    assert wrong['iou'] < .5 and wrong['chamfer'] > .08 and wrong['colour'] > 20
    with pytest.raises(UserError, match='dragon'): marks(Scene(Truth('car', 'blue'), 'a blue dragon', Settings(), 0))
