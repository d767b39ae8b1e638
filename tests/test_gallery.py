"Many prompts and their page: what is broken gets a sentence and the others go on; the page in a real browser, from the disk and from a web server"
import errno, functools, html.parser, http.server, json, os, re, shutil, threading
from pathlib import Path
import pytest
import torch
from PIL import Image, ImageDraw
from dreamfusion_nb import __version__, batch, cli, gallery, runs
from dreamfusion_nb.gallery import find_runs, light_mesh, make_gallery, pictures_of, read_glb, read_run
from dreamfusion_nb.mesh import Mesh, export_mesh
from dreamfusion_nb.utils import UserError
from dreamfusion_nb.viewer import in_script

NASTY = '</script><script>alert(1)</script><img src=x onerror=alert(2)> "quotes" \'and\' \\ & <!-- __DATA__ \u2028 \ud800'

def ball():
    import trimesh
    m = trimesh.creation.icosphere(3)                                     # 1280 triangles
    v = torch.tensor(m.vertices).float()*torch.tensor([.8, .5, .3])
    return Mesh(v, torch.tensor(m.faces), (v + 1)/2)

def film(path, hue, frames=36, size=48):
    pictures = []
    for i in range(frames):
        picture = Image.new('RGB', (size, size), 'white')
        ImageDraw.Draw(picture).rectangle([4 + i, 10, 12 + i, 38], fill=f'hsl({hue}, 80%, 45%)')
        pictures.append(picture)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=80, loop=0)

def write_run(folder, prompt='a red ball', score=None, mesh=True, **record):
    "A run as it lies on the disk, but made in no time"
    folder.mkdir(parents=True)
    record = {'prompt': prompt, 'seed': 0, 'quality': 'draft', 'prior': 'embedded', 'settings': {'steps': 800, 'sizes': [[0., 32]]}, 'version': __version__, 'device': 'cpu', 'state': 'finished',
              'scores': {'faces': 1280}, 'seconds': {'total': 75.}} | record
    (folder/'run.json').write_text(json.dumps(record))
    film(folder/'turntable.gif', len(prompt)*37 % 360)
    if mesh: export_mesh(ball(), folder/'mesh.glb')
    if score is not None: (folder/'marks.json').write_text(json.dumps({'r_colour': score, 'r_geometry': score, 'iou': score}))
    return folder

@pytest.fixture(scope='module')
def some(tmp_path_factory):
    "Six runs and what can be wrong with others"
    folder = tmp_path_factory.mktemp('some')
    write_run(folder/'a-red-ball', 'a red ball', 1.)
    write_run(folder/'a-blue-cube', 'a blue cube', .5, prior='stable-diffusion')
    write_run(folder/'deep'/'a-green-cone', 'a green cone', .25)
    write_run(folder/'nasty', NASTY)
    write_run(folder/'a-pale-fish', 'a pale fish', mesh=False)
    write_run(folder/'a-blind-mole', 'a blind mole')
    (folder/'a-blind-mole'/'turntable.gif').write_bytes(b'GIF89a no film')
    write_run(folder/'half'/'run-at-work.partial')
    write_run(folder/'broken')
    (folder/'broken'/'run.json').write_text('{"prompt": ')
    write_run(folder/'odd', prompt=['no', 'sentence'])
    write_run(folder/'lost')
    (folder/'lost'/'run.json').unlink()
    (folder/'holiday').mkdir()
    (folder/'holiday'/'beach.txt').touch()
    return folder, *make_gallery(folder)

def data_of(page): return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])

# ---- the page as a file

def test_broken_runs_get_a_sentence_and_the_others_a_card(some):
    folder, page, remarks = some
    assert page == folder/'index.html'
    data = data_of(page)
    assert sorted(i['run'] for i in data['items']) == ['a-blind-mole', 'a-blue-cube', 'a-green-cone', 'a-pale-fish', 'a-red-ball', 'nasty']
    said = '\n'.join(remarks)
    assert data['notes'] == remarks and len(remarks) == 6
    for name, why in (('half/run-at-work.partial', 'not finished'), ('broken', 'run.json is damaged'), ('odd', 'does not describe'), ('lost', 'no run.json'), ('a-pale-fish', 'no mesh.glb'), ('a-blind-mole', 'turntable.gif')):
        assert re.search(rf'^{name}: .*{re.escape(why)}', said, re.M), (name, said)

