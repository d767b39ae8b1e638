"A run in a thread: one at a time, stopped within a second, resumed to the last bit, and never lost by a look or a mistake"
import errno, json, os, subprocess, sys, threading, time, weakref
from types import SimpleNamespace
import pytest, torch
from dreamfusion_nb import __version__, readouts, runs, sessions
from dreamfusion_nb.generate import Dream, Settings
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.sessions import Session, at_work, saved_runs
from dreamfusion_nb.utils import UserError

TINY = dict(steps=16, sizes=((0., 12),), samples=8)

@pytest.fixture(scope='module')
def prior(): return load_prior()

@pytest.fixture(autouse=True)
def quick_results(monkeypatch):
    "The pictures, the film and the mesh of a run have tests of their own"
    def results(scene, folder):
        scene.save(folder/'scene.safetensors')
        return {'faces': 0}
    monkeypatch.setattr(runs, 'write_results', results)

@pytest.fixture
def session(tmp_path, prior):
    made = Session(tmp_path/'runs', 'cpu', size=24)
    made.known = ('embedded', 'cpu', False), prior
    yield made
    made.stop()
    made.wait(600)

@pytest.fixture(scope='module')
def straight(prior):
    "The field of a run that nobody stops or looks at"
    dream = Dream('a red ball', prior, Settings(**TINY), 3)
    for row in dream: pass
    return dream.field.state_dict()

def same(field, other): return all(torch.equal(a, b) for a, b in zip(field.state_dict().values(), other.values(), strict=True))

def until(condition, seconds=600):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(.005)

def held(session, monkeypatch, at):
    "The run waits after one of its steps until it is let go"
    go, watch = threading.Event(), session.watch
    def wait(dream, row):
        watch(dream, row)
        if row['step'] == at: go.wait(600)
    monkeypatch.setattr(session, 'watch', wait)
    return go

def test_two_clicks_start_one_run(session):
    started = []
    clicks = [threading.Thread(target=lambda: started.append(session.start('a red ball', **TINY))) for _ in range(8)]
    for c in clicks: c.start()
    for c in clicks: c.join()
    assert started.count(True) == 1 and session.wait(600) == 'finished'
    assert [p.name for p in session.runs.iterdir()] == ['a-red-ball-seed0']
    assert session.start('a red ball', **TINY) and session.wait(600) == 'finished' and session.folder.out.name == 'a-red-ball-seed0-2'

def test_stop_answers_within_a_second_and_loses_nothing(session, monkeypatch, straight):
    go = held(session, monkeypatch, 5)
    session.start('a red ball', seed=3, **TINY)
    until(lambda: session.step == 5)
    session.stop()
    assert session.state == 'stopping'                                # said at once
    before = time.process_time()                                      # of this process, so that a busy machine does not count
    go.set()
    assert session.wait(600) == 'stopped' and session.step <= 6 and time.process_time() - before < 1
    assert session.resumable and not session.folder.out.exists() and {'checkpoint.safetensors', 'log.csv', 'preview.png', 'run.json'} <= {p.name for p in session.folder.partial.iterdir()}
    assert session.resume() and session.wait(600) == 'finished'
    assert same(session.open(session.folder.out.name).field, straight) and not session.trouble
    assert [r['step'] for r in session.rows] == [10, 16]              # as the log has them

def test_a_killed_kernel_goes_on(tmp_path, prior, straight, session, monkeypatch):
    def killed(*_): raise SystemExit                                   # as if the process had ended between two steps
    first = Session(tmp_path/'runs', 'cpu', judging=None, size=24)
    first.known = session.known
    keep = runs.Dream.save
    with monkeypatch.context() as m:
        m.setattr(first, 'watch', lambda dream, row: (keep(dream, first.folder.checkpoint), killed()) if row['step'] == 9 else None)
        first.start('a red ball', seed=3, **TINY)
        first.wait(600)
    assert [(s.name, s.state) for s in saved_runs(session.runs)] == [('a-red-ball-seed3', 'unfinished')]
    assert session.open('a-red-ball-seed3') is None and session.state == 'stopped' and session.prompt == 'a red ball' and session.steps == 16
    assert session.resume() and session.wait(600) == 'finished'
    assert same(session.open('a-red-ball-seed3').field, straight)

