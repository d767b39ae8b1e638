"Suites: which sentences, what is made once and never again, what a failure leaves behind, and the figures of the table"
import io, json, os, subprocess, sys, time
from collections import Counter
from dataclasses import replace
from pathlib import Path
import pytest, torch
from dreamfusion_nb import cli, prompts, report, runs, suites
from dreamfusion_nb.evaluate import judged_pictures, meaning
from dreamfusion_nb.prior import PixelPrior
from dreamfusion_nb.shapeworld import COLOURS, OBJECTS, PATTERNS, RELATIONS, held_out
from dreamfusion_nb.train_prior import new_models, save_prior
from dreamfusion_nb.utils import UserError

TINY = dict(steps=6, sizes=((0., 12),), samples=8)
KEYS = {'suite', 'r_precision', 'chance', 'iou_median', 'chamfer_median', 'colour_median', 'faces', 'facing_mean', 'floaters_median', 'fog_median', 'empty_or_full', 'failed', 'seeds',
        'seconds_per_prompt', 'judge_on_truth', 'prompts'}

class Fake:
    "A judge without any knowledge: pictures and sentences are directions drawn from their content"
    def pictures(self, x): return torch.nn.functional.normalize(torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), 1 - x[:, 0].mean((1, 2))], -1), dim=-1)
    def sentences(self, said): return torch.nn.functional.normalize(torch.tensor([[len(s), sum(map(ord, s)) % 97, s.count('e')*9.] for s in said]), dim=-1)

@pytest.fixture(scope='module')
def prior(tmp_path_factory):
    "A folder with a prior that was never trained"
    folder = tmp_path_factory.mktemp('prior')
    save_prior(folder, PixelPrior(*new_models(0, 32, 1, 16)))
    return str(folder)

def only_the_scene(scene, folder):
    "A stand-in for `write_results`"
    scene.save(folder/'scene.safetensors')
    return {'faces': 0}

def light(put):
    "Leave out what takes long and is tested elsewhere: films, meshes, marks for shapes, most of the pictures"
    put(runs, 'write_preview', lambda dream, path: None)
    put(runs, 'write_results', only_the_scene)
    put(report, 'judged_pictures', lambda scene, textureless=False: judged_pictures(scene, textureless, 2, 8))
    put(report, 'true_pictures', lambda prompt, textureless: torch.full((2, 3, 8, 8), .5))
    put(report, 'marks', lambda scene, judge: ({'iou': .5, 'chamfer': .1, 'colour': 3., 'floaters': 0., 'fog': .1, 'fullness': scene.field.density(torch.zeros(1, 3)).item()/100}, None))

@pytest.fixture
def quick(monkeypatch, prior, tmp_path):
    "`evaluate_suite` with tiny runs and a fake judge that sees two sides"
    light(monkeypatch.setattr)
    monkeypatch.setattr(suites, 'called_judge', lambda name, device='cpu': None if name == 'none' else Fake())
    def evaluate(said, out='suite', **more):
        (tmp_path/'some.txt').write_text('\n'.join(said) + '\n')
        return suites.evaluate_suite(str(tmp_path/'some.txt'), tmp_path/out, **{**dict(prior=prior, workers=1, device='cpu', progress=False), **TINY, **more})
    return evaluate

# ---- sentences

def test_standard_is_what_training_shows():
    found = [meaning(p) for p in suites.suite_prompts('standard')]
    alone, patterned, pairs = found[:36], found[36:44], found[44:]
    assert [m['thing'] for m in alone] == list(OBJECTS) and set(Counter(m['colour'] for m in alone).values()) <= {2, 3, 4}
    assert not any(m['pattern'] or m['second'] for m in alone)
    assert len({m['thing'] for m in patterned}) == 8 and {m['pattern'] for m in patterned} == set(PATTERNS)
    assert not any(held_out(m['thing'], m['colour']) for m in alone + patterned) and not any(held_out(m['thing'], m['pattern']) for m in patterned)
    assert {m['thing'][1] for m in pairs} == set(RELATIONS) and all(m['colour'] != m['second'] for m in pairs)
    assert not any(held_out(m['thing'][0], m['colour']) or held_out(m['thing'][2], m['second']) for m in pairs)

