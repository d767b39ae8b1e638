"The viewer: what Python refuses and sends, the page in a browser, the widget in JupyterLab and Notebook 7, and that the bundles are what their source says"
import base64, io, json, re, shutil, subprocess, sys, time
from pathlib import Path
import pytest, torch
from conftest import run_cell
from dreamfusion_nb import viewer as module
from dreamfusion_nb.eye import NerfEye, environments, picture_bytes, sky
from dreamfusion_nb.lights import irradiance
from dreamfusion_nb.mesh import extract_mesh
from dreamfusion_nb.scene import Scene, Settings, make_field
from dreamfusion_nb.texture import make_asset
from dreamfusion_nb.utils import UserError, seeded
from dreamfusion_nb.viewer import OPTIONS, Shown, glb_of, save_html, to_show, viewer_html

ROOT = Path(__file__).parent.parent

def two_tone(x, var=None):
    "A ball, red on its +X side and green on the other, with a blue nose in front"
    outside_nose = (x - torch.tensor([0., 0., .55])).norm(dim=-1) - .25
    nose, outside = outside_nose < .01, torch.minimum(x.norm(dim=-1) - .55, outside_nose)
    albedo = torch.where(x[..., :1] > 0, torch.tensor([.9, .1, .1]), torch.tensor([.1, .7, .1]))
    return 100*torch.sigmoid(-outside/.01), torch.where(nose[..., None], torch.tensor([.1, .2, .9]), albedo)

def run_folder(folder, prompt):
    "A run that has just begun, as if it were finished"
    from dreamfusion_nb import __version__
    settings = Settings()
    Scene(make_field(settings, seeded(0)), prompt, settings, 0).save(folder/'scene.safetensors')
    (folder/'run.json').write_text(json.dumps(dict(prompt=prompt, settings={}, version=__version__)))
    return folder

@pytest.fixture(scope='module')
def ball():
    mesh = extract_mesh(two_tone, 40)
    return Shown(glb_of(mesh), 'a ball', None, False)

# ---- Python alone

@pytest.mark.parametrize('options', [dict(mode='x'), dict(environment='x'), dict(environment='picture'), dict(light_colour='#12345'), dict(background='auto '), dict(ambient=3), dict(height=True), dict(nothing=1)])
def test_bad_options_get_a_sentence(ball, options):
    with pytest.raises(UserError): viewer_html(ball, **options)
    with pytest.raises(UserError): module.Viewer(ball, **options)

def test_a_run_folder_is_shown_with_its_nerf(tmp_path):
    run_folder(tmp_path, 'a ball')
    shown = to_show(tmp_path)
    assert shown.title == 'a ball' and shown.scene is not None and not shown.fit and shown.glb[:4] == b'glTF'
    (tmp_path/'mesh.glb').write_bytes(b'glTF')
    with pytest.raises(UserError, match='mesh.glb'): to_show(tmp_path)

def test_the_command_saves_a_page(tmp_path, capsys):
    from dreamfusion_nb.cli import main
    run_folder(tmp_path, 'a <b>red</b> ball')
    assert main(['export', str(tmp_path), '--format', 'html', '--faces', '400', '--texels', '64', '--resolution', '40']) == 0, capsys.readouterr().err
    page, = tmp_path.glob('*.html')
    assert page.name in capsys.readouterr().out and '<title>a &lt;b&gt;red&lt;/b&gt; ball</title>' in page.read_text()

def test_nothing_is_imported_that_is_not_there():
    "Without widgets pages are made, and the widget asks for its extra"
    code = 'import sys; sys.modules["anywidget"] = None\nimport dreamfusion_nb.viewer as v\nassert len(v.viewer_html(None)) > 1e5\ntry: v.Viewer\nexcept v.UserError as e: print(e)'
    said = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True)
    assert 'dreamfusion_nb[studio]' in said.stdout and not said.stderr

def test_traits_are_checked_and_load_keeps_the_light(ball):
    import traitlets
    viewer = module.Viewer(ball, light_azimuth=10)
    with pytest.raises(traitlets.TraitError): viewer.mode = 'shiny'
    viewer.load(Shown(ball.glb + b'', 'another', None, True))
    assert (viewer.title, viewer.light_azimuth, viewer.fit, viewer.nerf_version) == ('another', 10., True, 1) and isinstance(viewer, module.Viewer)
    viewer.close()
    assert viewer.glb == b'' and viewer._esm == ''

