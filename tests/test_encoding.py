import math
import pytest, torch
from dreamfusion_nb.encoding import annealed_variance, integrated_positional_encoding, positional_encoding
from dreamfusion_nb.utils import UserError

@pytest.fixture
def x(): return 2*torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) - 1

def test_layout(x):
    for levels in (1, 8):
        out = positional_encoding(x, levels)
        assert out.shape == (40, 6*levels)
        for l in range(levels):
            for axis in range(3):
                assert torch.allclose(out[:, 6*l + axis], torch.sin(2**l*x[:, axis]), atol=1e-6)
                assert torch.allclose(out[:, 6*l + 3 + axis], torch.cos(2**l*x[:, axis]), atol=1e-6)

@pytest.mark.parametrize('shape', [(3,), (0, 3), (2, 5, 3), (4, 2), (7, 1)])
def test_shapes(shape):
    x = torch.zeros(shape)
    expected = (*shape[:-1], 2*shape[-1]*4)
    assert positional_encoding(x, 4).shape == integrated_positional_encoding(x, .1, 4).shape == expected

def test_variance_forms_agree(x):
    one = integrated_positional_encoding(x, .03)
    assert torch.equal(one, integrated_positional_encoding(x, torch.full((40,), .03)))
    assert torch.equal(one, integrated_positional_encoding(x, torch.full((40, 3), .03)))
    batch = x.reshape(4, 10, 3)
    assert torch.equal(one.reshape(4, 10, -1), integrated_positional_encoding(batch, torch.full((4, 10), .03)))

def test_one_variance_per_point_is_not_one_per_axis():
    x, var = torch.ones(3, 3), torch.tensor([0., .1, 1e6])                 # as many points as axes
    out = integrated_positional_encoding(x, var, 2)
    assert torch.equal(out[0], positional_encoding(x[0], 2)) and out[2].abs().max() == 0

def test_diagonal_variance_acts_on_its_own_axis(x):
    out = integrated_positional_encoding(x, torch.tensor([0., 0., 1e6]).expand(40, 3)).unflatten(-1, (8, 2, 3))
    plain = positional_encoding(x).unflatten(-1, (8, 2, 3))
    assert torch.equal(out[..., :2], plain[..., :2]) and out[..., 2].abs().max() == 0

def test_gradients(x):
    x = x[:4].double().requires_grad_()
    var = torch.full((4,), .05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: integrated_positional_encoding(x, v, 3), (x, var))
    assert torch.autograd.gradgradcheck(lambda x: positional_encoding(x, 2), (x,))

def test_float64_stays_float64():
    assert positional_encoding(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64

def test_schedule():
    assert annealed_variance(0) == .05**2 and annealed_variance(5000) == .002**2
    assert math.isclose(annealed_variance(2500, squared=False), .026)
    assert annealed_variance(-5) == annealed_variance(0)
    values = [annealed_variance(s) for s in range(0, 6000, 100)]
    assert values == sorted(values, reverse=True)

def test_against_the_formula_of_mipnerf(x):
    "All sines first, cosines as sines a quarter turn ahead, a full covariance projected on a basis; float64"
    root = .3*torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    cov, basis = root @ root.mT, torch.cat([2.**l*torch.eye(3) for l in range(8)], 1).double()
    angle, spread = x.double() @ basis, torch.einsum('ik,nij,jk->nk', basis, cov, basis)
    theirs = torch.exp(-torch.cat([spread, spread], -1)/2)*torch.sin(torch.cat([angle, angle + math.pi/2], -1))
    ours = integrated_positional_encoding(x, cov.diagonal(dim1=-2, dim2=-1).float())
    assert torch.allclose(ours.double(), theirs.unflatten(-1, (2, 8, 3)).transpose(1, 2).flatten(1), rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('squared, power', [(True, 2), (False, 1)])
def test_corner_points_of_the_schedule(squared, power):
    for step, size in ((-1, .05), (0, .05), (2500, .026), (5000, .002), (15000, .002)):
        assert math.isclose(annealed_variance(step, squared=squared), size**power)

@pytest.mark.parametrize('bad, named', [
    (lambda: positional_encoding(torch.tensor(1.)), r'x \(\)'), (lambda: positional_encoding(torch.arange(3)), 'int64'), (lambda: positional_encoding(torch.zeros(3), 0), 'levels = 0'),
    (lambda: integrated_positional_encoding(torch.zeros(4, 3), torch.zeros(5)), r'\(5,\)'), (lambda: integrated_positional_encoding(torch.zeros(4, 3), -1.), 'var = -1'),
    (lambda: integrated_positional_encoding(torch.zeros(4, 3), math.nan), 'var = nan'), (lambda: annealed_variance(0, steps=0), 'steps = 0'), (lambda: annealed_variance(0, start=-1.), 'start = -1')])
def test_bad_input_is_one_sentence(bad, named):
    with pytest.raises(UserError, match=rf'^[^\n]*{named}[^\n]*\.$'): bad()