def test_text_stays_text(some):
    _, page, _ = some
    class Counted(html.parser.HTMLParser):
        scripts = pictures = 0
        def handle_starttag(self, tag, attributes):
            self.scripts += tag == 'script'
            self.pictures += tag == 'img'
    parser = Counted()
    parser.feed(page.read_text())
    assert (parser.scripts, parser.pictures) == (2, 0)
    assert next(i for i in data_of(page)['items'] if i['run'] == 'nasty')['prompt'] == ' '.join(NASTY.split())
    assert '__DATA__' not in re.sub(r'<script type="application/json".*?</script>', '', page.read_text(), flags=re.S)

def test_title_is_escaped(tmp_path):
    write_run(tmp_path/'r', mesh=False)
    page, _ = make_gallery(tmp_path, title='<b>__DATA__ & co</b>')
    assert '<title>&lt;b&gt;__DATA__ &amp; co&lt;/b&gt;</title>' in page.read_text() and data_of(page)['title'] == '<b>__DATA__ & co</b>'

@pytest.mark.parametrize('text', ['{"prompt": "x", "seed": NaN, "scores": {"faces": 1e999}, "seconds": {"total": -Infinity}, "settings": {"lr": NaN}}', '{"prompt": "x", "seed": true, "settings": [], "seconds": 3, "prior": {}}'])
def test_odd_values_do_not_reach_the_page(tmp_path, text):
    run = write_run(tmp_path/'r', mesh=False)
    (run/'run.json').write_text(text)
    (run/'marks.json').write_text('{"r_colour": NaN, "iou": "good"}')
    found = read_run(run)
    assert found['seed'] is None and found['score'] is None and found['about']['seconds'] is None
    in_script(found)
    page, _ = make_gallery(tmp_path)
    assert 'NaN' not in (page.parent/'index-files'/f'{data_of(page)["items"][0]["id"]}.js').read_text()

@pytest.mark.parametrize('make, word', [(lambda f: None, 'There is no finished run'), (lambda f: write_run(f/'x.partial'), 'not finished'), (lambda f: f.rmdir(), 'There is no folder'), (lambda f: (f.rmdir(), f.touch()), 'There is no folder')])
def test_a_folder_without_runs(tmp_path, make, word):
    folder = tmp_path/'runs'
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=word): make_gallery(folder)
    assert not list(tmp_path.rglob('index*'))

def test_other_pages_are_left_alone(tmp_path):
    write_run(tmp_path/'r', mesh=False)
    (tmp_path/'index.html').write_text('<h1>My holiday</h1>')
    with pytest.raises(UserError, match='no gallery'): make_gallery(tmp_path)
    (tmp_path/'page-files').mkdir()
    (tmp_path/'page-files'/'beach.jpg').touch()
    with pytest.raises(UserError, match='other things'): make_gallery(tmp_path, tmp_path/'page.html')
    assert (tmp_path/'index.html').read_text() == '<h1>My holiday</h1>' and len(list((tmp_path/'page-files').iterdir())) == 1
    assert make_gallery(tmp_path, tmp_path/'new')[0] == tmp_path/'new'/'index.html'

