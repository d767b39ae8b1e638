"What the benchmark says, and that the program starts without loading what it does not need"
import json, platform, subprocess, sys
import pytest, torch
from dreamfusion_nb import bench, cli, field, generate, rendering
from dreamfusion_nb.cameras import camera_rays, orbit
from dreamfusion_nb.generate import Dream, Settings
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.rendering import OccupancyGrid, render, render_in_chunks
from dreamfusion_nb.scene import make_field, normals_of
from dreamfusion_nb.shading import Light, diffuse_shade
from dreamfusion_nb.utils import UserError, seeded

HEAVY = {'torch', 'numpy', 'diffusers', 'transformers', 'matplotlib', 'PIL', 'scipy', 'trimesh', 'safetensors'}
CASE = {'name', 'quality', 'field', 'implementation', 'steps', 'step_s', 'steps_per_s', 'prior_s', 'step_over_prior', 'step_over_plain_mlp', 'render_over_plain_mlp', 'peak_mb', 'parts'}

@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)

@pytest.fixture(scope='module')
def prior(): return load_prior()

def loaded(*arguments):
    "Exit code of a command in a process of its own, and what that process had to import"
    call = 'import sys\nfrom dreamfusion_nb.cli import main\ntry: code = main(sys.argv[1:])\nexcept SystemExit as e: code = e.code\nprint()\nprint(code, *sys.modules)'
    done = subprocess.run([sys.executable, '-c', call, *arguments], capture_output=True, text=True, timeout=120)
    code, *modules = done.stdout.splitlines()[-1].split()
    return int(code or 0) if code != 'None' else 0, {m.split('.')[0] for m in modules}

@pytest.mark.parametrize('arguments, code', [(['--help'], 0), (['--version'], 0), (['generate', '--help'], 0), (['bench', '--help'], 0), (['generate', '--quality', 'best'], 2), ([], 2)])
def test_help_loads_nothing_heavy(arguments, code):
    said, modules = loaded(*arguments)
    assert said == code and 'argparse' in modules and not HEAVY & modules

def test_the_names_in_the_help_are_the_true_ones():
    from dreamfusion_nb.suites import SUITES
    assert (cli.QUALITIES, cli.FIELDS, cli.SUITES) == tuple(tuple(names) for names in (generate.QUALITIES, generate.FIELDS, SUITES))

def test_the_command_writes_the_table_as_json(tmp_path, capsys, monkeypatch):
    plain = bench.plain_mlp
    monkeypatch.setattr(bench, 'plain_mlp', lambda device, size: plain(device, 8))            # the yardstick takes seconds
    assert cli.main(['bench', '--quality', 'draft', '--field', 'grid', '--steps', '3', '--device', 'cpu', '--json', str(tmp_path/'a'/'b.json')]) == 0
    found, said = json.loads((tmp_path/'a'/'b.json').read_text()), capsys.readouterr().out
    case, = found['cases']
    assert CASE <= set(case) and {'version', 'torch', 'date', 'machine', 'device', 'threads', 'prior', 'clock', 'plain_mlp_s'} <= set(found)
    assert found['clock'] == 'process' and found['threads'] == 1 and case['steps'] == 3
    assert case['step_over_prior'] == pytest.approx(case['step_s']/case['prior_s']) and case['step_over_plain_mlp'] == pytest.approx(case['step_s']/found['plain_mlp_s'])
    assert tuple(case['parts']) == bench.PARTS and sum(case['parts'].values()) == pytest.approx(case['step_s'])
    assert 'draft, grid' in said and 'step/prior' in said

@pytest.mark.parametrize('arguments, word', [(['--device', 'cuda:99'], 'cuda:99'), (['--threads', '0'], 'thread'), (['--steps', '1', '--quality', 'draft'], 'two steps'), (['--prior', 'nowhere'], 'nowhere'), (['--quality', 'best'], 'best')])
def test_bad_input_is_one_sentence(arguments, word, capsys, monkeypatch):
    monkeypatch.setattr(bench, 'forward_backward', lambda picture, now, repeats=3: 1.)   # not what is asked here
    try: code = cli.main(['bench', *arguments])
    except SystemExit as e: code = e.code
    said = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and word in said[-1]

