import copy, math
import numpy as np
import pytest, torch
import torch.nn.functional as F
from dreamfusion_nb.field import BackgroundMLP, GridField, HashField, NerfMLP, ResidualBlock, blob, exp_density, inside, softplus_density
from dreamfusion_nb.grids import HashGrid, enlarge, grid_lookup, hash_level, spatial_hash
from dreamfusion_nb.utils import UserError

def seeded(seed=0): return torch.Generator().manual_seed(seed)
def points(n=300): return 2*torch.rand(n, 3, generator=seeded()) - 1

FIELDS = {'nerf': lambda **k: NerfMLP(width=16, blocks=2, **k), 'hash': lambda **k: HashField(log2_size=10, levels=4, finest=64, **k),
          'grid': lambda **k: GridField((4, 8), **k)}
each_field = pytest.mark.parametrize('make', FIELDS.values(), ids=FIELDS)

@each_field
@pytest.mark.parametrize('shape', [(3,), (0, 3), (5, 3), (2, 4, 3)])
def test_shapes(make, shape):
    field, x = make(generator=seeded()), torch.full(shape, .1)
    density, albedo = field(x)
    assert density.shape == shape[:-1] and albedo.shape == shape
    assert torch.equal(field.density(x), density) and field.density(x, var=.01).shape == shape[:-1]

@each_field
def test_no_points_at_all(make):
    field = make(generator=seeded())
    density, albedo = field(torch.zeros(0, 3))                              # a renderer may find nothing to ask
    (density.sum() + albedo.sum()).backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in field.parameters())

@each_field
def test_nothing_outside_the_sphere(make):
    field = make(generator=seeded())
    assert (field.density(torch.tensor([[1.01, 0, 0], [.8, .8, 0], [5., 5, 5]])) == 0).all()
    assert field.density(torch.tensor([0., 0, .99])) > 0

@each_field
def test_same_seed_same_field(make):
    a, b, c = make(generator=seeded()), make(generator=seeded()), make(generator=seeded(1))
    x = points()
    assert torch.equal(a(x)[1], b(x)[1]) and not torch.equal(a(x)[1], c(x)[1])

@each_field
def test_building_a_field_leaves_the_global_generator_alone(make):
    torch.manual_seed(0); expected = torch.rand(3)
    torch.manual_seed(0); make(generator=seeded())
    assert torch.equal(torch.rand(3), expected)

@each_field
def test_saves_and_copies(make):
    field, other = make(generator=seeded()), make(generator=seeded(1))
    x = points()
    expected = field(x)[1].detach()
    assert torch.equal(copy.deepcopy(field)(x)[1], expected)               # also with a kept volume inside
    other(x)
    other.load_state_dict(field.state_dict())
    assert torch.equal(other(x)[1], expected)

@each_field
def test_every_parameter_learns(make):
    field = make(generator=seeded())
    density, albedo = field(points(2000))
    (density.mean() + albedo.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in field.parameters())