def test_held_out_is_what_training_leaves_out():
    found = [meaning(p) for p in suites.suite_prompts('held-out')]
    assert [m['thing'] for m in found[:36]] == list(OBJECTS) and all(held_out(m['thing'], m['colour']) for m in found[:36])
    assert all(held_out(m['thing'], m['pattern']) and not held_out(m['thing'], m['colour']) for m in found[36:])
    assert len({m['thing'] for m in found[36:]}) == 12 and {m['colour'] for m in found[:36]} == set(COLOURS)

def test_the_lists_are_fixed():
    standard, new, quick = (suites.suite_prompts(s) for s in ('standard', 'held-out', 'quick'))
    for suite in ('standard', 'held-out', 'quick'): assert len(set(suites.suite_prompts(suite))) == suites.SUITES[suite]
    assert set(quick) < set(standard) and not set(standard) & set(new)
    kinds = [(bool(m['pattern']), isinstance(m['thing'], tuple)) for m in map(meaning, quick)]
    assert Counter(kinds) == {(False, False): 10, (True, False): 1, (False, True): 1}
    assert suites.suite_captions('quick') == standard
    assert (standard[0], standard[36], new[0], new[36]) == ('a turquoise ball', 'a gray striped house', 'a green ball', 'a white striped car')

def test_a_suite_of_ones_own(tmp_path):
    (tmp_path/'own.txt').write_text('a red mug\n\n a  red mug \nA bulldog in a hat.\n')
    assert suites.suite_prompts(str(tmp_path/'own.txt')) == ['a red mug', 'A bulldog in a hat.']
    captions = [f'A thing number {i}. ' for i in range(153)]                 # written as Dream Fields writes its list
    (tmp_path/'coco_queries_val.py').write_text(f'"""Text prompts"""\nqueries = [\n    ' + ',\n    '.join(map(repr, captions)) + ',\n]\nqueries = [q.lower() for q in queries]\n')
    found = suites.suite_prompts(str(tmp_path/'coco_queries_val.py'))
    assert len(found) == 153 and found[7] == 'a thing number 7.'
    for name, data in (('empty.txt', b'\n'), ('bytes.txt', b'\xff\xfe\x00'), ('broken.py', b'queries = ['), ('numbers.py', b'x = [1, 2]')):
        (tmp_path/name).write_bytes(data)
        with pytest.raises(UserError, match='prompt'): suites.suite_prompts(str(tmp_path/name))

def test_the_captions_of_the_paper_are_fetched_once(tmp_path, monkeypatch):
    asked = []
    def page(url, timeout):
        asked.append(url)
        if len(asked) == 1: raise OSError('no network')
        return io.BytesIO(('queries = [' + ', '.join(repr(f'A thing number {i}. ') for i in range(153)) + ']').encode())
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(prompts.urllib.request, 'urlopen', page)
    with pytest.raises(UserError, match='no network.*coco_queries_val.py'): suites.suite_prompts('coco')
    assert len(suites.suite_prompts('coco')) == suites.SUITES['coco'] and suites.suite_captions('coco')[3] == 'a thing number 3.'
    assert asked == [suites.COCO]*2 and not [f for f in (tmp_path/'.cache'/'dreamfusion_nb').iterdir() if f.name != 'coco_queries_val.py']

def test_an_unknown_suite_is_named():
    with pytest.raises(UserError, match='quick, standard, held-out, coco'): suites.suite_prompts('all')

# ---- figures

def row(prompt, seed=0, **found): return {**dict.fromkeys((*suites.MARKS, 'seconds')), 'prompt': prompt, 'seed': seed, 'folder': f'runs/{suites.slug(prompt)}-{seed}', **found}

ROWS = [row('a red mug', r_colour=1., r_geometry=.5, iou=.6, chamfer=.1, colour=4., faces=1, facing=.75, floaters=0., fog=.2, fullness=.1, seconds=60., truth_colour=1., truth_geometry=.875),
        row('a blue mug', r_colour=.5, r_geometry=.25, iou=.2, chamfer=.3, colour=9., faces=2, facing=.25, floaters=.5, fog=.4, fullness=.7, seconds=80., truth_colour=.5, truth_geometry=.875),
        row('a red mug', 1, r_colour=0., r_geometry=0., iou=0., faces=0, facing=.5, fullness=0., seconds=100., truth_colour=1., truth_geometry=.875),
        {'prompt': 'a <green> duck', 'seed': 0, 'folder': 'runs/c', 'failed': 'the disk was full'}]

