"Marching cubes, thresholds and files: dull numbers and bad input"
import json
import math
import struct
import sys
import numpy as np
import pytest
import torch
import trimesh
from dreamfusion_nb.mesh import (Mesh, components, density_grid, export_mesh, extract_mesh, largest_component, marching_cubes, scene_density,
                                 settle, srgb_to_linear, surface_threshold, to_trimesh, vertex_normals, volume)
from dreamfusion_nb.utils import UserError

CENTRE = torch.tensor([.1, -.2, .3])

def soft_ball(x, radius=.4, height=100., edge=.01):
    return height*torch.sigmoid((radius - (x - CENTRE).norm(dim=-1))/edge), (x + 1)/2

def tent(x): return 10*(1 - x.norm(dim=-1)), (x + 1)/2

@pytest.fixture(scope='module')
def ball(): return extract_mesh(soft_ball, 40)

def test_shapes_and_types(ball):
    assert ball.vertices.shape == ball.colours.shape and ball.vertices.shape[1] == 3 and ball.faces.shape[1] == 3
    assert ball.vertices.dtype == ball.colours.dtype == torch.float32 and ball.faces.dtype == torch.int64
    assert ball.faces.min() == 0 and ball.faces.max() == len(ball.vertices) - 1

def test_ball_is_closed_outward_and_in_place(ball):
    t = to_trimesh(ball)
    assert t.is_watertight and t.is_winding_consistent and t.euler_number == 2
    assert torch.allclose(ball.vertices.mean(0), CENTRE, atol=5e-3)
    outward = ((ball.vertices - CENTRE)*vertex_normals(ball)).sum(-1)
    assert (outward > .3).all()
    theta = surface_threshold(density_grid(soft_ball, 40), 2/39)
    radius = .4 + .01*math.log(100/theta - 1)
    assert (ball.vertices - CENTRE).norm(dim=-1).sub(radius).abs().max() < 1e-3      # settled on the level set
    assert math.isclose(volume(ball), t.volume, rel_tol=1e-4)
    assert math.isclose(volume(ball), 4/3*math.pi*radius**3, rel_tol=.02)

def test_colours_are_the_albedo_there(ball):
    assert torch.allclose(ball.colours, ((ball.vertices + 1)/2).clamp(0, 1), atol=1e-6)

def test_grid_is_indexed_x_y_z():
    grid = density_grid(lambda x: ((x[..., 0] > .5).float() + 2*(x[..., 1] > .5) + 4*(x[..., 2] > .5), x), 21)
    assert grid[18, 10, 10] == 1 and grid[10, 18, 10] == 2 and grid[10, 10, 18] == 4

def test_nothing_outside_the_sphere():
    everywhere = lambda x: (torch.full(x.shape[:-1], 50.), torch.ones_like(x))
    grid = density_grid(everywhere, 32)
    assert grid[0, 0, 0] == 0 and abs((grid > 0).float().mean() - math.pi/6*(31/32)**3) < .02
    with pytest.raises(UserError, match='100% of the wall'): extract_mesh(everywhere, 32, threshold=25.)
    m = extract_mesh(everywhere, 32, threshold=25., wall=1.)
    assert to_trimesh(m).is_watertight
    assert m.vertices.norm(dim=-1).max() < 1 + 2e-3 and m.vertices.norm(dim=-1).mean() > .99

def test_radius_scales_everything():
    small, large = extract_mesh(tent, 24, threshold=4.), extract_mesh(lambda x: tent(x/3), 24, threshold=4., radius=3.)
    assert torch.allclose(small.vertices*3, large.vertices, atol=1e-2) and torch.equal(small.faces, large.faces)

def test_method_density_is_used():
    class Field:
        def __call__(self, x): return torch.zeros(len(x)), torch.full_like(x, .25)
        def density(self, x): return tent(x)[0]
    m = extract_mesh(Field(), 20, threshold=4.)
    assert (m.colours == .25).all() and abs(m.vertices.norm(dim=-1).mean() - .6) < 1e-2