def test_the_stopwatch_changes_nothing(prior):
    def end(watched):
        dream = Dream('a red mug', prior, Settings(steps=3), 0)
        if watched:
            with bench.stopwatch(dream, bench.clock_for('cpu')) as spent: rows = list(dream)
            assert all(seconds > 0 for seconds in spent.values())
        else: rows = list(dream)
        return rows, dream.field.state_dict()
    before = generate.render, generate.normals_of, torch.Tensor.backward, torch.optim.Adam.step
    (rows, field), (again, same) = end(True), end(False)
    assert rows == again and all(torch.equal(v, same[k]) for k, v in field.items())
    assert before == (generate.render, generate.normals_of, torch.Tensor.backward, torch.optim.Adam.step) and 'eps' not in vars(prior)

def test_the_stopwatch_is_taken_away_after_an_error(prior):
    dream = Dream('a red mug', prior, Settings(steps=3), 0)
    with pytest.raises(KeyError):
        with bench.stopwatch(dream, bench.clock_for('cpu')): raise KeyError
    assert generate.render is rendering.render and 'regularizer' not in vars(dream)

def test_the_clock_does_not_count_others():
    torch.set_num_threads(1)
    assert bench.clock_for('cpu').__name__ == 'process_time'
    torch.set_num_threads(2)
    assert bench.clock_for('cpu').__name__ == 'perf_counter'

def test_growth():
    found = bench.growth(axes=dict(size=(8, 16), views=(1, 2)))
    assert found['size']['points'] == [8*8*48, 16*16*48] and found['views']['points'] == [48*48*48, 2*48*48*48]
    assert all(s > 0 for s in found['size']['seconds']) and found['views']['slope'] == found['views']['slope']

def test_the_hash_grid_in_pytorch_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(field, 'fast_grid', lambda **config: 'fast')
    with bench.without_tinycudann(): assert field.fast_grid() is None
    assert field.fast_grid() == 'fast'

def test_a_picture_in_chunks_is_the_same():
    f, cameras = make_field(Settings(), seeded(0)), orbit(torch.tensor([0., 100.]), 20.)
    half = torch.tensor([.5, .3])
    for views, options in ((cameras, dict(background=torch.rand(2, 21, 1, 3, generator=seeded(1)), shade=diffuse_shade(Light(cameras.position, half, half), 21**2), normals=normals_of(f, .03))),
                           (cameras, dict(normals=normals_of(f, 0.), occupied=OccupancyGrid().update(f.density, .05))), (orbit(30., 20.), dict(background=torch.ones(3)))):
        rays = camera_rays(views, 21)
        with torch.no_grad(): whole = render(f, rays, 16, **options)
        for chunk in (1000, 97):
            parts = render_in_chunks(f, rays, 16, rays_at_once=chunk, **options)
            for name in ('rgb', 'opacity', 'depth', 'normal'):
                off = (getattr(parts, name) - getattr(whole, name)).abs()
                assert off.max() < 1e-3 and off.mean() < 1e-6                # by rounding, a weight of just a thousandth may count in one and not in the other
            assert parts.weights is None and not parts.rgb.requires_grad

def test_bad_chunks_are_refused():
    f, rays = make_field(Settings(), seeded(0)), camera_rays(orbit(30., 20.), 4)
    with pytest.raises(UserError, match='at a time'): render_in_chunks(f, rays, rays_at_once=0)
    with pytest.raises(UserError, match='background'): render_in_chunks(f, rays, background=torch.ones(5, 3))
    with pytest.raises(UserError, match='no ray'): render_in_chunks(f, type(rays)(rays.ray_o[:0], rays.ray_d[:0]))

LARGE = '''
import resource, torch
torch.set_num_threads(1)
from dreamfusion_nb.cameras import camera_rays, orbit
from dreamfusion_nb.rendering import OccupancyGrid, render, render_in_chunks
from dreamfusion_nb.scene import Settings, make_field
from dreamfusion_nb.utils import seeded
f = make_field(Settings(), seeded(0))
rays, options = camera_rays(orbit(20., 20.), 1024), dict(background=torch.ones(3), occupied=OccupancyGrid().update(f.density, 5.))
seen = render_in_chunks(f, rays, 64, **options)
rows = type(rays)(rays.ray_o[500:516], rays.ray_d[500:516])
with torch.no_grad(): torch.testing.assert_close(render(f, rows, 64, **options).rgb, seen.rgb[500:516], atol=2e-6, rtol=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024)
'''

@pytest.mark.skipif(platform.system() != 'Linux', reason='the peak is read as Linux gives it')
def test_a_large_picture_fits_into_a_small_memory():
    "1024 x 1024 pixels with 64 samples each, in a process of its own: far below 4 GB, and the same pixels as without chunks"
    done = subprocess.run([sys.executable, '-c', LARGE], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2e9
