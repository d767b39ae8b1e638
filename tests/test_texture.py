"Lean meshes, textures and files: dull numbers, bad input, and the Khronos validator"
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
import trimesh
from dreamfusion_nb.mesh import Mesh, export_mesh, extract_mesh, vertex_normals, volume
from dreamfusion_nb.shapeworld import as_field
from dreamfusion_nb.texture import Textured, bake, make_asset, onto_surface, rasterise, save_asset, stand, texture_at, unwrap
from dreamfusion_nb.tidy import decimate, field_normals, fill_holes, finish, mend, merge_slivers, open_edges, report
from dreamfusion_nb.utils import UserError

MUG = as_field('mug', 'red', edge=.01, pattern='striped')

def tent(x): return 10*(1 - x.norm(dim=-1)), (x + 1)/2

@pytest.fixture(scope='module')
def ball(): return extract_mesh(tent, 32, threshold=4.)

@pytest.fixture(scope='module')
def globe(): return make_asset(tent, 32, 4., faces=600, texture=128, size=1.)

# ---- lean meshes

@pytest.mark.parametrize('name, euler', [('ball', 2), ('ring', 0), ('mug', 0), ('duck', 2)])
def test_euler_number_survives(name, euler):
    dense = extract_mesh(as_field(name, 'blue', edge=.01), 64)
    for mesh in (dense, merge_slivers(dense), decimate(merge_slivers(dense), 1000)):
        r, t = report(mesh), trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
        assert r['watertight'] and (r['euler'], r['parts']) == (euler, 1) == (t.euler_number, 1) and t.is_winding_consistent
        assert abs(volume(mesh)/volume(dense) - 1) < .02

@pytest.mark.parametrize('seed', range(3))
def test_a_rough_surface_stays_closed(seed):
    noise = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(seed))
    def rough(x):
        bumps = torch.nn.functional.grid_sample(noise[None, None], x[None, None, None].flip(-1), align_corners=True)[0, 0, 0, 0]
        return 40*torch.sigmoid((.5 - x.norm(dim=-1) + .3*(bumps - .5))/.02), (x + 1)/2
    dense = extract_mesh(rough, 64)
    lean = finish(rough, dense, 2000)
    assert report(lean)['watertight'] and report(lean)['parts'] == 1 and .9 < len(lean.faces)/2000 <= 1 and abs(volume(lean)/volume(dense) - 1) < .03

def test_mend_takes_out_what_lies_back_to_back(ball):
    flap = torch.tensor([[0, 1, 2], [2, 1, 0]])
    assert report(mend(replace(ball, faces=torch.cat([ball.faces, flap]))))['watertight'] and len(open_edges(mend(replace(ball, faces=ball.faces[5:])))) == 0

def test_decimation_keeps_to_its_count(ball):
    assert decimate(ball, 10**6) is ball
    for n in (500, 100, 20): assert n - 3 < len(decimate(ball, n).faces) <= n

def test_decimation_keeps_an_opening_that_is_meant(ball):
    bowl = replace(ball, faces=ball.faces[(ball.vertices[ball.faces][..., 2] < .3).all(1)])
    lean = decimate(bowl, 600)
    rim = lean.vertices[open_edges(lean).unique()]
    assert 300 < len(lean.faces) <= 600 and len(rim) > 8 and (rim[:, 2] > .2).all()

