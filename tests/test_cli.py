"The command as a user meets it: what it leaves behind when all goes well, when it is stopped or killed, and when the input is bad"
import errno, json, os, shutil, signal, subprocess, sys, time
import pytest
from dreamfusion_nb import __version__, cli, runs
from dreamfusion_nb.utils import UserError

FILES = {'run.json', 'scene.safetensors', 'log.csv', 'views.png', 'turntable.gif', 'mesh.glb'}

def command(*arguments):
    call = 'import sys; from dreamfusion_nb.cli import main; sys.exit(main())'
    return [sys.executable, '-c', call, *map(str, arguments)]

def start(*arguments, **how):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **how)

def wait_for(path, process, seconds=120):
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None and time.time() < end, process.communicate()
        time.sleep(.02)

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'ball'
    assert cli.main(['generate', 'a red ball', '--steps', '30', '--out', str(out)]) == 0
    return out

def test_a_run_folder_is_complete(finished):
    assert FILES <= {p.name for p in finished.iterdir()} <= FILES | {'turntable.mp4'}
    assert not [p for p in finished.parent.iterdir() if p != finished]
    record = json.loads((finished/'run.json').read_text())
    assert record['state'] == 'finished' and record['version'] == __version__ and record['settings']['steps'] == 30
    rows = (finished/'log.csv').read_text().splitlines()
    assert rows[0].split(',') == list(runs.COLUMNS) and [int(r.split(',')[0]) for r in rows[1:]] == [10, 20, 30]

def test_the_mesh_and_the_film_open(finished):
    import trimesh
    from PIL import Image
    assert len(trimesh.load(finished/'mesh.glb', force='mesh').faces) > 100
    assert Image.open(finished/'turntable.gif').n_frames == 36
    width, height = Image.open(finished/'views.png').size
    assert width/height == pytest.approx(2, rel=.02)                 # eight columns, four rows

def test_ctrl_c_then_resume(tmp_path):
    out, partial = tmp_path/'run', tmp_path/'run.partial'
    process = start('generate', 'a red ball', '--steps', 150, '--out', out)
    wait_for(partial/'checkpoint.safetensors', process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in said and '--resume' in said
    assert not out.exists() and {'checkpoint.safetensors', 'preview.png', 'run.json', 'log.csv'} <= {p.name for p in partial.iterdir()}
    assert cli.main(['generate', 'a red ball', '--out', str(out)]) == 1          # not by accident
    assert cli.main(['generate', '--resume', '--out', str(out)]) == 0
    steps = [int(r.split(',')[0]) for r in (out/'log.csv').read_text().splitlines()[1:]]
    assert steps == sorted(set(steps)) and steps[-1] == 150 and not partial.exists()

@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b[:-9] + bytes([b[-9] ^ 64]) + b[-8:]], ids=['half', 'empty', 'one bit'])
def test_a_damaged_checkpoint_is_named(tmp_path, capsys, damage):
    out = tmp_path/'run'
    process = start('generate', 'a red ball', '--steps', 400, '--out', out)
    file = tmp_path/'run.partial'/'checkpoint.safetensors'
    wait_for(file, process)
    process.kill()
    process.communicate()
    file.write_bytes(damage(file.read_bytes()))
    assert cli.main(['generate', '--resume', '--out', str(out)]) == 1
    assert 'damaged' in capsys.readouterr().err.splitlines()[-1] and file.exists()

def unfinished(folder, **changes):
    folder.mkdir()
    record = dict(prompt='a red ball', seed=0, quality='draft', prior='embedded', settings={}, version=__version__) | changes
    (folder/'run.json').write_text(json.dumps(record))