def test_the_page_of_a_widget_has_its_light(ball, tmp_path):
    viewer = module.Viewer(ball, mode='normals', elevation=-5)
    viewer.surround(torch.rand(3, 4, 8))
    text = viewer.save_html(tmp_path/'page.html').read_text()
    assert '"mode":"normals"' in text and '"elevation":-5.0' in text and 'data:image/png;base64,' in text

def test_a_screenshot_is_written_when_it_arrives(ball, tmp_path):
    viewer = module.Viewer(ball)
    sent = []
    viewer.send = lambda content, buffers=None: sent.append(content)
    viewer.screenshot(tmp_path/'a.png')
    viewer.hear(viewer, {'kind': 'screenshot', 'id': 7}, [b'stray'])
    viewer.hear(viewer, {'kind': 'screenshot', 'id': sent[0]['id']}, [b'picture'])
    assert (tmp_path/'a.png').read_bytes() == b'picture' and len(list(tmp_path.iterdir())) == 1

# ---- the page in a browser

def pixels(png):
    from PIL import Image
    import numpy as np
    picture = Image.open(io.BytesIO(png)).convert('RGB')
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)/255

def shot(page):
    "What the viewer itself says is to be seen"
    data = page.evaluate('''async () => { const b = await viewer.screenshot(), r = new FileReader(); return new Promise(done => { r.onload = () => done(r.result); r.readAsDataURL(b) }) }''')
    return pixels(base64.b64decode(data.split(',')[1]))

def opened(make, folder, what, viewport=(480, 360), context={}, **options):
    page = make(viewport, **context)
    page.goto(save_html(what, folder/'page.html', **options).as_uri(), wait_until='commit')
    page.wait_for_function('globalThis.viewer', timeout=60000)
    page.evaluate('viewer.ready()')
    return page

def apart(a, b): return (a - b).abs().mean().item()

def test_hands_and_keys(watch_page, tmp_path, ball):
    page = opened(watch_page, tmp_path, ball, azimuth=0, elevation=0, background='#ffffff')
    stage, first = page.locator('.stage'), shot(page)
    box = stage.bounding_box()
    x, y = box['x'] + box['width']/2, box['y'] + box['height']/2
    def drag(dx, dy):
        page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x + dx, y + dy, steps=3); page.mouse.up()
    drag(-100, 0)
    assert page.evaluate('viewer.get().azimuth') == pytest.approx(50) and apart(shot(page), first) > .01     # to the left: the right side comes
    red = shot(page)
    assert (red[0] > 1.5*red[1]).float().mean() > (red[1] > 1.5*red[0]).float().mean()                           # +X is red
    page.keyboard.press('r')
    assert apart(shot(page), first) < 1e-3
    page.keyboard.down('Shift'); drag(60, 0); page.keyboard.up('Shift')
    assert page.evaluate('viewer.get().light_azimuth') == pytest.approx(-5) and page.evaluate('viewer.get().azimuth') == 0
    assert apart(shot(page), first) > .005
    for key, name, value in (('ArrowRight', 'azimuth', -5), ('ArrowUp', 'elevation', 5), ('Shift+ArrowRight', 'light_azimuth', 0), ('4', 'mode', 'normals'), ('t', 'auto_turn', True), ('t', 'auto_turn', False)):
        page.keyboard.press(key)
        assert page.evaluate(f'viewer.get().{name}') == value or name == 'azimuth', key
    before = page.evaluate('viewer.get().distance')
    page.keyboard.press('+')
    page.mouse.wheel(0, -100)
    page.wait_for_function(f'viewer.get().distance < {before/1.2}')
    with page.expect_download() as download: page.keyboard.press('s')
    assert download.value.suggested_filename == 'a-ball.png' and Path(download.value.path()).read_bytes()[:4] == b'\x89PNG'
    with page.expect_download() as download: page.get_by_label('Save the object as .glb').click()
    assert Path(download.value.path()).read_bytes() == ball.glb
    page.evaluate('viewer.set({mode: "shaded", auto_turn: true})')
    turned = page.evaluate('viewer.get().azimuth')
    page.wait_for_function(f'Math.abs(viewer.get().azimuth - {turned}) > 1')