def test_only_what_changed_is_made_again(tmp_path, monkeypatch):
    for name in 'abc': write_run(tmp_path/name, f'a ball {name}', mesh=False)
    make_gallery(tmp_path)
    made, inner = [], gallery.write_item
    monkeypatch.setattr(gallery, 'write_item', lambda run, *rest: made.append(run.name) or inner(run, *rest))
    shutil.rmtree(tmp_path/'a')
    os.utime(tmp_path/'b'/'run.json', (1e9, 1e9))
    page, _ = make_gallery(tmp_path)
    assert made == ['b'] and [i['run'] for i in data_of(page)['items']] == ['b', 'c'] and {f.name[0] for f in (tmp_path/'index-files').glob('*.webp')} == {'b', 'c'}
    next((tmp_path/'index-files').glob('c-*.js')).unlink()
    make_gallery(tmp_path)
    assert made == ['b', 'c']
    make_gallery(tmp_path, faces=100)
    assert made == ['b', 'c', 'b', 'c']

def details(page, item):
    text = (page.with_name(page.stem + '-files')/f'{item["id"]}.js').read_text()
    return json.loads(re.fullmatch(r'DreamGallery\.take\("[^"]*",(.*)\);\n', text, re.S)[1])

def test_downloads_are_there_wherever_the_page_is(some, tmp_path):
    folder, page, _ = some
    def addresses(page): return {i['run']: [a for _, a, _ in details(page, i)['links']] for i in data_of(page)['items']}
    assert 'deep/a-green-cone/mesh.glb' in addresses(page)['a-green-cone']
    away, _ = make_gallery(folder, tmp_path/'site'/'show.html')
    for links in addresses(away).values():
        assert links and all((away.parent/a).is_file() and a.startswith('show-files/') for a in links)
    bare, _ = make_gallery(folder, tmp_path/'bare', copies=False)
    assert not any(addresses(bare).values())

def test_a_link_to_a_file_elsewhere_is_offered_as_it_is(tmp_path):
    run = write_run(tmp_path/'runs'/'one')
    (run/'mesh.glb').rename(tmp_path/'elsewhere.glb')
    (run/'mesh.glb').symlink_to(tmp_path/'elsewhere.glb')
    page, _ = make_gallery(tmp_path/'runs')
    (item,) = data_of(page)['items']
    assert 'one/mesh.glb' in [address for _, address, _ in details(page, item)['links']]

def test_names_of_any_kind(tmp_path):
    write_run(tmp_path/'a b #1?%', mesh=False)
    write_run(tmp_path/'Eine rote Tasse äöü 杯', mesh=False)
    write_run(tmp_path/'x'/'same', mesh=False)
    write_run(tmp_path/'y'/'same', mesh=False)
    page, _ = make_gallery(tmp_path)
    items = data_of(page)['items']
    assert len({i['id'] for i in items}) == 4 and all(re.fullmatch(r'[a-z0-9-]+', i['id']) for i in items)
    from urllib.parse import unquote
    for i in items: assert all((tmp_path/unquote(a)).is_file() and not set(a) & set(' #?') for _, a, _ in details(page, i)['links'])

def test_pictures_come_from_the_film_or_else_from_the_views(tmp_path):
    run = write_run(tmp_path/'r', mesh=False)
    assert len(pictures_of(run)) == 18 and pictures_of(run)[9].getpixel((18 + 8, 20))[2] < 200 and pictures_of(run)[0].getpixel((18 + 8, 20)) == (255, 255, 255)    # half way round is frame 18 of 36
    (run/'turntable.gif').unlink()
    views = Image.new('RGB', (8*20 + 14, 4*20 + 6), 'white')
    for i in range(8): ImageDraw.Draw(views).rectangle([i*22, 22, i*22 + 19, 41], fill=(20*i, 0, 200))
    views.save(run/'views.png')
    assert [p.getcolors() for p in pictures_of(run)] == [[(400, (20*i, 0, 200))] for i in range(8)]
    (run/'views.png').write_bytes(b'')
    with pytest.raises(UserError, match='views.png'): pictures_of(run)