def test_summary_by_hand():
    s = suites.summary(ROWS, 'three', ['a red mug', 'a blue mug', 'a green duck', 'a white duck', 'a white duck'], note='x')
    assert KEYS <= set(s) and s['note'] == 'x' and json.loads(json.dumps(s)) == s
    assert s['r_precision'] == {'colour': 1.5/4, 'geometry': .75/4}              # what failed is a miss
    assert s['chance'] == {'colour': 1/4, 'geometry': 1/2}
    assert s['judge_on_truth'] == {'colour': .75, 'geometry': .875}              # each prompt once, whatever the seeds
    assert (s['iou_median'], s['chamfer_median'], s['colour_median'], s['floaters_median']) == (.2, pytest.approx(.2), 6.5, .25)
    assert s['faces'] == {'none': 1/3, 'one': 1/3, 'more': 1/3} and s['facing_mean'] == .5
    assert (s['empty_or_full'], s['failed'], s['seeds'], s['seconds_per_prompt'], len(s['prompts'])) == (2, 1, 2, 80., 4)

def test_summary_without_a_judge_or_without_any_run():
    s = suites.summary([{**ROWS[0], **dict.fromkeys(('r_colour', 'r_geometry', 'faces', 'facing'))}], 'one', ['a red mug'])
    assert s['r_precision'] == {'colour': None, 'geometry': None} and s['faces'] == dict.fromkeys(('none', 'one', 'more')) and 'R-precision' in suites.table(s)
    s = suites.summary([ROWS[3]], 'none', ['a green duck'])
    assert s['iou_median'] is None and s['failed'] == 1 and 'the disk was full' in suites.table(s)

def test_table_and_page_list_every_prompt(tmp_path):
    s = suites.summary(ROWS, 'three', ['a red mug', 'a blue mug', 'a <green> duck'])
    lines = suites.table(s).splitlines()
    assert all(any(line.startswith(r['prompt']) for line in lines) for r in ROWS) and len({len(line) for line in lines[:4]}) == 1
    text = suites.page(s, tmp_path).read_text()
    assert text.count('<figure>') == 4 and '<green>' not in text and '&lt;green&gt;' in text and 'the disk was full' in text
    places = [text.index(f'{r["folder"]}/strip.png') for r in ROWS[:3]]
    assert places == sorted(places) and text.index('the disk was full') > places[-1]         # best first, failures last

def test_the_poster_shows_every_strip_best_first(tmp_path):
    from PIL import Image
    s = suites.summary(ROWS, 'three', ['a red mug', 'a blue mug', 'a <green> duck'])
    paint = dict(zip([r['folder'] for r in ROWS[:3]], ('red', 'blue', 'lime')))
    for folder, colour in paint.items():
        (tmp_path/folder).mkdir(parents=True)
        Image.new('RGB', (40, 20), colour).save(tmp_path/folder/'strip.png')
    whole = Image.open(suites.poster(s, tmp_path, columns=2)).convert('RGB')
    assert whole.size == (2*56, 2*36)                                     # two rows of two places; the failed run has no strip
    seen = [whole.getpixel((x + 20, y + 26)) for y in (0, 36) for x in (0, 56)]
    assert seen == [(255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)]
    empty = suites.summary(ROWS[3:], 'none', ['a <green> duck'])
    assert suites.poster(empty, tmp_path).exists()

# ---- runs

def test_a_suite_is_made_marked_and_never_made_again(quick, tmp_path):
    (prompts, changed), out = (['a red ball', 'a yellow cone'], 'suite'), tmp_path/'suite'
    first = quick(prompts)
    assert KEYS <= set(first) and [r['prompt'] for r in first['prompts']] == prompts and first['failed'] == 0
    assert json.loads((out/'results.json').read_text()) == json.loads(json.dumps(first)) and (out/'table.txt').read_text() == suites.table(first) + '\n'
    for r in first['prompts']:
        assert (out/r['folder']/'strip.png').exists() and r['folder'] in (out/'index.html').read_text()
        assert json.loads((out/r['folder']/'marks.json').read_text())['iou'] == r['iou']
    files = [p for p in out.rglob('runs/*/*')]
    before = {p: p.stat().st_mtime_ns for p in files}
    again = quick(prompts)
    assert again['prompts'] == first['prompts'] and {p: p.stat().st_mtime_ns for p in files} == before
    assert quick(prompts, judge='none')['r_precision']['colour'] is None                   # other marks, the same runs
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p.name not in ('marks.json', 'strip.png'))
    for other in (dict(steps=7), dict(quality='standard'), dict(prior=str(tmp_path))):
        with pytest.raises(UserError): quick(prompts, **other)
    with pytest.raises(UserError, match='other prompts'): quick(prompts + ['a blue cube'])
    marked = suites.evaluate_runs([out/r['folder'] for r in first['prompts']], 'standard', 'fake')
    assert [r['iou'] for r in marked['prompts']] == [r['iou'] for r in first['prompts']] and marked['chance']['colour'] == 1/50