def test_mesh_and_nerf_agree_under_every_light(watch_page, tmp_path, ball):
    "The same picture from three.js and from our renderer, to the mirror, the curve of sRGB and the side of the sky that the light comes from"
    eye = NerfEye(Scene(two_tone, '', Settings(), 0))
    view = dict(azimuth=25., elevation=15., light_azimuth=90., light_elevation=10., light_colour='#ffc080', light_intensity=.8, ambient=.3)
    quarter = torch.zeros(3, 32, 64)
    quarter[:, :, 32:48] = .9                                                      # light comes from azimuths 0 to 90
    quarter = picture_bytes(quarter)
    page = opened(watch_page, tmp_path, ball, (160, 160), background='#ffffff', controls=False, environment_picture=quarter, **view)
    for changed in (dict(mode='albedo'), dict(mode='shaded'), dict(mode='textureless'), dict(mode='normals'), dict(mode='textureless', environment='picture', light_intensity=0., ambient=1.), dict(mode='shaded', environment='studio', azimuth=-20.)):
        now = {**OPTIONS, **view, **changed}
        page.evaluate(f'viewer.set({json.dumps({**view, "environment": "none", **changed})})')
        page.evaluate('viewer.ready()')
        seen = eye({**now, 'width': 160, 'height': 160, 'top': 0, 'rows': 160}, 128, quarter)
        nerf, opacity, mesh = (seen[..., :3] + 1 - seen[..., 3:]).movedim(-1, 0), seen[..., 3], shot(page)
        inside = (-torch.nn.functional.max_pool2d(-(opacity > .995).float()[None], 9, 1, 4))[0] > .5             # away from the outline
        difference, mirrored = ((mesh - p).abs().amax(0)[inside & inside.flip(-1)].median().item() for p in (nerf, nerf.flip(-1)))
        assert difference < .07 and mirrored > 2*difference, (changed, difference, mirrored)
        outside = (torch.nn.functional.max_pool2d((opacity > .01).float()[None], 5, 1, 2))[0] < .5
        assert mesh[:, outside].min() > .99, changed

def test_a_texture_lies_as_the_colours_of_the_corners_do(watch_page, tmp_path):
    "The same object with a picture around it and with coloured corners, as three.js opens both: nothing is flipped or shifted"
    mesh = extract_mesh(two_tone, 40)
    kinds = {'corners': mesh, 'picture': make_asset(two_tone, 40, faces=2000, texture=256)}
    seen = {}
    for name, what in kinds.items():
        page = opened(watch_page, tmp_path, Shown(glb_of(what), name), (240, 240), background='#ffffff', mode='albedo', controls=False, azimuth=20., elevation=10., distance=3.)
        seen[name] = [shot(page)]
        page.evaluate('viewer.set({azimuth: 200})')
        seen[name].append(shot(page))
    for one, other in zip(*seen.values()): assert apart(one, other) < .01 < .05 < apart(one, other.flip(-1)), (apart(one, other), apart(one, other.flip(-1)))

def test_the_skies_are_the_same(watch_page, tmp_path):
    page = opened(watch_page, tmp_path, None)
    for name in environments():
        painted, light = (torch.tensor(page.evaluate(f'Array.from({call})')).view(16, 32, 3).movedim(-1, 0) for call in (f'DreamViewer.paint("{name}", 16)', f'DreamViewer.irradiance(DreamViewer.paint("{name}", 16), 16)'))
        assert torch.allclose(painted, sky(name, 16), atol=2e-3)
        from dreamfusion_nb.lights import sphere_map
        assert torch.allclose(light, irradiance(sky(name, 16), sphere_map(16)[0]).movedim(-1, 0), atol=2e-3)
    assert page.evaluate('DreamViewer.environments') == list(environments())
    ours, theirs = {**OPTIONS, 'environment_picture': None}, page.evaluate('DreamViewer.defaults')
    assert ours == theirs

def test_surroundings_are_seen_and_a_picture_may_be_broken(watch_page, tmp_path, ball):
    spot = torch.zeros(3, 64, 128)
    spot[0, 30:34, 83:87] = 1.                                                     # red, at azimuth 30: 60 degrees to the right of +X
    page = opened(watch_page, tmp_path, ball, environment_picture=spot, mode='textureless', azimuth=-150, elevation=0, light_intensity=0)
    behind = shot(page)                                                            # the spot is behind the ball
    page.evaluate('viewer.set({distance: 12})')
    far = shot(page)
    assert (far[0] - far[1]).max() > .9 and (behind[0] - behind[1]).max() < .9
    page.evaluate('viewer.set({environment_picture: "data:image/png;base64,AAAA"})')
    page.locator('.note.on', has_text='cannot be read').wait_for()