def test_the_light_mesh_is_the_mesh(tmp_path):
    import trimesh
    run = write_run(tmp_path/'r')
    whole = ball()
    back = read_glb(run/'mesh.glb')
    assert torch.equal(back.faces, whole.faces) and torch.allclose(back.vertices, whole.vertices, atol=1e-6)
    (tmp_path/'light.glb').write_bytes(light_mesh(run, 400))
    light = trimesh.load(tmp_path/'light.glb', force='mesh', process=False)
    assert len(light.faces) == 400 and light.is_watertight
    assert light.volume == pytest.approx(trimesh.load(run/'mesh.glb', force='mesh').volume, rel=.03)
    assert (light.vertices*2048 == (light.vertices*2048).round()).all()
    again = read_glb(tmp_path/'light.glb')
    nearest = (again.vertices[:, None] - whole.vertices).norm(dim=-1).argmin(1)
    assert (again.colours - back.colours[nearest]).abs().max() < .06
    for damage in (lambda b: b[:200], lambda b: b'', lambda b: b'hello' + b[5:], lambda b: b[:30] + b'{{{' + b[33:]):
        whole_file = (run/'mesh.glb').read_bytes()
        (tmp_path/'broken').mkdir(exist_ok=True)
        (tmp_path/'broken'/'mesh.glb').write_bytes(damage(whole_file))
        with pytest.raises(UserError, match='mesh.glb is damaged'): light_mesh(tmp_path/'broken')

def test_a_mesh_of_another_kind_is_taken_as_it_is(tmp_path):
    import trimesh
    run = write_run(tmp_path/'r', mesh=False)
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(uv=box.vertices[:, :2], image=Image.new('RGB', (4, 4), 'red'))
    box.export(run/'mesh.glb')
    assert light_mesh(run) == (run/'mesh.glb').read_bytes()

# ---- many prompts

@pytest.fixture
def quick(monkeypatch): monkeypatch.setattr(runs, 'write_results', lambda scene, folder: scene.save(folder/'scene.safetensors') and {'faces': 0})   # drawing is not what is tested here

def test_a_list_goes_past_what_fails_and_on_where_it_stopped(tmp_path, quick, monkeypatch):
    prompts, inner, calls = ['a red ball', 'a red balll', 'a green cone', '??'], batch.generate_run, []
    def stopped(prompt, *rest, **options):
        calls.append(prompt)
        if prompt == 'a green cone' and len(calls) == 3:
            def tell(step):
                if step == 2: signal_stop()
            options['progress'] = tell
        return inner(prompt, *rest, **options)
    def signal_stop(): os.kill(os.getpid(), 2)                            # a real Ctrl-C, in the middle of the third run
    monkeypatch.setattr(batch, 'generate_run', stopped)
    with pytest.raises(KeyboardInterrupt): batch.make_many(prompts, tmp_path/'many', steps=4, progress=False)
    assert sorted(p.name for p in (tmp_path/'many').iterdir()) == ['a-green-cone-seed0.partial', 'a-red-ball-seed0']
    before = (tmp_path/'many'/'a-red-ball-seed0'/'run.json').stat().st_mtime_ns
    rows = batch.make_many(prompts, tmp_path/'many', steps=4, progress=False)
    assert [r['state'] for r in rows] == ['there', 'failed', 'made', 'failed'] and "'balll'" in rows[1]['why']
    assert (tmp_path/'many'/'a-red-ball-seed0'/'run.json').stat().st_mtime_ns == before
    said = batch.table_of(rows)
    assert '2 of 4 failed' in said and "a red balll: The prior does not know" in said
    again = batch.make_many(prompts[:1], tmp_path/'many', steps=5, progress=False)
    assert again[0]['state'] == 'failed' and 'other settings' in again[0]['why']
    assert batch.make_many(prompts[:1], tmp_path/'many', steps=5, progress=False, overwrite=True)[0]['state'] == 'made'

def test_prompts_of_one_name_keep_their_folders(tmp_path):
    unfinished = lambda name, prompt: write_run(tmp_path/name, prompt, mesh=False)
    assert batch.home_of('A mug!', 0, tmp_path).out.name == 'a-mug-seed0'
    unfinished('a-mug-seed0', 'a mug')
    unfinished('a-mug-2-seed0.partial', 'A mug?')
    assert [batch.home_of(p, 0, tmp_path).out.name for p in ('A mug!', 'a mug', 'A mug?', '!!')] == ['a-mug-3-seed0', 'a-mug-seed0', 'a-mug-2-seed0', 'run-seed0']
    assert len(batch.home_of('x'*500, 0, tmp_path).out.name) < 80