def test_module_on_its_device_and_no_gradient():
    class Field(torch.nn.Module):
        def __init__(self): super().__init__(); self.scale = torch.nn.Parameter(torch.tensor(1.))
        def forward(self, x, var=None): return self.scale*tent(x)[0], (x + 1)/2
    m = extract_mesh(Field(), 20, threshold=4.)
    assert not m.vertices.requires_grad and not m.colours.requires_grad

def test_chunks_change_nothing():
    grid = density_grid(soft_ball, 20)
    assert torch.allclose(grid, density_grid(soft_ball, 20, chunk=100), atol=1e-4)
    inside, outside = torch.zeros(50, 3), torch.rand(50, 3)
    density = scene_density(tent)
    assert torch.allclose(settle(density, inside, outside, 6.), settle(density, inside, outside, 6., chunk=7), atol=1e-6)

def test_settle_finds_the_level_in_either_direction():
    inside, outside = torch.tensor([[.1, 0, 0], [0, -.2, 0]]), torch.tensor([[.9, 0, 0], [0, -.7, 0]])
    found = settle(scene_density(tent), inside, outside, 4., steps=12)
    assert torch.allclose(found, torch.tensor([[.6, 0, 0], [0, -.6, 0]]), atol=1e-3)

def test_a_threshold_that_is_a_grid_value():
    theta = density_grid(tent, 21)[16, 10, 10].item()            # radius .6 falls on a grid point
    r = extract_mesh(tent, 21, threshold=theta).vertices.norm(dim=-1)
    assert (r - .6).abs().max() < 1e-3

def test_winding_does_not_depend_on_the_library(monkeypatch):
    import dreamfusion_nb.mesh as module
    straight = extract_mesh(tent, 16, threshold=4.)
    original = module.marching_cubes
    def reversed_triangles(grid, threshold):
        vertices, faces = original(grid, threshold)
        return vertices, faces[:, ::-1]
    monkeypatch.setattr(module, 'marching_cubes', reversed_triangles)
    assert math.isclose(volume(extract_mesh(tent, 16, threshold=4.)), volume(straight), rel_tol=1e-6)

@pytest.mark.parametrize('threshold', [4., None])
def test_scikit_image_in_the_place_of_mcubes(monkeypatch, threshold):
    first = extract_mesh(soft_ball, 32, threshold and 40.)
    monkeypatch.setitem(sys.modules, 'mcubes', None)
    second = extract_mesh(soft_ball, 32, threshold and 40.)
    assert math.isclose(volume(first), volume(second), rel_tol=1e-3) and to_trimesh(second).is_watertight and to_trimesh(second).is_winding_consistent

def test_winding_of_both_libraries_on_noise(monkeypatch):
    noise = np.pad(np.random.default_rng(1).random((12, 12, 12)), 1)
    signed = lambda found: trimesh.Trimesh(found[0], found[1].astype(int), process=False).volume
    first = signed(marching_cubes(noise, .5))
    monkeypatch.setitem(sys.modules, 'mcubes', None)
    assert first > 0 and signed(marching_cubes(noise, .5)) > 0

def test_vertices_in_the_middle_of_a_cube_stay_there(monkeypatch):
    "scikit-image puts some where no edge is; they have no two ends to bisect between"
    noise = torch.rand(14, 14, 14, generator=torch.Generator().manual_seed(0))
    def rough(x):
        return torch.nn.functional.grid_sample(noise[None, None], x.flip(-1)[None, None, None], align_corners=True)[0, 0, 0, 0], (x + 1)/2
    monkeypatch.setitem(sys.modules, 'mcubes', None)
    m = extract_mesh(rough, 14, threshold=.5, wall=1.)
    inner = m.vertices[m.vertices.norm(dim=-1) < .8]                       # away from the wall, where the density jumps
    assert to_trimesh(m).is_watertight and (rough(inner)[0] - .5).abs().max() < .1