def test_without_the_libraries(ball, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fast_simplification', None)
    monkeypatch.setitem(sys.modules, 'xatlas', None)
    with pytest.raises(UserError, match='pip install fast-simplification'): decimate(ball, 100)
    with pytest.raises(UserError, match='pip install xatlas'): unwrap(ball, 64)
    assert len(finish(tent, ball, None).faces) > 1000                      # all triangles: no library is needed

def test_a_hole_of_any_small_size_is_closed(ball):
    for vertex in (10, 300, 700):
        filled = fill_holes(replace(ball, faces=ball.faces[(ball.faces != vertex).all(1)]))
        assert report(filled)['watertight'] and report(filled)['euler'] == 2 and len(filled.colours) == len(filled.vertices)

def test_normals_of_a_sphere(ball):
    n = field_normals(tent, ball)
    assert torch.allclose(n, torch.nn.functional.normalize(ball.vertices, dim=-1), atol=1e-3)
    flat = lambda x: (torch.full(x.shape[:-1], 5.), x)                     # a field without slope inside its sphere: the mesh's own stay
    assert torch.allclose(field_normals(flat, ball), vertex_normals(ball))

# ---- textures

def test_texture_of_a_sphere(globe):
    assert globe.image.shape == (3, 128, 128) and globe.uv.min() >= 0 and globe.uv.max() <= 1
    seen = texture_at(globe.image, globe.uv)
    assert (seen - globe.colours).abs().max() < .02 and report(globe)['watertight'] and report(globe)['euler'] == 2

def test_bake_asks_on_the_surface():
    near = lambda x: (100*torch.sigmoid((.6 - x.norm(dim=-1))/.005), (x.norm(dim=-1, keepdim=True) > .6).float().expand(-1, 3))    # black below a white skin
    mesh = finish(near, extract_mesh(near, 40, threshold=10.), 150)        # so coarse that its triangles run through the black
    assert .581 < mesh.vertices[mesh.faces].mean(1).norm(dim=-1).min() < .6
    assert bake(near, unwrap(mesh, 64), 64).image.min() > .99
    assert bake(near, replace(unwrap(mesh, 64), threshold=None), 64).image.min() < .01

def test_onto_surface_leaves_what_has_no_surface_near():
    x = torch.tensor([[.59, 0, 0], [.1, 0, 0]])
    moved = onto_surface(tent, x, torch.tensor([[1., 0, 0], [1, 0, 0]]), 4.)
    assert torch.allclose(moved, torch.tensor([[.6, 0, 0], [.1, 0, 0]]), atol=1e-3)

def test_rasterise_outside_and_flat():
    uv = torch.tensor([[-1., -1], [3, -1], [-1, 3], [.2, .2], [.4, .4], [.8, .8]])
    texel, face, w = rasterise(uv, torch.tensor([[0, 1, 2], [3, 4, 5]]), 8)
    assert len(texel) == 64 and (face == 0).all() and torch.allclose(w.sum(1), torch.ones(64))

def test_unwrapping_is_the_same_each_time(ball):
    one, two = (unwrap(decimate(ball, 300), 64) for _ in range(2))
    assert torch.equal(one.uv, two.uv) and torch.equal(one.faces, two.faces)

def test_obj_names_have_no_blanks(globe, tmp_path):
    save_asset(globe, tmp_path/'a red ball.obj')
    assert {p.name for p in tmp_path.iterdir()} == {'a red ball.obj', 'a-red-ball.mtl', 'a-red-ball.png'}
    back = trimesh.load(tmp_path/'a red ball.obj', force='mesh', process=False)
    assert back.visual.material.image.size == (128, 128)

# ---- the Khronos validator

VALIDATOR = 'gltf-validator@2.0.0-dev.3.10'

@pytest.fixture(scope='session')
def validate():
    "A function from a .glb to its issues; npm fetches the validator once"
    if not shutil.which('node') or not shutil.which('npm'): pytest.skip('the Khronos glTF validator needs Node.js with npm: install nodejs')
    home = Path(sys.prefix)/'share'/'gltf-validator' if sys.prefix != sys.base_prefix else Path(tempfile.gettempdir())/'gltf-validator'
    if not (home/'node_modules'/'gltf-validator').exists():
        home.mkdir(parents=True, exist_ok=True)
        try: done = subprocess.run(['npm', 'install', '--no-save', '--no-audit', '--no-fund', '--prefix', str(home), VALIDATOR], capture_output=True, timeout=120).returncode == 0
        except subprocess.TimeoutExpired: done = False
        if not done: pytest.skip(f'the Khronos glTF validator could not be fetched: npm install {VALIDATOR}')
    script = "const v = require('gltf-validator'); v.validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[1]))).then(r => console.log(JSON.stringify(r)))"
    def issues(path):
        r = subprocess.run(['node', '-e', script, str(path)], capture_output=True, text=True, timeout=120, cwd=home)
        return json.loads(r.stdout)
    return issues

def passed(found):
    counts = {k: found['issues'][k] for k in ('numErrors', 'numWarnings')}
    assert counts == {'numErrors': 0, 'numWarnings': 0}, found['issues']['messages'][:5]
    return found['info']

def test_validator_notices_errors(validate, globe, tmp_path):
    long = replace(globe, normals=globe.normals*1.5)
    path = save_asset(long, tmp_path/'long.glb')
    data = bytearray(path.read_bytes())
    data[8:12] = (len(data) - 4).to_bytes(4, 'little')                     # a wrong length in the header
    (tmp_path/'cut.glb').write_bytes(data)
    assert validate(tmp_path/'cut.glb')['issues']['numErrors'] > 0

@pytest.mark.parametrize('kind', ['texture', 'colours', 'parts', 'mesh.glb'])
def test_glb_is_valid(validate, tmp_path, kind):
    options = {'texture': dict(texture=128), 'colours': dict(texture=None), 'parts': dict(texture=64, keep_parts=True)}
    path = tmp_path/'mug.glb'
    if kind == 'mesh.glb': export_mesh(extract_mesh(MUG, 48), path)
    else: save_asset(make_asset(MUG, 48, faces=800, **options[kind]), path)
    info = passed(validate(path))
    assert info['totalTriangleCount'] > 700 and info['hasTextures'] == (kind in ('texture', 'parts')) and info['materialCount'] == 1

# ---- Blender

BLENDER = """
import json, sys
import bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[-1])
found = []
for o in bpy.data.objects:
    if o.type != 'MESH': continue
    v = [list(o.matrix_world @ p.co) for p in o.data.vertices]
    found.append({'low': [min(c) for c in zip(*v)], 'high': [max(c) for c in zip(*v)], 'triangles': len(o.data.polygons), 'uv': len(o.data.uv_layers), 'colours': len(o.data.color_attributes), 'smooth': sum(p.use_smooth for p in o.data.polygons)})
print('FOUND', json.dumps({'objects': found, 'images': [list(i.size) for i in bpy.data.images if i.size[0]]}))
"""

@pytest.fixture(scope='session')
def blender():
    "A function from a .glb to what Blender finds in it"
    if importlib.util.find_spec('bpy'): begin = [sys.executable, '-c', BLENDER]
    elif shutil.which('blender'): begin = ['blender', '--background', '--python-expr', BLENDER, '--']
    else: pytest.skip('opening meshes in Blender needs Blender: pip install bpy (370 MB), or a `blender` that can be called')
    def opened(path):
        done = subprocess.run([*begin, str(path)], capture_output=True, text=True, timeout=300)
        lines = [line for line in done.stdout.splitlines() if line.startswith('FOUND ')]
        assert lines, done.stdout[-2000:] + done.stderr[-2000:]
        return json.loads(lines[0][6:])
    return opened

@pytest.mark.parametrize('kind', ['texture', 'colours', 'mesh.glb'])
def test_glb_in_blender(blender, tmp_path, kind):
    "One object, with its colours, as large as ours and standing on its feet: our y is Blender's z"
    path = tmp_path/'mug.glb'
    if kind == 'mesh.glb': export_mesh(extract_mesh(MUG, 48), path)
    else: save_asset(make_asset(MUG, 48, faces=800, texture=128 if kind == 'texture' else None), path)
    found, ours = blender(path), trimesh.load(path, force='mesh', process=False)
    (thing,), (low, high) = found['objects'], ours.bounds
    assert thing['triangles'] == len(ours.faces) and thing['smooth'] > .9*len(ours.faces)      # Blender takes a face as flat where its corners' normals are its own
    assert np.allclose(thing['low'], [low[0], -high[2], low[1]], atol=1e-5) and np.allclose(thing['high'], [high[0], -low[2], high[1]], atol=1e-5)
    assert (thing['uv'], thing['colours'], found['images']) == ((1, 0, [[128, 128]]) if kind == 'texture' else (0, 1, []))