@pytest.mark.parametrize('arguments, word', [
    (['generate', ''], 'empty'), (['generate', '  '], 'empty'), (['generate'], 'what to make'), (['generate', 'a red balll'], "'balll'"),
    (['generate', 'a red ball', '--out', 'holiday'], 'left alone'), (['generate', 'a red ball', '--out', 'file'], 'is a file'),
    (['generate', 'a red ball', '--out', 'file/below'], 'file'), (['generate', 'a red ball', '--out', 'working'], '--resume'),
    (['generate', '--resume', '--out', 'nothing'], 'nothing to resume'), (['generate', '--resume', '--out', 'holiday'], 'left alone'),
    (['generate', '--resume', '--out', 'old'], 'version'), (['generate', 'a blue ball', '--resume', '--out', 'working'], 'a red ball'),
    (['generate', '--resume', '--out', 'odd'], 'run.json'), (['generate', 'a red ball', '--prior', 'nowhere'], 'nowhere'),
    (['generate', 'a red ball', '--steps', '0'], 'step'), (['generate', 'a red ball', '--seed', '-1'], 'seed'), (['generate', 'a red ball', '--device', 'cuda:99'], 'cuda:99'),
    (['generate', 'a red ball', '--quality', 'best'], 'best'), (['evaluate', '--suite', 'all'], 'standard'),
    (['evaluate', '--out', 'holiday', '--judge', 'none'], 'left alone'), (['evaluate', '--judge', 'holiday'], 'holiday'), (['evaluate', '--prior', 'holiday'], 'holiday'), (['evaluate', '--seeds', '0'], 'seeds'),
    (['evaluate', 'holiday'], 'holiday'), (['evaluate', 'working'], 'unfinished'), (['evaluate', '--workers', 'x'], '--workers'), (['evaluate', '--device', 'cuda:99'], 'cuda:99'), (['generate', 'a red ball', '--seed', 'x'], '--seed'), (['make'], 'make'), ([], 'command')])
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'holiday').mkdir()
    (tmp_path/'holiday'/'beach.jpg').touch()
    (tmp_path/'file').touch()
    unfinished(tmp_path/'working.partial')
    unfinished(tmp_path/'old.partial', version='0.0.1')
    (tmp_path/'odd.partial').mkdir()
    before = sorted(tmp_path.rglob('*'))
    try: code = cli.main(arguments)
    except SystemExit as e: code = e.code                            # argparse
    said = capsys.readouterr().err
    assert code in (1, 2) and word in said.splitlines()[-1] and 'Traceback' not in said
    assert sorted(tmp_path.rglob('*')) == before

def test_no_space_left(tmp_path, monkeypatch, capsys):
    def full(*_, **__): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'x')
    monkeypatch.setattr(runs.Dream, 'save', full)
    assert cli.main(['generate', 'a red ball', '--steps', '2', '--out', str(tmp_path/'run')]) == 1
    assert 'space' in capsys.readouterr().err.splitlines()[-1] and not list(tmp_path.iterdir())

def test_weights_missing_from_the_install(tmp_path, monkeypatch, capsys):
    import dreamfusion_nb
    monkeypatch.setattr(dreamfusion_nb, '__file__', str(tmp_path/'__init__.py'))
    assert cli.main(['generate', 'a red ball', '--out', str(tmp_path/'run')]) == 1
    assert 'install' in capsys.readouterr().err.splitlines()[-1] and not list(tmp_path.iterdir())

def test_overwrite_replaces_a_finished_run_only_when_the_new_one_is_whole(finished, monkeypatch):
    before = (finished/'scene.safetensors').read_bytes()
    def broken(*_): raise UserError('broken')
    with monkeypatch.context() as m:
        m.setattr(runs, 'write_results', broken)
        assert cli.main(['generate', 'a red ball', '--steps', '2', '--out', str(finished), '--overwrite']) == 1
    assert (finished/'scene.safetensors').read_bytes() == before
    assert cli.main(['generate', 'a red ball', '--steps', '20', '--seed', '5', '--out', str(finished), '--overwrite']) == 0
    assert json.loads((finished/'run.json').read_text())['seed'] == 5
    assert [p.name for p in finished.parent.iterdir()] == [finished.name]

@pytest.mark.parametrize('acts', range(4))
def test_killed_while_a_run_takes_the_place_of_another(tmp_path, monkeypatch, acts):
    folder = runs.RunFolder(tmp_path/'ball')
    for path, what in ((folder.out, 'before'), (folder.partial, 'after'), (tmp_path/'ball.old', 'left by a kill')):
        path.mkdir()
        (path/'run.json').write_text(what)
    left = iter(range(acts))
    def mortal(act):
        def until(*arguments, **options):
            if next(left, None) is None: raise KeyboardInterrupt
            return act(*arguments, **options)
        return until
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', mortal(os.replace))
        m.setattr(shutil, 'rmtree', mortal(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt): folder.publish()
    if folder.partial.exists(): folder.publish()                          # as a resumed run does
    assert (folder.out/'run.json').read_text() == 'after' and not folder.partial.exists()
    assert acts == 3 or [p.name for p in tmp_path.iterdir()] == ['ball']

def test_killed_before_a_whole_run_has_its_name(tmp_path, monkeypatch):
    def killed(_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(runs.RunFolder, 'publish', killed)
        with pytest.raises(KeyboardInterrupt): runs.generate_run('a red ball', tmp_path/'ball', steps=3, progress=False)
    made = []
    runs.generate_run('a red ball', tmp_path/'ball', resume=True, progress=made.append)
    assert not made and {p.name for p in (tmp_path/'ball').iterdir()} <= FILES | {'turntable.mp4'}

def test_default_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'runs'/'a-red-ball-seed0').mkdir(parents=True)
    (tmp_path/'runs'/'a-red-ball-seed0-2.partial').mkdir()
    assert runs.choose_folder(None, 'A red ball!', 0).out.name == 'a-red-ball-seed0-3'

def test_words(capsys):
    assert cli.main(['words']) == 0
    known = capsys.readouterr().out.split()
    assert {'mug', 'duck', 'red', 'white', 'front'} <= set(known) and known == sorted(known)