def test_without_marching_cubes(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mcubes', None)
    monkeypatch.setitem(sys.modules, 'skimage', None)
    monkeypatch.setitem(sys.modules, 'skimage.measure', None)
    with pytest.raises(UserError, match='pip install PyMCubes'): marching_cubes(np.zeros((4, 4, 4)), .5)

def test_components_and_the_largest():
    def two(x):
        a, b = (x - torch.tensor([-.5, 0, 0])).norm(dim=-1) - .3, (x - torch.tensor([.6, 0, 0])).norm(dim=-1) - .1
        return 100*torch.sigmoid(-torch.minimum(a, b)/.01), x.abs()
    both = extract_mesh(two, 40)
    assert len(components(both).unique()) == 2
    one = largest_component(both)
    assert one.vertices[:, 0].max() < 0 and to_trimesh(one).is_watertight and len(one.colours) == len(one.vertices)
    assert torch.equal(one.colours, one.vertices.abs())

def test_threshold_of_a_plateau_is_halfway():
    grid = torch.zeros(20, 20, 20)
    grid[5:15, 5:15, 5:15] = 30.
    assert surface_threshold(grid, .1) == 15.

def test_empty_fields_say_so():
    nothing = lambda x: (torch.zeros(x.shape[:-1]), torch.ones_like(x))
    with pytest.raises(UserError, match='found is 0'): extract_mesh(nothing, 8)
    with pytest.raises(UserError, match='largest density found is 7.53'): extract_mesh(tent, 8, threshold=1000.)
    with pytest.raises(UserError, match='above 0'): extract_mesh(tent, 8, threshold=0.)
    with pytest.raises(UserError, match='at least 2'): extract_mesh(tent, 1)
    with pytest.raises(UserError, match='not finite'): extract_mesh(lambda x: (tent(x)[0]/0, x), 8)

def test_srgb_curve():
    linear = srgb_to_linear(torch.linspace(0, 1, 100))
    assert linear[0] == 0 and abs(linear[-1] - 1) < 1e-6 and (linear.diff() > 0).all()

def glb_parts(path):
    data = path.read_bytes()
    length, = struct.unpack_from('<I', data, 12)
    return json.loads(data[20:20 + length]), data[28 + length:]

def test_glb(ball, tmp_path):
    path = export_mesh(ball, tmp_path/'new'/'ball.glb')
    tree, binary = glb_parts(path)
    primitive = tree['meshes'][0]['primitives'][0]
    assert tree['materials'][primitive['material']]['pbrMetallicRoughness']['metallicFactor'] == 0
    assert {'POSITION', 'NORMAL', 'COLOR_0'} <= set(primitive['attributes'])
    accessor = tree['accessors'][primitive['attributes']['COLOR_0']]
    start = tree['bufferViews'][accessor['bufferView']]['byteOffset']
    stored = np.frombuffer(binary, np.uint8, 4*accessor['count'], start).reshape(-1, 4)
    np.testing.assert_allclose(stored[:, :3]/255, srgb_to_linear(ball.colours).numpy(), atol=.003)
    assert (stored[:, 3] == 255).all()
    back = trimesh.load(path, force='mesh', process=False)
    np.testing.assert_allclose(back.vertices, ball.vertices.numpy(), atol=1e-6)
    assert (back.faces == ball.faces.numpy()).all()

@pytest.mark.parametrize('suffix', ['obj', 'ply'])
def test_obj_and_ply_keep_srgb(ball, tmp_path, suffix):
    back = trimesh.load(export_mesh(ball, tmp_path/f'ball.{suffix}'), process=False, maintain_order=True)
    np.testing.assert_allclose(back.vertices, ball.vertices.numpy(), atol=1e-5)
    np.testing.assert_allclose(back.visual.vertex_colors[:, :3]/255, ball.colours.numpy(), atol=.005)

@pytest.mark.parametrize('name', ['ball.stl', 'ball', 'ball.png'])
def test_unknown_formats(ball, tmp_path, name):
    with pytest.raises(UserError, match='glb, .obj or .ply'): export_mesh(ball, tmp_path/name)
    assert not list(tmp_path.iterdir())

def test_volume_of_a_tetrahedron():
    corners = torch.tensor([[0., 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    m = Mesh(corners + 5, faces, torch.zeros(4, 3))
    assert math.isclose(volume(m), 1/6, rel_tol=1e-5) and math.isclose(volume(Mesh(corners, faces.flip(1), m.colours)), -1/6, rel_tol=1e-5)