def test_what_is_wrong_is_said(watch_page, tmp_path, ball):
    page = opened(watch_page, tmp_path, None, title='<i>nothing</i> </script>')
    assert page.title() == '<i>nothing</i> </script>'
    assert page.locator('.note.on').inner_text() == 'Nothing to show yet.'
    page.evaluate('viewer.load(new Uint8Array([1, 2, 3]))')
    page.locator('.note.on', has_text='no GLB file').wait_for()
    page.evaluate(f'viewer.load(DreamViewer.decode("{base64.b64encode(ball.glb).decode()}"))')
    assert page.locator('.note.on').count() == 0
    page.evaluate('viewer.set({mode: "x", azimuth: NaN, light_colour: "url(http://example.com)", nothing: 1})')
    assert page.evaluate('[viewer.get().mode, viewer.get().azimuth, viewer.get().light_colour]') == ['shaded', 30, '#ffffff']
    page.evaluate('viewer.dispose()')
    assert page.locator('.stage').count() == 0

def test_a_stranger_s_file_fetches_nothing(watch_page, tmp_path, ball):
    "A picture at an address of its own stays there"
    length = int.from_bytes(ball.glb[12:16], 'little')
    tree, rest = json.loads(ball.glb[20:20 + length]), ball.glb[20 + length:]
    tree['images'], tree['textures'] = [{'uri': 'http://example.com/spy.png'}], [{'source': 0}]
    tree['materials'] = [{'pbrMetallicRoughness': {'baseColorTexture': {'index': 0}}}]
    for m in tree['meshes']:
        for p in m['primitives']: p['material'] = 0; p['attributes']['TEXCOORD_0'] = p['attributes']['POSITION']
    text = json.dumps(tree).encode()
    text += b' '*(-len(text) % 4)
    data = b'glTF' + (2).to_bytes(4, 'little') + (20 + len(text) + len(rest)).to_bytes(4, 'little') + len(text).to_bytes(4, 'little') + b'JSON' + text + rest
    page = opened(lambda v: watch_page(v, forgive=('GLTFLoader', 'ERR_', 'Failed to load')), tmp_path, Shown(data, 'spy'))
    page.wait_for_timeout(300)

def test_without_webgl_there_is_a_sentence(watch_page, tmp_path, ball):
    page = watch_page((600, 400), forgive=('WebGL',))
    page.add_init_script('const get = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext = function(kind, ...more) { return /webgl/.test(kind) ? null : get.call(this, kind, ...more) }')
    page.goto(save_html(ball, tmp_path/'page.html').as_uri(), wait_until='commit')
    page.locator('.note.on', has_text='WebGL').wait_for()

@pytest.mark.parametrize('width, scheme', [(390, 'light'), (390, 'dark'), (1100, 'dark')])
def test_everything_fits(watch_page, tmp_path, ball, width, scheme):
    page = opened(watch_page, tmp_path, ball, (width, 640), dict(color_scheme=scheme))
    page.evaluate('viewer.set({mode: "wireframe"})')
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert page.locator('.dv').get_attribute('data-theme') == scheme
    for button in page.locator('.bar button:visible').all():
        b = button.bounding_box()
        assert b['x'] >= 0 and b['x'] + b['width'] <= width + .5 and b['height'] >= 26
    if width < 640:
        assert not page.locator('.panel').is_visible()
        page.get_by_label('Light and surroundings (L)').click()
    assert page.locator('.panel').is_visible()
    page.get_by_role('slider', name='Ambient').press('ArrowRight')
    assert page.evaluate('viewer.get().ambient') == pytest.approx(.41)
    page.get_by_role('radio', name='Sunset').click()
    assert page.evaluate('viewer.get().environment') == 'sunset'
    page.get_by_role('radio', name='Albedo').click()
    page.keyboard.press('ArrowRight')
    assert page.evaluate('viewer.get().mode') == 'textureless'

def test_fingers(watch_page, tmp_path, ball):
    page = opened(watch_page, tmp_path, ball, (390, 640), dict(has_touch=True))
    touch = page.context.new_cdp_session(page)
    def fingers(kind, *points): touch.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': [{'x': x, 'y': y, 'id': i} for i, (x, y) in enumerate(points)]})
    before = page.evaluate('viewer.get()')
    fingers('touchStart', (200, 200)); fingers('touchMove', (140, 200)); fingers('touchEnd')
    assert page.evaluate('viewer.get().azimuth') == pytest.approx(before['azimuth'] + 30, abs=2)
    fingers('touchStart', (150, 200), (250, 200)); fingers('touchMove', (100, 200), (300, 200)); fingers('touchEnd')
    assert page.evaluate('viewer.get().distance') < .7*before['distance']