def test_anything_may_fail_but_a_full_disk_stops(tmp_path, monkeypatch):
    def broken(prompt, *_, **__): raise {'a': RuntimeError('out of memory\nmany lines'), 'b': PermissionError(errno.EACCES, 'no', 'x'), 'c': OSError(errno.ENOSPC, 'full', 'x')}[prompt]
    monkeypatch.setattr(batch, 'generate_run', broken)
    rows = batch.make_many(['a', 'b'], tmp_path/'many', progress=False)
    assert rows[0]['why'] == 'RuntimeError: out of memory' and rows[1]['state'] == 'failed'
    with pytest.raises(OSError): batch.make_many(['a', 'c', 'b'], tmp_path/'many', progress=False)

# ---- the command line

def said(capsys, *arguments):
    try: code = cli.main(list(map(str, arguments)))
    except SystemExit as e: code = e.code
    out, err = capsys.readouterr()
    return code, out, err

def test_generate_prompts_exit_codes(tmp_path, monkeypatch, capsys):
    (tmp_path/'good.txt').write_text('a red ball\n')
    (tmp_path/'mixed.txt').write_text('a red ball\n\na red balll\n')
    def there(prompt, out, *_, **__):
        if 'balll' in prompt: raise UserError('no such word')
        return write_run(Path(out), prompt, mesh=False, settings=json.loads(json.dumps(runs.asdict(runs.QUALITIES['draft']))))
    monkeypatch.setattr(batch, 'generate_run', there)
    code, out, err = said(capsys, 'generate', '--prompts', tmp_path/'good.txt', '--out', tmp_path/'many')
    assert code == 0 and 'dreamfusion gallery' in out and 'failed' not in err
    code, out, err = said(capsys, 'generate', '--prompts', tmp_path/'mixed.txt', '--out', tmp_path/'many')
    assert code == 1 and re.search(r'^a red ball +there', out, re.M) and re.search(r'^a red balll +failed', out, re.M) and 'a red balll: no such word' in out and '1 of 2' in err.splitlines()[-1]
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(batch, 'generate_run', stop)
    (tmp_path/'new.txt').write_text('a blue ball\n')
    code, _, err = said(capsys, 'generate', '--prompts', tmp_path/'new.txt', '--out', tmp_path/'many')
    assert code == 130 and 'the same command goes on' in err.splitlines()[-1]

@pytest.mark.parametrize('arguments, code, word', [
    (['generate', 'a mug', '--prompts', 'list.txt'], 2, 'not allowed'), (['generate', '--prompts'], 2, 'expected one argument'), (['generate', '--prompts', 'nowhere.txt'], 1, 'nowhere.txt'),
    (['generate', '--prompts', 'empty.txt'], 1, 'no prompt'), (['generate', '--prompts', 'list.txt', '--out', 'list.txt'], 1, 'is a file'), (['generate', '--prompts', 'list.txt', '--prior', 'holiday'], 1, 'holiday'),
    (['gallery'], 2, 'folder'), (['gallery', 'holiday'], 1, 'no finished run'), (['gallery', 'nowhere'], 1, 'no folder'), (['gallery', 'list.txt'], 1, 'no folder'),
    (['render', 'holiday'], 1, 'holiday'), (['render', 'holiday', '--what', 'x'], 2, "'x'"), (['render', 'holiday', '--elevation', 'nan'], 1, '--elevation'), (['render', 'holiday', '--size', '0'], 1, '--size')])
def test_bad_usage(tmp_path, monkeypatch, capsys, arguments, code, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'list.txt').write_text('a red ball\n')
    (tmp_path/'empty.txt').write_text('\n')
    (tmp_path/'holiday').mkdir()
    before = sorted(tmp_path.rglob('*'))
    found, _, err = said(capsys, *arguments)
    assert found == code and word in err.splitlines()[-1] and sorted(tmp_path.rglob('*')) == before