def test_a_failing_prompt_does_not_stop_the_rest(quick, tmp_path, monkeypatch):
    def broken(dream, path):
        if 'cube' in dream.prompt: raise MemoryError('no more')
    monkeypatch.setattr(runs, 'write_preview', broken)
    found = quick(['a red unicorn', 'a blue cube', 'a red ball'], judge='none')
    assert ['failed' in r for r in found['prompts']] == [True, True, False] and found['failed'] == 2
    assert "'unicorn'" in found['prompts'][0]['failed'] and 'no more' in found['prompts'][1]['failed'] and 'unicorn' in (tmp_path/'suite'/'index.html').read_text()

def test_a_run_with_nothing_solid_is_empty_and_not_failed(quick, monkeypatch):
    def hollow(*_, **__): raise UserError('There is nothing.')
    monkeypatch.setattr(runs, 'write_results', lambda scene, folder: (only_the_scene(scene, folder), hollow()))
    monkeypatch.setattr(report, 'marks', hollow)
    found = quick(['a red ball'])
    assert found['failed'] == 0 and found['empty_or_full'] == 1 and found['prompts'][0]['iou'] == 0 and found['prompts'][0]['chamfer'] is None
    assert found['prompts'][0]['folder'].endswith('.partial')

def test_a_sentence_of_no_known_shape_is_marked_all_the_same(quick):
    found = quick(['the ball on the mug'], judge='fake')['prompts'][0]
    assert found['iou'] is None and found['colour'] is None and 'truth_colour' not in found
    assert found['r_colour'] == 1 and found['fog'] is not None and found['fullness'] is not None and found['faces'] is not None

def test_a_killed_suite_goes_on(prior, tmp_path):
    "The first run is finished and the second at work when the process is killed: the one stays, the other goes on from its checkpoint"
    (tmp_path/'two.txt').write_text('a red ball\na yellow cone\n')
    call = ('import torch; from dreamfusion_nb import runs, suites; torch.set_num_threads(1); import test_suites; test_suites.light(setattr);'
            f'suites.evaluate_suite({str(tmp_path/"two.txt")!r}, {str(tmp_path/"out")!r}, prior={prior!r}, judge="none", workers=1, device="cpu", progress=False, steps=110, sizes=((0., 12),), samples=8)')
    process = subprocess.Popen([sys.executable, '-c', call], start_new_session=True, cwd=Path(__file__).parent)
    checkpoint, end = tmp_path/'out'/'runs'/'a-yellow-cone-0.partial'/'checkpoint.safetensors', time.time() + 300
    while not checkpoint.exists():
        assert process.poll() is None and time.time() < end
        time.sleep(.02)
    process.kill()
    process.wait()
    scene, log = tmp_path/'out'/'runs'/'a-red-ball-0'/'scene.safetensors', tmp_path/'out'/'runs'/'a-yellow-cone-0.partial'/'log.csv'
    before, logged = scene.stat().st_mtime_ns, log.read_text().splitlines()
    subprocess.run([sys.executable, '-c', call], check=True, cwd=Path(__file__).parent)
    assert scene.stat().st_mtime_ns == before
    assert (tmp_path/'out'/'runs'/'a-yellow-cone-0'/'log.csv').read_text().splitlines()[:len(logged)] == logged     # not made again
    assert json.loads((tmp_path/'out'/'results.json').read_text())['failed'] == 0