# ---- the widget where it lives

CELLS = '''import torch
from dreamfusion_nb.viewer import Viewer
from dreamfusion_nb.scene import Scene, Settings, make_field
from dreamfusion_nb.utils import seeded
scene = Scene(make_field(Settings(), seeded(0)), 'a blob', Settings(), 0)
viewer = Viewer(scene, azimuth=0)
viewer''', 'viewer.light_azimuth = 120; viewer.mode = "normals"', 'print("azimuth", viewer.azimuth); viewer.screenshot("shot.png")'

def notebook(cells): return json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')),
    cells=[dict(cell_type='code', id=f'c{i}', metadata={}, source=c, outputs=[], execution_count=None) for i, c in enumerate(cells)]))

@pytest.mark.slow
@pytest.mark.parametrize('app, where', [('lab', '/lab/tree/'), ('notebook', '/notebooks/')])
def test_in_a_notebook(jupyter, watch_page, tmp_path_factory, app, where):
    folder = tmp_path_factory.mktemp(app)
    (folder/'v.ipynb').write_text(notebook(CELLS))
    page = watch_page((1200, 1100), forgive=("reading 'schema'",))                 # Notebook 7's own, when its settings are late
    page.goto(jupyter(app, folder) + where + 'v.ipynb', wait_until='commit', timeout=120000)
    page.locator('.cm-content').first.wait_for(timeout=120000)
    page.wait_for_function('document.querySelector(".jp-Notebook-ExecutionIndicator, .jp-NotebookKernelStatus, .jp-Notebook")', timeout=60000)
    run_cell(page, 0)
    stage = page.locator('.jp-OutputArea-output .stage')
    stage.wait_for(timeout=120000)
    page.locator('.tag', has_text=re.compile(r'NeRF, \d+ × \d+')).wait_for(timeout=60000)       # the NeRF has answered
    first = pixels(stage.screenshot())
    run_cell(page, 1)
    page.locator('[data-value=normals][aria-checked=true]').wait_for(timeout=30000)             # Python speaks
    page.wait_for_timeout(400)
    assert apart(pixels(stage.screenshot()), first) > .01
    box = stage.bounding_box()
    page.mouse.move(box['x'] + 100, box['y'] + 100); page.mouse.down(); page.mouse.move(box['x'] + 40, box['y'] + 100, steps=3); page.mouse.up()
    page.wait_for_timeout(500)
    run_cell(page, 2)
    said = page.locator('.jp-OutputArea-output', has_text='azimuth 3')                          # the hand speaks: 30 degrees
    said.wait_for(timeout=30000)
    end = time.time() + 30
    while not (folder/'shot.png').exists(): assert time.time() < end; page.wait_for_timeout(100)
    assert pixels((folder/'shot.png').read_bytes()).std() > .05

# ---- the bundles

@pytest.mark.slow
def test_the_bundle_is_what_its_source_says(tmp_path):
    if not shutil.which('npm'): pytest.skip('no npm: apt-get install npm')
    js = Path(shutil.copytree(ROOT/'js', tmp_path/'js', ignore=shutil.ignore_patterns('node_modules')))
    done = subprocess.run(['npm', 'ci', '--no-audit', '--no-fund'], cwd=js, text=True, capture_output=True, timeout=300)
    if done.returncode and re.search(r'ENOTFOUND|ECONN|ETIMEDOUT|EAI_AGAIN|network', done.stderr): pytest.skip('the npm registry cannot be reached')
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path/'out').mkdir()
    subprocess.run(['npm', 'run', 'build', '--', str(tmp_path/'out')], cwd=js, check=True, capture_output=True, timeout=120)
    for file in (tmp_path/'out').iterdir(): assert file.read_bytes() == (ROOT/'dreamfusion_nb'/'static'/file.name).read_bytes(), f'{file.name}: run npm ci && npm run build in js'
    assert {f.name for f in (tmp_path/'out').iterdir()} == {'viewer.js', 'environments.json'}
    assert 'Permission is hereby granted' in (tmp_path/'out'/'viewer.js').read_text()[:2000]