def test_python_ends_in_the_middle(tmp_path, session, straight):
    code = f"""import time; from dreamfusion_nb.sessions import Session
s = Session({str(session.runs)!r}, 'cpu', judging=None, size=24)
s.start('a red ball', seed=3, **{TINY!r})
while s.step < 3: time.sleep(.01)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and 'terminate' not in done.stderr and 'Traceback' not in done.stderr, done.stderr
    session.open('a-red-ball-seed3')
    assert (session.folder.partial/'checkpoint.safetensors').exists()          # before the fiftieth step, the first that would have made one
    assert session.resume() and session.wait(600) == 'finished' and same(session.open('a-red-ball-seed3').field, straight)

def test_stop_while_the_prior_is_read(session, prior, monkeypatch):
    reading, go = threading.Event(), threading.Event()
    def slow(name, device, direct):
        reading.set()
        go.wait(60)
        return prior
    monkeypatch.setattr(sessions, 'load_prior', slow)
    session.known = None, None
    session.start('a red ball', **TINY)
    assert reading.wait(600) and session.state == 'loading'
    session.stop()
    assert session.state == 'idle' and not session.working            # without waiting for it
    assert session.start('a blue ball', **TINY)                       # and the next one may begin
    go.set()
    assert session.wait(600) == 'finished' and [p.name for p in session.runs.iterdir()] == ['a-blue-ball-seed0']

def test_two_sessions_read_their_priors_in_turn(tmp_path, monkeypatch):
    reading, most = [], []
    def slow(name, device, direct):
        reading.append(name)
        most.append(len(reading))
        time.sleep(.05)
        reading.pop()
        return name
    monkeypatch.setattr(sessions, 'load_prior', slow)
    both = [threading.Thread(target=Session(tmp_path, 'cpu').load, args=(name,)) for name in 'abc']
    for t in both: t.start()
    for t in both: t.join()
    assert most == [1, 1, 1]

def test_stop_while_the_results_are_written(session, monkeypatch, straight):
    writing, plain = threading.Event(), runs.write_results
    def slow(scene, folder):
        writing.set()
        for _ in range(600):
            time.sleep(.05)
            scene.field(torch.zeros(1, 3))                             # a picture asks the field
        raise AssertionError('nobody heard the stop')
    with monkeypatch.context() as m:
        m.setattr(runs, 'write_results', slow)
        session.start('a red ball', seed=3, **TINY)
        assert writing.wait(600) and session.state == 'writing'
        session.stop()
        assert session.wait(600) == 'stopped' and session.step == 16
    assert session.resume() and session.wait(600) == 'finished' and same(session.open(session.folder.out.name).field, straight)

@pytest.mark.parametrize('how, word', [(dict(prompt=''), 'empty'), (dict(prompt='  '), 'empty'), (dict(prompt='a red balll'), "'balll'"), (dict(prompt='a red ball', prior='nowhere'), 'nowhere'),
    (dict(prompt='a red ball', seed=-1), 'seed'), (dict(prompt='a red ball', steps=0), 'step'), (dict(prompt='a red ball', field='cloud'), 'cloud')])
def test_bad_input_is_one_sentence(session, how, word):
    prompt, prior, seed = how.pop('prompt'), how.pop('prior', 'embedded'), how.pop('seed', 0)
    assert session.start(prompt, prior, seed, **{**TINY, **how})
    assert session.wait(600) == 'failed' and word in session.error and '\n' not in session.error and not session.resumable
    assert not session.runs.exists() or not list(session.runs.iterdir())
    assert session.start('a red ball', **TINY) and session.wait(600) == 'finished'      # everything else goes on

def test_trouble_on_the_way_is_one_sentence(session, monkeypatch):
    def full(*_, **__): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'x')
    with monkeypatch.context() as m:
        m.setattr(runs.Dream, 'save', full)
        session.start('a red ball', **TINY)
        assert session.wait(600) == 'failed' and 'disk' in session.error and 'Traceback' in session.trouble
    advance = runs.Dream.advance
    def broken(self):
        if self.step == 3: raise KeyError('x')
        return advance(self)
    with monkeypatch.context() as m:
        m.setattr(runs.Dream, 'advance', broken)
        session.start('a red ball', **TINY)
        assert session.wait(600) == 'failed' and 'KeyError' in session.error and 'Traceback' in session.trouble
    assert session.start('a red ball', **TINY) and session.wait(600) == 'finished'

def test_whoever_looks_on_may_fail(session, monkeypatch, straight):
    def broken(*_, **__): raise RuntimeError('no eyes')
    monkeypatch.setattr(sessions, 'glimpse', broken)
    session.listener = broken
    session.start('a red ball', seed=3, **TINY)
    session.wait(600)
    assert session.state == 'finished' and 'no eyes' in session.trouble
    monkeypatch.setattr(sessions, 'glimpse', readouts.glimpse)
    session.listener = None
    assert same(session.open(session.folder.out.name).field, straight)

class Made:
    "What `watch` sees of a run of a thousand steps"
    settings, scene = Settings(steps=1000), None

@pytest.mark.parametrize('step, cost', [(.1, .05), (.18, .07), (2., .1), (.1, 1.)], ids=['draft', 'later', 'slow steps', 'slow pictures'])
def test_previews_come_each_second_and_cost_little(session, monkeypatch, step, cost):
    now, drawn = [100.], []
    monkeypatch.setattr(sessions.time, 'monotonic', lambda: now[0])
    def draw(scene):
        drawn.append(now[0])
        now[0] += cost
    session.draw, session.judging, session.state = draw, None, 'running'
    began = now[0]
    while now[0] - began < 60:
        now[0] += step
        session.watch(Made, dict(step=len(session.rows) + 1))
    gaps = [b - a for a, b in zip(drawn, drawn[1:])]
    assert sum(cost for _ in drawn)/(now[0] - began) < .15
    if step < .2 and cost < .1: assert max(gaps) <= 1
    if step > 1: assert len(drawn) == len(session.rows)              # a picture for every step that takes longer

def test_time_left(session, monkeypatch):
    now = [100.]
    monkeypatch.setattr(sessions.time, 'monotonic', lambda: now[0])
    session.draw, session.judging, session.state = lambda scene: None, None, 'running'
    assert session.left is None
    for i in range(1, 101):
        now[0] += .5
        session.watch(Made, dict(step=i))
    assert session.left == pytest.approx(450)
    for i in range(101, 105):                                        # it gets slow: the last two steps count, however old they are
        now[0] += 40
        session.watch(Made, dict(step=i))
    assert session.left == pytest.approx((Made.settings.steps - 104)*40)

def test_who_is_turned_away_leaves_the_next_ones_hook(session, monkeypatch):
    hooks, asked, go = [], threading.Event(), threading.Event()
    monkeypatch.setattr(sessions, 'atexit', SimpleNamespace(register=hooks.append, unregister=lambda hook: [hooks.remove(h) for h in hooks[:] if h == hook]))
    loaded = session.load
    def slow(*a):
        asked.set()
        go.wait(60)
        return loaded(*a)
    monkeypatch.setattr(session, 'load', slow)
    session.start('a red ball', **TINY)
    first = session.worker
    session.stop()                                                   # turned away while it waits for its prior
    assert asked.wait(600) and len(hooks) == 1
    monkeypatch.setattr(session, 'load', loaded)
    hold = held(session, monkeypatch, 2)
    assert session.start('a red ball', **TINY)
    until(lambda: session.step == 2)
    go.set()
    first.join(600)
    assert len(hooks) == 1
    hold.set()
    assert session.wait(600) == 'finished' and not hooks

def test_the_old_prior_is_gone_before_the_new_one_is_read(session, monkeypatch):
    class Model: pass
    def read(name, *args, **kwargs):
        assert name != 'two' or old() is None
        return Model()
    monkeypatch.setattr(sessions, 'load_prior', read)
    old = weakref.ref(session.load('one'))
    same = session.load('one') is old()
    assert same
    assert isinstance(session.load('two'), Model)

def test_who_is_turned_away_leaves_the_next_run_alone(session, monkeypatch):
    watch, hold = session.watch, held(session, monkeypatch, 2)
    session.start('a red ball', **TINY)
    until(lambda: session.step == 2)
    session.stop()
    hold.set()
    assert session.wait(600) == 'stopped'
    monkeypatch.setattr(session, 'watch', watch)
    asked, go, loaded = threading.Event(), threading.Event(), session.load
    def slow(*a):
        asked.set()
        go.wait(60)
        return loaded(*a)
    monkeypatch.setattr(session, 'load', slow)
    monkeypatch.setattr(session, 'recall', lambda *a: pytest.fail('it read its figures into the next run'))
    assert session.resume()
    assert asked.wait(600)
    first = session.worker
    session.stop()                                                   # turned away while it waits for its prior
    monkeypatch.setattr(session, 'load', loaded)
    assert session.start('a blue ball', **TINY)
    go.set()
    first.join(600)
    assert session.wait(600) == 'finished' and session.prompt == 'a blue ball' and not session.trouble

def test_scores_do_not_wait_for_a_prior_of_another_session_once_the_judge_is_there(session, monkeypatch):
    session.judge = sessions.load_judge()
    with session.loading:                                            # as while another session reads its prior
        assert session.start('a red ball', **TINY)
        assert session.wait(120) == 'finished' and session.scores

def test_steps_have_the_threads_of_the_command_line(session):
    seen = []
    session.listener = lambda: seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
    session.start('a red ball', **TINY)
    session.wait(600)
    assert {threads for _, threads in seen} == {torch.get_num_threads()} and (False, torch.get_num_threads()) in seen
    assert session.folder.record(finished=True)['threads'] == torch.get_num_threads()

def test_a_cell_that_runs_again_finds_the_run(session, monkeypatch, tmp_path):
    assert at_work(session.runs) is None
    go = held(session, monkeypatch, 2)
    session.start('a red ball', **TINY)
    until(lambda: session.step == 2)
    assert at_work(session.runs) is session and at_work(tmp_path/'other') is None
    with pytest.raises(UserError, match='at work'):
        (session.runs/'old').mkdir()
        (session.runs/'old.partial').mkdir()
        (session.runs/'old.partial'/'run.json').write_text(json.dumps(dict(prompt='a red ball', seed=0, settings={'steps': 3}, version=__version__)))
        (session.runs/'old').rmdir()
        session.open('old')
    go.set()
    session.wait(600)
    assert at_work(session.runs) is None

def test_scores(session, prior):
    session.judging = 0.
    session.start('a red ball', **TINY)
    session.wait(600)
    assert len(session.scores) >= 1 and all(-1 <= score <= 1 for _, score in session.scores) and session.scores[-1][0] == 16
    scores = session.scores
    again = Session(session.runs, 'cpu')
    again.open(session.folder.out.name)
    assert [s for s, _ in again.scores] == [s for s, _ in scores] and again.picture and again.state == 'finished'

def test_a_judge_that_does_not_know_a_word_gives_no_score(session):
    session.prompt = 'a red dragonfly'
    session.mark(None)
    assert session.scores == []

def unfinished(folder, **changes):
    folder.mkdir(parents=True)
    (folder/'run.json').write_text(json.dumps(dict(prompt='a red ball', seed=0, settings={'steps': 9}, version=__version__) | changes))

def test_broken_runs_do_not_hide_the_others(tmp_path, session):
    session.start('a red ball', **TINY)
    session.wait(600)
    where = session.runs
    unfinished(where/'going.partial')
    unfinished(where/'old.partial', version='0.0.1')
    unfinished(where/'bare')                                         # no scene
    unfinished(where/'odd.partial', seed='x')
    for name, text in (('torn', '{"prompt": "a'), ('list', '[1]'), ('no', 'null')):
        (where/name).mkdir()
        (where/name/'run.json').write_text(text)
    (where/'binary.partial').mkdir()
    (where/'binary.partial'/'run.json').write_bytes(b'\xff\xfe\x00')
    (where/'empty.partial').mkdir()
    (where/'photos').mkdir()
    (where/'file').touch()
    found = {s.name: s for s in saved_runs(where)}
    assert {n: s.state for n, s in found.items()} == {'a-red-ball-seed0': 'finished', 'going': 'unfinished', **dict.fromkeys(('old', 'bare', 'odd', 'torn', 'list', 'no', 'binary', 'empty'), 'broken')}
    assert all(s.note.endswith('.') and '\n' not in s.note for s in found.values() if s.state == 'broken') and '0.0.1' in found['old'].note
    for name in ('old', 'torn', 'empty', 'binary', 'nowhere'):
        with pytest.raises(UserError): session.open(name)
        with pytest.raises(UserError): session.resume(name)
    assert session.state == 'finished' and session.folder.out.name == 'a-red-ball-seed0'      # what was there stays
    assert saved_runs(tmp_path/'nowhere') == saved_runs(where/'file') == []

# ---- what is shown

def test_completion():
    known = ['ball', 'bear', 'blue', 'car', 'cat', 'mug']
    assert readouts.complete('a b', known) == ['a ball', 'a bear', 'a blue'] and readouts.complete('a b', known, 2) == ['a ball', 'a bear']
    assert readouts.complete('a BE', known) == ['a bear'] and readouts.complete('', known) == readouts.complete('a ', known) == readouts.complete('a cat', known) == readouts.complete('b', []) == []

def test_everything_a_user_gave_is_escaped(session):
    session.prompt, session.state, session.steps = '<script>alert(1)</script>', 'stopped', 3
    session.folder = runs.RunFolder('<b>')
    assert '<script>' not in readouts.report(session) and '<b>&lt;b&gt;' not in readouts.report(session)
    assert '<script>' not in readouts.complaint('<script>') and '<script' not in readouts.link('<script>.json', b'')

@pytest.mark.parametrize('n', [0, 1, 2, 15000])
def test_curves_are_small_and_stay_in_their_frames(n):
    import re
    rows = [dict(step=i + 1, grad=float(i % 7), opacity=.5) for i in range(n)]
    drawn = readouts.curves(rows, [(1, -.2)] if n else [], max(n, 1))
    assert len(drawn) < 30_000 and 'nan' not in drawn
    for x, y in re.findall(r'([-\d.]+),([-\d.]+)', ' '.join(re.findall(r'points="([^"]*)"', drawn))): assert -.1 <= float(x) <= 200.1 and -.1 <= float(y) <= 64.1

def test_minutes():
    assert [readouts.minutes(s) for s in (None, .2, 50, 600, 7200)] == ['', 'about 1 s left', 'about 50 s left', 'about 10 min left', 'about 2.0 h left']
