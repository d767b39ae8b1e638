"The studio as its user meets it: buttons, sentences and files without a browser, then everything in JupyterLab and in Notebook 7"
import base64, io, json, os, re, time, zipfile
from pathlib import Path
import pytest, torch
from conftest import run_cell
from dreamfusion_nb import readouts, runs, studio as module
from dreamfusion_nb.mesh import export_mesh, extract_mesh
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.shapeworld import as_field
from dreamfusion_nb.studio import FILES, Studio, packed
from dreamfusion_nb.utils import UserError
from test_texture import passed, validate                           # the Khronos validator

pytest.importorskip('ipywidgets')
TINY = dict(steps=12, sizes=((0., 12),), samples=8)

@pytest.fixture
def desk(tmp_path, monkeypatch):
    "A studio whose runs are over soon"
    mesh = extract_mesh(as_field('ball', 'red', edge=.05), 24)
    def results(scene, folder):
        scene.save(folder/'scene.safetensors')
        export_mesh(mesh, folder/'mesh.glb')
        (folder/'turntable.gif').write_bytes(b'GIF89a')
        return {'faces': len(mesh.faces)}
    monkeypatch.setattr(runs, 'write_results', results)
    made = Studio(tmp_path/'runs', device='cpu', **TINY)
    until(lambda: made.known)
    yield made
    made.session.stop()
    made.session.wait(600)

def until(condition, seconds=600):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(.01)

def text(widget): return re.sub('<[^>]*>', '', widget.value)

def finish(desk, prompt='a red ball'):
    desk.shell.prompt.value = prompt
    desk.shell.go.click()
    assert desk.session.wait(600) == 'finished', desk.session.error

def test_two_clicks_start_one_run(desk):
    desk.shell.prompt.value = 'a red ball'
    for _ in range(2): desk.shell.go.click()
    assert desk.shell.go.disabled and not desk.shell.halt.disabled
    assert desk.session.wait(600) == 'finished' and [p.name for p in desk.session.runs.iterdir()] == ['a-red-ball-seed0']
    assert not desk.shell.go.disabled and desk.shell.halt.disabled and desk.shell.on.disabled
    assert desk.viewer.title == 'a red ball' and desk.viewer.has_nerf and desk.shell.stage.children == (desk.viewer,)
    assert [label for label, _ in desk.shell.runs.options] == ['a red ball (seed 0)'] and desk.shell.strip.value[:4] == b'\x89PNG'

def test_stop_and_resume(desk):
    desk.shell.prompt.value = 'a red ball'
    desk.changes['steps'] = 300
    desk.shell.go.click()
    until(lambda: desk.session.step > 2)
    desk.shell.halt.click()
    assert desk.session.wait(600) == 'stopped' and 'Nothing is lost' in text(desk.shell.report) and not desk.shell.on.disabled
    assert desk.shell.runs.options[0][0] == 'a red ball (seed 0, unfinished)'
    at = desk.session.step
    desk.shell.on.click()
    until(lambda: desk.session.step > at)
    desk.shell.halt.click()
    assert desk.session.wait(600) == 'stopped'

@pytest.mark.parametrize('prompt, word', [('', 'empty'), ('   ', 'empty'), ('a red balll', 'balll'), ('a <b>ball</b>', 'not know the word')])
def test_a_bad_prompt_is_a_sentence_and_what_was_there_stays(desk, prompt, word):
    finish(desk)
    desk.shell.prompt.value = prompt
    desk.shell.go.click()
    assert word in text(desk.shell.message) and '<b>' not in desk.shell.message.value and desk.session.state == 'finished' and desk.viewer.title == 'a red ball'
    finish(desk, 'a blue ball')
    assert desk.shell.message.value == '' and desk.viewer.title == 'a blue ball'

def test_an_unknown_prior_is_a_sentence(desk):
    desk.shell.prompt.value, desk.shell.prior.value = 'a red ball', 'nowhere'
    desk.shell.go.click()
    assert desk.session.wait(600) == 'failed' and 'nowhere' in text(desk.shell.message) and 'No object yet' in text(desk.shell.report)

def test_completion_and_unknown_words_while_typing(desk):
    desk.shell.prompt.value = 'a red mu'
    assert desk.shell.prompt.options == ('a red mug', 'a red mushroom') and 'mug' in text(desk.shell.hint)
    desk.shell.prompt.value = 'a red mug'
    assert desk.shell.prompt.options == () and desk.shell.hint.value == ''
    desk.shell.prompt.value = 'a red mgu'
    assert 'did you mean mug' in text(desk.shell.hint)