def test_gallery_command(tmp_path, capsys):
    write_run(tmp_path/'good', mesh=False)
    write_run(tmp_path/'bad.partial', mesh=False)
    code, out, err = said(capsys, 'gallery', tmp_path, '--title', 'Mine')
    assert code == 0 and 'index.html' in out and 'bad.partial: the run is not finished' in err and '<title>Mine</title>' in (tmp_path/'index.html').read_text()

def test_render_command(tmp_path, capsys):
    from dreamfusion_nb.scene import Scene, Settings, make_field
    run = write_run(tmp_path/'r', mesh=False)
    torch.manual_seed(0)
    Scene(make_field(Settings()), 'a red ball', Settings(), 0).save(run/'scene.safetensors')
    code, out, err = said(capsys, 'render', run, '--what', 'colour', 'shaded', 'textureless', 'normals', 'depth', '--azimuth', '0', '90', '180', '--size', '16', '--samples', '24', '--light', '90', '0', '--ambient', '0', '--background', '0')
    assert code == 0, err
    with Image.open(run/'render.png') as p:
        assert p.size == (3*16 + 4, 5*16 + 8)
        row = lambda k: [sum(p.getpixel((x + 18*i, 18*k + y))[0] for x in range(16) for y in range(16)) for i in range(3)]
        lit = row(2)                                                     # a lamp at 90 degrees: from there it is all light, from the front half of it
        assert lit[1] > 1.5*max(lit[0], lit[2])
    code, out, err = said(capsys, 'render', run, '--turntable', '--frames', '5', '--size', '8', '--samples', '4', '--out', tmp_path/'film.gif')
    assert code == 0 and Image.open(tmp_path/'film.gif').n_frames >= 1
    assert said(capsys, 'render', run, '--out', 'a.gif')[0] == 1 and said(capsys, 'render', run, '--turntable', '--out', 'a.png')[0] == 1

# ---- in a browser

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

@pytest.fixture(scope='module')
def served(some):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(some[0])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/index.html'
    server.shutdown()

@pytest.fixture(params=['disk', 'server'])
def address(request, some): return some[1].as_uri() if request.param == 'disk' else request.getfixturevalue('served')

def shown(page): return page.eval_on_selector_all('.card', 'cards => cards.filter(c => c.offsetParent).map(c => c.title)')
def hint(page, word): page.wait_for_function('word => document.getElementById("hint").textContent.includes(word)', arg=word, timeout=60000)
def card(page, prompt): return page.locator('.card', has=page.get_by_text(prompt, exact=True))

def test_search_filter_and_order(watch_page, address):
    page = watch_page()
    page.on('dialog', lambda d: pytest.fail('a prompt was run'))
    page.goto(address)
    assert len(shown(page)) == 6 and shown(page)[:3] == ['a red ball', 'a blue cube', 'a green cone']                # best first
    assert page.locator('#notes li').count() == 6
    nasty = page.locator('.card', has_text='alert(1)')
    assert nasty.locator('b').text_content().startswith('</script><script>alert(1)') and page.locator('main img[src="x"]').count() == 0
    page.locator('#search').press_sequentially('bal')
    assert shown(page) == ['a red ball']
    page.fill('#search', 'CUBE  blue')
    assert shown(page) == ['a blue cube'] and page.inner_text('#count') == '1 of 6 objects'
    page.fill('#search', 'zebra')
    assert shown(page) == [] and page.is_visible('#nothing')
    page.click('#reset')
    assert len(shown(page)) == 6 and not page.is_visible('#nothing')
    page.select_option('#prior', 'stable-diffusion')
    assert shown(page) == ['a blue cube']
    page.select_option('#prior', '')
    page.fill('#score', '0.5')
    assert shown(page) == ['a red ball', 'a blue cube']                                                                # those without marks have no score
    page.fill('#score', '0')
    page.select_option('#order', 'name')
    assert shown(page)[1:] == ['a blind mole', 'a blue cube', 'a green cone', 'a pale fish', 'a red ball']