@pytest.mark.parametrize('name', ['nerf', 'hash'])
def test_normals_can_be_differentiated(name):
    field, x = FIELDS[name](generator=seeded()), points(20).mul(.4).requires_grad_()
    slope, = torch.autograd.grad(field.density(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert any(p.grad.abs().max() > 0 for p in field.parameters() if p.grad is not None)

def test_gradient_of_the_grid_field_by_differences():
    field, x = GridField((4, 8), generator=seeded()).double(), (.3*points(10)).double()
    x = (x*7/2).floor()*2/7 + .1                                            # inside voxels: no kink within a difference
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: field.sample(field.bake(), x), (x,))

def test_blob():
    x = torch.tensor([[0., 0, 0], [.2, 0, 0], [0, .2, .2]])
    assert torch.allclose(blob(x), 5*torch.exp(torch.tensor([0, -.5, -1])))
    assert inside(torch.tensor([[1., 0, 0], [0, 1.0001, 0]])).tolist() == [1, 0]

def test_densities_never_overflow_or_go_negative():
    logit, x = torch.tensor([-1e4, -50., 0, 50, 1e4]), torch.zeros(5, 3)
    for f in (exp_density, softplus_density): assert f(logit, x).isfinite().all() and (f(logit, x) >= 0).all()

def test_lookup_against_scipy():
    ndimage = pytest.importorskip('scipy.ndimage')
    volume, x = torch.randn(1, 2, 5, 5, 5, generator=seeded()), points()
    coordinates = ((x + 1)*2).flip(-1).T.numpy()                            # z, y, x in cells
    expected = np.stack([ndimage.map_coordinates(channel.numpy(), coordinates, order=1, mode='nearest') for channel in volume[0]], -1)
    assert torch.allclose(grid_lookup(volume, x), torch.from_numpy(expected), atol=1e-5)

@pytest.mark.parametrize('threads', [1, 2, 3])
@pytest.mark.parametrize('shape', [(7, 3), (2, 3, 3), (3,), (0, 3)])
def test_lookup_shares_the_points_out_to_the_threads(monkeypatch, threads, shape):
    volume, x, pushed = torch.randn(1, 4, 6, 6, 6, generator=seeded()), torch.rand(shape, generator=seeded())*2 - 1, []
    def values(v): return F.grid_sample(v, x.reshape(1, -1, 1, 1, 3), align_corners=True, padding_mode='border')[0, :, :, 0, 0].T.reshape(*shape[:-1], 4)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    for read in (values, lambda v: grid_lookup(v, x)):
        found = read(v := volume.clone().requires_grad_())
        (found*torch.arange(4)).sum().backward()
        pushed.append((found.detach(), v.grad))
    assert torch.equal(pushed[0][0], pushed[1][0]) and torch.allclose(pushed[0][1], pushed[1][1], atol=1e-6)

def test_lookup_outside_the_cube_takes_the_border():
    volume = torch.randn(1, 1, 3, 3, 3, generator=seeded())
    assert torch.equal(grid_lookup(volume, torch.tensor([[9., -9, 0]])), volume[:, :, 1, 0, 2])

@pytest.mark.parametrize('r, resolution', [(2, 9), (5, 9), (9, 9), (9, 4)])
def test_enlarge(r, resolution):
    grid = torch.randn(1, 3, r, r, r, generator=seeded())
    expected = F.interpolate(grid, (resolution,)*3, mode='trilinear', align_corners=True)
    assert torch.allclose(enlarge(grid, resolution), expected, atol=1e-5)

def test_volume_is_never_stale():
    field, x = GridField((4, 8), generator=seeded()), points(50)
    fresh = lambda: field.sample(field.bake(), x)[1]
    optimisers = [torch.optim.SGD(field.parameters(), 1.), torch.optim.Adam(field.parameters(), .1),
                  torch.optim.Adam(field.parameters(), .1, fused=True)]
    for optimiser in optimisers:
        for _ in range(2):
            optimiser.zero_grad()
            field(x)[1].sum().backward()
            with torch.no_grad(): field(x)                                  # a preview between backward and step
            optimiser.step()
            with torch.no_grad(): assert torch.equal(field(x)[1], fresh())
            assert torch.equal(field(x)[1], fresh())

def test_two_backward_passes_without_a_step():
    field, x = GridField((4, 8), generator=seeded()), points(50)
    field(x)[1].sum().backward()
    once = [p.grad.clone() for p in field.parameters()]
    field(x)[1].sum().backward()
    assert all(torch.allclose(p.grad, 2*g) for p, g in zip(field.parameters(), once))

def test_smoothness():
    field = GridField((4, 8), noise=1., generator=seeded())
    v = field.bake().detach().numpy()
    expected = np.mean([np.mean(np.diff(v, axis=a)**2) for a in (2, 3, 4)])
    assert math.isclose(field.roughness().item(), expected, rel_tol=1e-4)
    bends = np.mean([np.mean(np.diff(v, 2, axis=a)**2) for a in (2, 3, 4)])
    assert math.isclose(field.roughness(.5, 2.).item(), .5*expected + 2*bends, rel_tol=1e-4) and math.isclose(field.roughness(0., 1.).item(), bends, rel_tol=1e-4)
    assert GridField((4, 8), noise=0.).roughness(1., 1.) == 0

def slow_hash_grid(grid, x):
    "tiny-cuda-nn's rules once more, one point and one node at a time, in Python's integers"
    out = []
    for point in ((x + 1)/2).tolist():
        features, offset = [], 0
        for level in range(grid.config['n_levels']):
            scale = grid.config['base_resolution']*grid.config['per_level_scale']**level - 1
            side = math.ceil(scale) + 1
            rows = min((side**3 + 7)//8*8, 2**grid.config['log2_hashmap_size'])
            position = [c*scale + .5 for c in point]
            low = [math.floor(p) for p in position]
            total = 0
            for corner in range(8):
                node = [l + (corner >> axis & 1) for axis, l in enumerate(low)]
                weight = math.prod(p - l if corner >> axis & 1 else 1 - p + l for axis, (p, l) in enumerate(zip(position, low)))
                if side**3 <= rows: row = (node[0] + node[1]*side + node[2]*side**2) % rows
                else: row = (node[0] ^ node[1]*2654435761 % 2**32 ^ node[2]*805459861 % 2**32) % rows
                total = total + weight*grid.table[offset + row].detach()
            features.append(total); offset += rows
        out.append(torch.cat(features))
    assert offset == len(grid.table)
    return torch.stack(out)

def test_hash_grid_against_one_node_at_a_time():
    grid, x = HashGrid(levels=6, coarsest=4, finest=100, log2_size=9, generator=seeded()), points(20)
    grid.table.data *= 1e4                                                  # its first values are tiny
    assert any(r == 2**9 for r in grid.rows) and any(r < 2**9 for r in grid.rows)
    assert torch.allclose(grid(x), slow_hash_grid(grid, x), atol=1e-4)      # 1e-4: float32 positions on 100 cells

def test_hash_spreads():
    side = torch.arange(16)
    node = torch.cartesian_prod(side, side, side)
    row = spatial_hash(node, 2**12)
    assert 0 <= row.min() and row.max() < 2**12
    assert row.unique().numel() > 2**12*(1 - math.exp(-1))*.9               # 4096 nodes drawn by lot would hit 63 % of 4096 rows

def test_coarse_levels_have_a_row_for_every_node():
    table = torch.arange(512.)[:, None]
    unit = (torch.cartesian_prod(*[torch.arange(7)]*3) + .5)/7
    assert hash_level(table, unit, 7.).unique().numel() == 343

def test_background():
    background = BackgroundMLP(generator=seeded())
    d = F.normalize(points(30).reshape(5, 6, 3), dim=-1)
    assert background(d).shape == (5, 6, 3) and ((background(d) > 0) & (background(d) < 1)).all()

def test_background_has_the_numbers_counted_by_hand():
    assert sum(p.numel() for p in BackgroundMLP().parameters()) == 25*64 + 65*64 + 65*3

def test_a_block_without_its_second_layer_changes_nothing():
    block, h = ResidualBlock(16, seeded()), torch.randn(5, 16, generator=seeded())
    for p in block.second.parameters(): p.data.zero_()
    assert torch.equal(block(h), h)

def test_blob_before_the_exponential_multiplies_and_can_be_removed():
    logit, x = torch.tensor([-3., 0., 2., -30.]), points(4)*.5
    assert torch.allclose(exp_density(logit, x, before=True), exp_density(logit, x, height=0.)*blob(x).exp(), rtol=1e-5)
    assert exp_density(torch.tensor(-30.), torch.zeros(3), before=True) < 1e-10 < exp_density(torch.tensor(-30.), torch.zeros(3))

@pytest.mark.parametrize('density', [exp_density, softplus_density])
def test_the_scene_can_be_as_large_as_the_papers(density):
    x, logit = torch.tensor([[1.39, 0, 0], [1.41, 0, 0]]), torch.zeros(2)
    assert (density(logit, x) == 0).all() and (density(logit, x, radius=1.4) > 0).tolist() == [True, False]

@each_field
def test_points_of_the_wrong_shape(make):
    for bad in (torch.zeros(4, 2), torch.tensor(1.)):
        with pytest.raises(UserError, match=r'^x must be points or directions \(\.\.\., 3\), got [^\n]+\.$'): make()(bad)

@pytest.mark.parametrize('bad', [lambda: BackgroundMLP()(torch.zeros(5, 2)), lambda: inside(torch.zeros(2)), lambda: grid_lookup(torch.zeros(4, 5, 5, 5), torch.zeros(2, 3)),
                                 lambda: exp_density(torch.zeros(4), torch.zeros(4, 2))])
def test_bad_input_is_one_sentence(bad):
    with pytest.raises(UserError, match=r'^[^\n]+\.$'): bad()