WORKERS = """
import os, sys
def quick(*settings):
    "`worker` with runs that leave out films and meshes"
    import test_suites
    test_suites.light(setattr)
    test_suites.suites.worker(*settings)
def dies(line):
    "Ends in the middle of the second job"
    try:
        while True:
            job = line.recv()
            if job['prompt'] == '1': os._exit(9)
            line.send(('step', 3))
            line.send(('done', job))
    except EOFError: pass
"""

@pytest.fixture
def workers(tmp_path, monkeypatch):
    "Stand-ins for `worker`, in a module that other processes can import"
    (tmp_path/'stand_ins.py').write_text(WORKERS)
    monkeypatch.syspath_prepend(tmp_path)
    import stand_ins
    yield stand_ins
    del sys.modules['stand_ins']

def test_processes_find_what_one_finds(quick, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(suites, 'worker', workers.quick)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: one, two = (quick(['a red ball', 'a yellow cone'], str(n), workers=n, judge='none') for n in (1, 2))
    finally: torch.set_num_threads(threads)
    assert one['failed'] == two['failed'] == 0 and two['workers'] == 2
    for a, b in zip(one['prompts'], two['prompts']):
        assert {k: v for k, v in a.items() if k != 'seconds'} == {k: v for k, v in b.items() if k != 'seconds'}
        assert (tmp_path/'1'/a['folder']/'scene.safetensors').read_bytes() == (tmp_path/'2'/b['folder']/'scene.safetensors').read_bytes()

def test_a_process_that_dies_fails_only_its_run(workers, monkeypatch):
    monkeypatch.setattr(suites, 'worker', workers.dies)
    told = []
    found = suites.in_processes([{'prompt': str(i), 'seed': 0} for i in range(4)], 1, lambda *what: told.append(what))
    assert ['failed' in r for r in found] == [False, True, False, False] and 'memory' in found[1]['failed']
    assert [r['prompt'] for r in found] == list('0123') and told == [(0, 3), (0, None), (1, None), (2, 3), (2, None), (3, 3), (3, None)]

# ---- folders

def test_other_peoples_folders_are_left_alone(quick, tmp_path):
    (tmp_path/'holiday').mkdir()
    (tmp_path/'holiday'/'beach.jpg').touch()
    (tmp_path/'file').touch()
    for out, word in (('holiday', 'left alone'), ('file', 'is a file')):
        with pytest.raises(UserError, match=word): quick(['a red ball'], out)
    assert [p.name for p in (tmp_path/'holiday').iterdir()] == ['beach.jpg']
    for wrong in (dict(seeds=0), dict(workers=0), dict(prompts=0), dict(colour='red'), dict(steps=0)):
        with pytest.raises(UserError): quick(['a red ball'], 'new', **wrong)
    assert not (tmp_path/'new').exists()

def test_runs_that_cannot_be_marked_are_named(tmp_path):
    (tmp_path/'half.partial').mkdir()
    (tmp_path/'holiday').mkdir()
    for run, word in (('half', 'unfinished'), ('half.partial', 'unfinished'), ('holiday', 'not a run'), ('nowhere', 'not a run')):
        with pytest.raises(UserError, match=word): suites.evaluate_runs([tmp_path/run], judge='none')

def test_names_of_runs_are_all_different():
    said = ['a red mug', 'A red mug!', 'word '*20 + 'one', 'word '*20 + 'two']
    names = [name for name, *_ in suites.run_names(said, 2)]
    assert len(set(names)) == 8 and names[0] == 'a-red-mug-0' and names[4] == 'a-red-mug-1'

# ---- the command

def test_the_command(prior, tmp_path, monkeypatch, capsys):
    light(monkeypatch.setattr)
    monkeypatch.setitem(suites.QUALITIES, 'draft', replace(suites.QUALITIES['draft'], **TINY))
    out = tmp_path/'quick'
    arguments = ['evaluate', '--suite', 'quick', '--prompts', '1', '--out', str(out), '--prior', prior, '--judge', 'none', '--workers', '1', '--steps', '6', '--device', 'cpu']
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    first = suites.suite_prompts('quick')[0]
    assert first in said.out and 'index.html' in said.out and 'Traceback' not in said.err
    assert cli.main(['evaluate', str(out/'runs'/f'{suites.slug(first)}-0'), '--judge', 'none']) == 0 and first in capsys.readouterr().out
    stop = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    monkeypatch.setattr(suites, 'evaluate_suite', stop)
    assert cli.main(arguments) == 130 and 'goes on' in capsys.readouterr().err