def test_the_composer_writes_what_the_prior_reads(desk):
    s = desk.shell
    assert [d.label for d in (s.pattern, s.place)] == ['plain', 'alone']
    s.object.value, s.colour.value, s.pattern.value = 'elephant', 'orange', 'spotted'
    assert s.prompt.value == 'an orange spotted elephant' and s.second.disabled
    s.place.value = 'next to'
    assert s.prompt.value == 'an orange elephant next to a blue table' and s.pattern.disabled and not s.second.disabled and s.hint.value == ''

def test_runs_reopen(desk):
    finish(desk)
    finish(desk, 'a blue ball')
    desk.shell.runs.value = 'a-red-ball-seed0'
    desk.shell.reopen.click()
    assert desk.session.prompt == 'a red ball' == desk.viewer.title and 'a-red-ball-seed0' in text(desk.shell.report) and desk.shell.prompt.value == 'a red ball'
    again = Studio(desk.session.runs, device='cpu')                    # after a restart
    assert {name for _, name in again.shell.runs.options} == {'a-red-ball-seed0', 'a-blue-ball-seed0'} and again.session.state == 'idle'
    again.shell.reopen.click()
    assert 'list' in text(again.shell.message)

def test_a_broken_run_is_named_and_the_rest_goes_on(desk):
    (desk.session.runs/'torn').mkdir(parents=True)
    (desk.session.runs/'torn'/'run.json').write_text('{')
    desk.shell.renew.click()
    assert 'torn' in text(desk.shell.note) and 'damaged' in text(desk.shell.note)
    finish(desk)
    (desk.session.runs/'a-red-ball-seed0'/'scene.safetensors').write_bytes(b'x')
    desk.shell.runs.value = 'a-red-ball-seed0'
    desk.shell.reopen.click()
    assert 'damaged' in text(desk.shell.message) and desk.session.state == 'finished'

def test_every_file_can_be_taken(desk, tmp_path):
    finish(desk)
    field = as_field('ball', 'red', edge=.02)
    class Scene:
        prompt, settings = 'a red ball', runs.Settings()
    Scene.field = torch.nn.Identity()
    Scene.field.forward, Scene.field.density = lambda x, var=None: field(x), lambda x: field(x)[0]
    folder = desk.session.folder.out
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, 'open_run', lambda folder: Scene)
        m.setattr(module, 'make_asset', lambda field, **o: make(field, **{**o, 'resolution': 32, 'texture': o['texture'] and 64}))
        files = dict(packed(folder, kind)[::-1][::-1] for kind in FILES)
    assert list(files) == ['a-red-ball.glb', 'a-red-ball.zip', 'a-red-ball.ply', 'a-red-ball.gif', 'a-red-ball.html']
    assert files['a-red-ball.glb'][:4] == b'glTF' and files['a-red-ball.ply'][:3] == b'ply' and files['a-red-ball.gif'][:3] == b'GIF' and b'DreamViewer' in files['a-red-ball.html']
    assert zipfile.ZipFile(io.BytesIO(files['a-red-ball.zip'])).namelist() == ['a-red-ball.mtl', 'a-red-ball.obj', 'a-red-ball.png']
    desk.shell.files['gif'].click()
    until(lambda: 'download="a-red-ball.gif"' in desk.shell.link.value)
    assert base64.b64decode(re.search('base64,([^"]*)', desk.shell.link.value).group(1)) == b'GIF89a'
    (folder/'turntable.gif').unlink()
    desk.shell.files['gif'].click()
    until(lambda: 'turntable.gif' in text(desk.shell.link))

make = module.make_asset

def test_scenes(desk):
    desk.shell.put.click()
    assert 'Choose' in text(desk.shell.said)
    desk.shell.keep.click()
    assert 'first' in text(desk.shell.said)
    finish(desk)
    finish(desk, 'a blue ball')
    desk.shell.chosen.value = ('a-red-ball-seed0', 'a-blue-ball-seed0')
    desk.shell.put.click()
    panel, = desk.shell.panel.children
    before = panel.picture.value
    panel.sliders[1, 'yaw'].value = 90.
    assert [o.position[0] for o in desk.objects] == [-.65, .65] and desk.objects[1].yaw == 90. and panel.picture.value != before
    desk.shell.keep.click()
    saved = json.loads((desk.session.runs/'scene.json').read_text())
    assert [(o['run'], o['yaw']) for o in saved['objects']] == [('a-red-ball-seed0', 0.), ('a-blue-ball-seed0', 90.)]

def test_bad_options_are_named(tmp_path):
    with pytest.raises(UserError, match='draft'): Studio(tmp_path, quality='best')

def test_nothing_is_made_before_it_is_asked_for(tmp_path):
    Studio(tmp_path/'runs')
    assert not list(tmp_path.iterdir())