def test_hover_turns_and_click_orbits(watch_page, address):
    page = watch_page()
    page.goto(address)
    ball = card(page, 'a red ball')
    ball.hover()
    page.wait_for_function('document.querySelector(".shot[data-frame]")')
    first = ball.locator('.shot').screenshot(animations='disabled')
    page.wait_for_function('+document.querySelector(".shot[data-frame]")?.dataset.frame > 4')
    assert ball.locator('.shot').screenshot() != first
    page.hover('h1')
    assert page.locator('.shot[data-frame]').count() == 0
    ball.click()
    hint(page, 'Drag to orbit')
    stage = page.locator('#stage')
    def look():
        page.evaluate('() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
        return stage.screenshot()
    before, box = look(), stage.bounding_box()
    assert look() == before                                                                                            # it stands still
    x, y = box['x'] + box['width']/2, box['y'] + box['height']/2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 80, y, steps=3)
    page.mouse.up()
    assert look() != before
    facts = page.inner_text('#facts')
    assert 'IoU' in facts and 'Mesh (.glb)' in facts
    with page.expect_download() as light: page.click('#save')
    assert Path(light.value.path()).read_bytes()[:4] == b'glTF' and light.value.suggested_filename == 'a-red-ball-small.glb'
    page.click('.settings summary')
    assert '[[0,32]]' in page.inner_text('.settings')
    page.keyboard.press('Escape')
    page.wait_for_function('document.activeElement.title === "a red ball"')
    assert not page.is_visible('#dialog')

def test_what_is_missing_is_said_in_its_place(watch_page, some):
    page = watch_page()
    page.goto(some[1].as_uri())
    assert card(page, 'a blind mole').locator('.none').text_content() == 'no picture'
    card(page, 'a pale fish').click()
    hint(page, 'There is no mesh.glb.')
    stage = page.locator('#stage > div')
    page.wait_for_function('document.querySelector("#stage [data-frame]")')
    box = stage.bounding_box()
    page.mouse.move(box['x'] + 200, box['y'] + 100)
    page.mouse.down()
    page.mouse.move(box['x'] + 100, box['y'] + 100, steps=4)
    page.mouse.up()
    assert stage.get_attribute('data-frame') == '8'
    page.keyboard.press('Escape')
    card(page, 'a blind mole').click()
    hint(page, 'Drag to orbit')

def test_a_page_without_its_files_says_so(watch_page, some, tmp_path):
    shutil.copy(some[1], tmp_path)
    page = watch_page(forgive=('ERR_FILE_NOT_FOUND',))
    page.goto((tmp_path/'index.html').as_uri())
    card(page, 'a red ball').click()
    hint(page, 'is missing')

def test_keyboard_alone(watch_page, some):
    page = watch_page()
    page.goto(some[1].as_uri())
    page.focus('#order')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.title') == 'a red ball'
    page.wait_for_function('document.querySelector(".shot[data-frame]")')
    page.keyboard.press('ArrowRight')
    frame = page.get_attribute('.shot[data-frame]', 'data-frame')
    page.keyboard.press('ArrowRight')
    assert int(page.get_attribute('.shot[data-frame]', 'data-frame')) == (int(frame) + 1) % 18
    page.keyboard.press('Enter')
    hint(page, 'Drag to orbit')
    page.click('#after')
    page.wait_for_function('document.getElementById("prompt").textContent === "a blue cube"')
    assert page.is_enabled('#before')
    page.keyboard.press('Escape')
    page.wait_for_function('document.activeElement.title === "a blue cube"')

def test_still_for_those_who_ask(watch_page, some):
    page = watch_page(reduced_motion='reduce')
    page.goto(some[1].as_uri())
    ball = card(page, 'a red ball')
    ball.hover()
    page.wait_for_function('document.querySelector(".shot[data-frame]")')
    box = ball.locator('.shot').bounding_box()
    for share, frame in ((.1, '1'), (.6, '10')):
        page.mouse.move(box['x'] + share*box['width'], box['y'] + 20)
        page.wait_for_timeout(300)
        assert ball.locator('.shot').get_attribute('data-frame') == frame

@pytest.mark.parametrize('width', [320, 700])
def test_narrow_screens_and_the_dark(watch_page, some, width):
    page = watch_page((width, 640), color_scheme='dark')
    page.goto(some[1].as_uri())
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(23, 24, 27)'
    card(page, 'a red ball').click()
    hint(page, 'Drag to orbit')
    assert page.evaluate('document.getElementById("dialog").scrollWidth') <= width and page.locator('#stage').bounding_box()['width'] > 250

def test_without_webgl_the_pictures_turn(watch_page, some):
    page = watch_page()
    page.add_init_script('HTMLCanvasElement.prototype.getContext = () => null')
    page.goto(some[1].as_uri())
    card(page, 'a red ball').click()
    hint(page, 'no WebGL')
    page.wait_for_function('document.querySelector("#stage [data-frame]")')

def multiplied(page, n):
    "The page of a few runs as one of n: each item again and again, with files of its own"
    data, files = data_of(page), page.with_name(page.stem + '-files')
    items = []
    for i in range(n):
        item = data['items'][i % len(data['items'])]
        items.append({**item, 'id': f'{item["id"]}-{i}', 'prompt': f'{item["prompt"]} number {i}', 'score': (i % 100)/100})
        for end in ('.webp', '-turn.webp', '.js'):
            if (files/f'{item["id"]}{end}').exists(): shutil.copy(files/f'{item["id"]}{end}', files/f'{items[-1]["id"]}{end}')
    text = page.read_text()
    old = re.search(r'id="data">(.*?)</script>', text, re.S)[1]
    page.write_text(text.replace(old, in_script({**data, 'items': items, 'notes': []})))

def test_three_hundred(watch_page, tmp_path):
    for name in ('red', 'blue', 'green'): write_run(tmp_path/name, f'a {name} ball', 1.)
    index, _ = make_gallery(tmp_path)
    multiplied(index, 300)
    page = watch_page((1000, 700))
    page.goto(index.as_uri())
    page.wait_for_load_state('load')
    assert len(shown(page)) == 300
    loaded = lambda: page.eval_on_selector_all('.shot img', 'all => all.filter(i => i.complete && i.naturalWidth).length')
    page.wait_for_timeout(300)
    assert 0 < loaded() < 150                                                                                          # only what is near the window
    took = page.evaluate('''() => { const box = document.getElementById("search"), times = [];
        for (const text of ["r", "re", "red", "red n", "red number 1", ""]) { box.value = text; const t = performance.now(); box.dispatchEvent(new Event("input")); document.body.offsetHeight; times.push(performance.now() - t); }
        return Math.max(...times); }''')
    assert took < 500                                                                                                  # milliseconds, on a machine that does other things too
    page.fill('#search', 'red number 12')
    assert sorted(shown(page)) == sorted(i['prompt'] for i in data_of(index)['items'] if 'red' in i['prompt'] and '12' in i['prompt'])
    page.fill('#search', '')
    page.evaluate('scrollTo(0, document.body.scrollHeight)')
    page.wait_for_function('(() => { const i = [...document.querySelectorAll(".shot img")].at(-1); return i.complete && i.naturalWidth; })()', timeout=20000)

def test_the_gallery_of_the_docs(watch_page):
    folder = Path(__file__).parent.parent/'nbs'/'gallery'
    assert 8 <= len(data_of(folder/'index.html')['items']) <= 12 and sum(f.stat().st_size for f in folder.rglob('*')) < 1_500_000
    page = watch_page()
    page.goto((folder/'index.html').as_uri())
    page.locator('.card').first.click()
    hint(page, 'Drag to orbit')