def test_it_shows_itself_as_its_box_does(desk):
    how = '_repr_mimebundle_' if hasattr(desk.shell.box, '_repr_mimebundle_') else '_ipython_display_'
    assert getattr(desk, how) == getattr(desk.shell.box, how) and not hasattr(desk, '_repr_png_')

# ---- in a browser

PICTURES = os.environ.get('STUDIO_PICTURES')   # a folder: save pictures of the page there, of a run of quality draft; nbs/images was made so: STUDIO_PICTURES=nbs/images pytest tests/test_studio.py -k "browser and lab"
CELL = '''import dreamfusion_nb.runs as runs
def film(scene, frames=36, size=128, make=runs.turntable): return make(scene, 4, 32)
def page(scene, size=96, make=runs.views_sheet): return make(scene, 16)
runs.turntable, runs.views_sheet = film, page                           # the long part of a short run
from dreamfusion_nb.studio import Studio
Studio('made', steps=40, samples=24, sizes=((0., 24),))'''
if PICTURES: CELL = "from dreamfusion_nb.studio import Studio\nStudio('made')"

def picture(page, name, wait=1):
    "The studio as it looks now, in a palette of 255 colours"
    if not PICTURES: return
    from PIL import Image
    page.wait_for_timeout(1000*wait)
    seen = Image.open(io.BytesIO(page.locator('.df-studio').screenshot())).convert('RGB')
    seen.quantize(255, dither=Image.Dither.NONE).save(Path(PICTURES)/f'{name}.png', optimize=True)

def notebook(path):
    cell = {'cell_type': 'code', 'id': 'a', 'metadata': {}, 'source': CELL, 'outputs': [], 'execution_count': None}
    path.write_text(json.dumps({'cells': [cell], 'metadata': {'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}}, 'nbformat': 4, 'nbformat_minor': 5}))

@pytest.mark.slow
@pytest.mark.parametrize('app', ['lab', 'notebook'])
def test_in_a_browser(app, watch_page, jupyter, tmp_path_factory, validate):
    folder = tmp_path_factory.mktemp(app)
    notebook(folder/'s.ipynb')
    page = watch_page(viewport=(1280, 1300), forgive=("reading 'schema'",))       # Notebook 7's own, when its settings are late
    page.set_default_timeout(3_000_000 if PICTURES else 120_000)
    page.goto(jupyter(app, folder) + {'lab': '/doc/tree/s.ipynb', 'notebook': '/notebooks/s.ipynb'}[app])
    page.wait_for_selector('.jp-Notebook .cm-content')
    run_cell(page, 0)
    page.wait_for_selector('.df-studio .df-prompt')
    def button(name): return page.get_by_role('button', name=name, exact=True)
    def strip(): return page.evaluate("document.querySelector('img.df-strip')?.src")
    def picture_changes(before): page.wait_for_function("before => (document.querySelector('img.df-strip')?.naturalWidth || 0) > 50 && document.querySelector('img.df-strip').src != before", arg=before)
    # a mistake, then a run
    page.locator('.df-prompt input').fill('a red mushroon')
    page.wait_for_selector('text=did you mean mushroom')
    page.locator('.df-prompt input').fill('a red mushroom')
    button('Generate').click()
    picture_changes(strip())
    picture_changes(strip())                                              # it is alive
    picture(page, 'studio-running', 45)
    button('Stop').click()
    page.wait_for_selector('text=Nothing is lost')
    assert (folder/'made'/'a-red-mushroom-seed0.partial'/'checkpoint.safetensors').exists()
    button('Resume').click()
    page.wait_for_selector('text=Finished: made/a-red-mushroom-seed0')
    # turn it and light it: the pixels change
    view = page.locator('.df-studio canvas').first
    view.scroll_into_view_if_needed()
    picture(page, 'studio', 12)
    page.get_by_role('radio', name='Mesh', exact=True).click()             # alone, so that no second picture comes when it is ready
    page.wait_for_timeout(1500)
    seen = view.screenshot()
    box = view.bounding_box()
    page.mouse.move(box['x'] + box['width']/3, box['y'] + box['height']/2)
    page.mouse.down()
    page.mouse.move(box['x'] + box['width']/3 + 90, box['y'] + box['height']/2 + 10, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1500)
    turned = view.screenshot()
    assert turned != seen
    page.get_by_role('slider', name='Elevation').fill('-60')
    page.wait_for_timeout(1500)
    assert view.screenshot() != turned
    # take it away
    button('GLB').click()
    page.wait_for_selector('a.df-link')
    with page.expect_download() as download: page.locator('a.df-link').click()
    assert download.value.suggested_filename == 'a-red-mushroom.glb'
    download.value.save_as(folder/'taken.glb')
    assert passed(validate(folder/'taken.glb'))['hasTextures']
