"The project as a whole: notebooks run, exports and configs agree, imports keep to the picture, the wheel works elsewhere"
import ast, configparser, email, functools, importlib.metadata, json, os, re, shutil, site, subprocess, sys, tomllib, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT/'dreamfusion_nb'
NOTEBOOKS = sorted((ROOT/'nbs').glob('[!_.]*.ipynb'))
MODULES = sorted(p for p in PACKAGE.glob('*.py') if not p.name.startswith('_'))
SETTINGS = configparser.ConfigParser(delimiters=['='], interpolation=None)
SETTINGS.read(ROOT/'settings.ini')
SETTINGS = SETTINGS['DEFAULT']
PYPROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())

def name(path): return path.stem

def run(*command, cwd=ROOT, timeout=600, **env):
    "Run a command without this process's Python path, without any hub, and return what it printed; fail with that when it fails"
    full = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST')} | {'HF_HUB_OFFLINE': '1'} | env
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=full, timeout=timeout, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f'{command[0]} ended with {done.returncode}:\n{done.stdout[-8000:]}'
    return done.stdout

def copy_project(to, *leave_out):
    "A copy of what a clone holds"
    ignore = shutil.ignore_patterns('.venv', '.git', 'runs', 'build', 'dist', '*.egg-info', '__pycache__', '.ipynb_checkpoints',
                                    '.pytest_cache', '_proc', '_docs', 'shared', 'node_modules', *leave_out)
    return Path(shutil.copytree(ROOT, to, symlinks=True, ignore=ignore))

def stand_in(path, text):
    "A shell script in the place of a real command"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)

# ---- 1. every notebook runs, from top to bottom, each in a process of its own

RUN_NOTEBOOK = '''
import sys
from pathlib import Path
from nbdev.test import test_nb
ok, seconds = test_nb(Path(sys.argv[1]), skip_flags=sys.argv[3].split(), basepath=sys.argv[2])
sys.exit(not ok)
'''

@pytest.fixture(scope='module')
def notebook_runs(request, tmp_path_factory):
    "All that were asked for begin here, as many at a time as there are processors, at most four (a gigabyte or two each), with one thread each: that is faster than one after the other with all threads"
    def start(notebook):
        return run(sys.executable, '-c', RUN_NOTEBOOK, notebook, ROOT, SETTINGS['tst_flags'], timeout=1200, IPYTHONDIR=str(tmp_path_factory.mktemp('ipython')), OMP_NUM_THREADS='1')
    wanted = [item.callspec.params['notebook'] for item in request.session.items if item.function is test_notebook_runs]
    with ThreadPoolExecutor(min(4, os.cpu_count())) as pool:
        yield {notebook: pool.submit(start, notebook) for notebook in wanted}
        pool.shutdown(cancel_futures=True)

@pytest.mark.slow
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name)
def test_notebook_runs(notebook, notebook_runs):
    notebook_runs[notebook].result()

def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 21

# ---- 2. exporting and cleaning change nothing

def nbdev(command, project, scratch):
    run(Path(sys.executable).with_name(command), cwd=project, JUPYTER_DATA_DIR=str(scratch))

def differing(ours, theirs, pattern):
    "Names of the files that differ between two folders, or are in one only"
    names = {p.name for folder in (ours, theirs) for p in folder.glob(pattern)}
    return sorted(n for n in names if not ((ours/n).exists() and (theirs/n).exists() and (ours/n).read_bytes() == (theirs/n).read_bytes()))

def test_export_changes_nothing(tmp_path):
    project = copy_project(tmp_path/'project', 'weights')
    for module in (project/'dreamfusion_nb').glob('*.py'):
        if module.name not in ('__init__.py', '_export.py'): module.unlink()   # so that a module without a notebook shows
    nbdev('nbdev-export', project, tmp_path)
    assert not differing(PACKAGE, project/'dreamfusion_nb', '*.py'), 'edit the notebooks, then run nbdev-export'

def test_every_module_says_what_it_is():
    for module in MODULES:
        tree, notebook = ast.parse(module.read_text()), re.search(r'File to edit: \.\./nbs/(\S+\.ipynb)\.', module.read_text())
        assert (ast.get_docstring(tree) or '').strip() and '\n' not in ast.get_docstring(tree), f'{module.name}: a module begins with a sentence, the `>` of its notebook'
        assert notebook and (ROOT/'nbs'/notebook[1]).exists(), module.name

def test_second_modules_begin_anew(tmp_path):
    "A sentence that changes in a notebook changes in its second module, and an export after another adds nothing"
    project = copy_project(tmp_path/'project', 'weights')
    path = project/'nbs/02_field.ipynb'
    path.write_text(path.read_text().replace('> Numbers at the nodes of a grid', '> Figures at the nodes of a grid'))
    for _ in range(2): nbdev('nbdev-export', project, tmp_path)
    assert (project/'dreamfusion_nb/grids.py').read_text() == (PACKAGE/'grids.py').read_text().replace('Numbers at the nodes of a grid', 'Figures at the nodes of a grid', 1)

def test_cleaning_changes_nothing(tmp_path):
    project = copy_project(tmp_path/'project', 'weights')
    nbdev('nbdev-clean', project, tmp_path)
    assert not differing(ROOT/'nbs', project/'nbs', '*.ipynb'), 'run nbdev-clean'

# ---- 3. what is written in two places agrees

def as_ini(value): return ' '.join(value) if isinstance(value, list) else str(value)

@pytest.mark.parametrize('key', PYPROJECT['tool']['nbdev'])
def test_both_nbdev_configs_agree(key):
    assert as_ini(PYPROJECT['tool']['nbdev'][key]) == SETTINGS[key]

def test_package_metadata_agrees():
    import dreamfusion_nb
    assert dreamfusion_nb.__version__ == SETTINGS['version'] == importlib.metadata.version(SETTINGS['lib_name'])
    assert PYPROJECT['project']['name'] == SETTINGS['lib_name']
    assert PYPROJECT['project']['requires-python'] == f'>={SETTINGS["min_python"]}'
    required = [r for r in importlib.metadata.requires(SETTINGS['lib_name']) if 'extra ==' not in r]
    assert sorted(required) == sorted(SETTINGS['requirements'].split()), 'settings.ini changed: install the package again'

def test_quarto_sees_every_notebook():
    import yaml
    link = ROOT/'nbs'/'_quarto.yml'
    assert link.is_symlink() and os.readlink(link) == '../_quarto.yml'
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    assert config['website']['title'] == SETTINGS['title']
    pages = [p for entry in config['website']['sidebar']['contents'] for p in (entry['contents'] if isinstance(entry, dict) else [entry])]
    assert pages == ['index.ipynb', *[n.name for n in NOTEBOOKS if n.name != 'index.ipynb']]

# ---- 4. the import picture: who may import whom (and whatever those may import); `utils` and `viz` are free to all

ARROWS = {
    'utils': [], 'viz': [],
    'encoding': [], 'grids': [], 'field': ['encoding', 'grids'], 'mesh': ['field'], 'tidy': ['mesh'], 'texture': ['tidy'],
    'cameras': [], 'rendering': ['cameras'], 'shading': ['rendering'], 'regularizers': [],
    'hub': [], 'diffusion': [], 'prior': ['hub', 'diffusion'], 'colour_map': [], 'borrowed': ['prior', 'colour_map'], 'real_priors': ['borrowed'], 'sds': ['prior'], 'beyond': ['sds'],
    'clocks': ['generate'], 'bench': ['clocks'], 'scene': ['field', 'shading'], 'optimisers': [], 'parallel': [], 'generate': ['scene', 'regularizers', 'sds', 'optimisers', 'parallel'],
    'run_folder': [], 'runs': ['generate', 'mesh', 'run_folder'], 'lights': [], 'composition': ['lights', 'mesh', 'shading'], 'scenes': ['composition', 'runs'],
    'shapes': [], 'toys': ['shapes'], 'tracing': ['toys', 'cameras'], 'shapeworld': ['tracing', 'shading'],
    'new_prior': ['shapeworld', 'prior'], 'pictures': ['new_prior'], 'objective': ['pictures'], 'train_prior': ['objective'],
    'judges': ['new_prior'], 'judge_data': ['pictures'], 'train_judge': ['judge_data', 'judges'],
    'accuracy': ['mesh', 'shapeworld'], 'evaluate': ['accuracy', 'generate', 'judges'],
    'prompts': ['shapeworld'], 'report': ['evaluate', 'runs'], 'suites': ['prompts', 'report'], 'batch': ['prompts', 'report'], 'gallery': ['report', 'viewer'], 'cli': ['bench', 'suites', 'scenes', 'texture', 'viewer', 'batch', 'gallery'],
    'eye': ['scenes'], 'viewer': ['eye', 'texture'],
    'readouts': ['scene', 'shapeworld'], 'sessions': ['readouts', 'evaluate', 'runs'], 'widgets': ['readouts', 'generate'], 'studio': ['sessions', 'viewer', 'scenes', 'texture', 'widgets'],
}
LATE = {'prior': {'real_priors'}}   # imported inside a function: `load_prior` hands over to the adapters when a borrowed model is asked for
LAZY = {'diffusers', 'transformers', 'mcubes', 'xatlas', 'fast_simplification', 'skimage', 'trimesh', 'ipywidgets', 'anywidget', 'traitlets', 'matplotlib', 'scipy', 'tinycudann', 'imageio', 'pytorch_optimizer', 'accelerate'}
NEVER = {'nbdev', 'fastcore', 'execnb', 'IPython', 'pkg_resources', 'jupytext'}

@functools.cache
def upstream(module):
    return {m for arrow in ARROWS[module] for m in {arrow} | upstream(arrow)}

def imports(tree, inside_functions=True):
    "Every imported module in a piece of source, 'dreamfusion_nb.' in front of those of the package"
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, ['dreamfusion_nb' if node.level else None, node.module]))
            yield from ([f'{base}.{a.name}' for a in node.names] if base == 'dreamfusion_nb' else [base])
        elif inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(node, inside_functions)

def test_the_picture_is_of_this_package():
    assert set(ARROWS) == {m.stem for m in MODULES}

@pytest.mark.parametrize('module', MODULES, ids=name)
def test_imports_keep_to_the_picture(module):
    allowed = upstream(module.stem) | ({'utils', 'viz'} if module.stem not in ('utils', 'viz') else {'utils'}) | {'__version__'}
    def own(inside_functions): return {i.split('.')[1] for i in imports(ast.parse(module.read_text()), inside_functions) if i.startswith('dreamfusion_nb.')} - {module.stem}
    assert own(False) <= allowed, f'{module.stem} imports {sorted(own(False) - allowed)}'
    assert own(True) <= allowed | LATE.get(module.stem, set()), f'{module.stem} imports {sorted(own(True) - allowed)}'

@pytest.mark.parametrize('module', MODULES, ids=name)
def test_heavy_packages_are_imported_where_they_are_used(module):
    tree = ast.parse(module.read_text())
    assert not LAZY & {i.split('.')[0] for i in imports(tree, inside_functions=False)}
    assert not NEVER & {i.split('.')[0] for i in imports(tree)}

@pytest.mark.parametrize('module', MODULES, ids=name)
def test_no_star_imports(module):
    assert not [n for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']

# ---- 5. importing stays light

def loaded_after(statement):
    return set(run(sys.executable, '-c', f'{statement}\nimport sys; print(*sys.modules)').split())

def test_importing_the_package_is_light():
    assert not (LAZY | {'torch'}) & loaded_after('import dreamfusion_nb')

def test_importing_every_module_is_light():
    assert not LAZY & loaded_after('import ' + ', '.join(f'dreamfusion_nb.{m.stem}' for m in MODULES))

# ---- 6. what is committed

@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name)
def test_notebook_is_fit_to_read(notebook):
    text = notebook.read_text()
    nb = json.loads(text)
    assert len(text) < 1_000_000, f'{len(text)} bytes'
    assert (nb['nbformat'], nb['nbformat_minor']) >= (4, 5)
    assert nb['metadata']['kernelspec']['name'] == 'python3' and 'jupytext' not in nb['metadata']
    ids = [c.get('id') for c in nb['cells']]
    assert all(ids) and len(set(ids)) == len(ids), 'every cell needs an id of its own'
    first = next(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    assert re.match(r'# .+\n\n> .+', first), 'a notebook begins with a title and a subtitle'
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert outputs, 'the saved outputs are the website: save them'
    assert not [o for o in outputs if o['output_type'] == 'error']
    assert not [o for o in outputs if o.get('name') == 'stderr'], 'a warning or an error message was saved'
    hidden = [c['id'] for c in nb['cells'] if '#| hide\n' in ''.join(c['source'][:3]) and any('image/png' in o.get('data', {}) for o in c.get('outputs', []))]
    assert not hidden, 'the site hides what a `#| hide` cell shows: to hide only its source, say `#| echo: false`'

def test_links_between_notebooks_lead_somewhere():
    text = {n.name: ''.join(''.join(c['source']) for c in json.loads(n.read_text())['cells'] if c['cell_type'] == 'markdown') for n in NOTEBOOKS}
    links = {(name, link) for name, t in text.items() for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', t)}
    assert not sorted((name, link) for name, link in links if not (ROOT/'nbs'/link).exists())

@pytest.mark.slow
def test_site_can_be_built(tmp_path):
    "Everything that happens to the notebooks before Quarto draws the pages: they are processed, and the signatures are looked up"
    project = copy_project(tmp_path/'project', 'weights')
    stand_in(tmp_path/'bin/quarto', 'exit 0')
    printed = run(Path(sys.executable).with_name('nbdev-proc-nbs'), '--n-workers', '1', cwd=project, PATH=f'{tmp_path/"bin"}:{os.environ["PATH"]}')
    assert {p.name for p in (project/'_proc').glob('*.ipynb')} == {n.name for n in NOTEBOOKS}
    assert 'imports and other code' not in printed, printed

def project_files():
    "Everything that is or could be committed"
    if (ROOT/'.git').exists():
        listed = run('git', '-c', f'safe.directory={ROOT}', 'ls-files', '--cached', '--others', '--exclude-standard').splitlines()
        return [ROOT/f for f in listed if (ROOT/f).is_file() and not f.startswith('shared/')]
    return [f for f in (*ROOT.glob('*.*'), *ROOT.glob('nbs/*.*'), *ROOT.glob('tests/*.py'), *PACKAGE.glob('**/*.*')) if f.is_file() and f.suffix != '.pyc']

def readable(path):
    "The text of a file; of a notebook without its pictures"
    if path.suffix in ('.png', '.gif', '.safetensors', '.glb', '.jpg', '.mp4', '.webp'): return ''
    return re.sub(r'"image/\w+": "[^"]*"', '', path.read_text(encoding='utf-8'))

def test_no_absolute_paths():
    of_a_machine = re.compile(r'(?<![\w.~$}/])/(?:home|Users|root|work|mnt|opt|tmp|private|var|content)/[\w.]+')
    found = {str(f.relative_to(ROOT)): m.group() for f in project_files() if (m := of_a_machine.search(readable(f)))}
    assert not found

# ---- 7. the wheel

@pytest.fixture(scope='session')
def dist(tmp_path_factory):
    "The sdist, and the wheel built from it"
    folder = tmp_path_factory.mktemp('dist')
    project = copy_project(folder/'project')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, project)
    return folder

@pytest.fixture(scope='session')
def wheel(dist): return next(dist.glob('*.whl'))

def test_wheel_holds_the_package(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = {n for n in z.namelist() if not n.endswith('/')}
        info = next(n.split('/')[0] for n in names if '.dist-info/' in n)
        metadata = email.message_from_string(z.read(f'{info}/METADATA').decode())
        entry_points = z.read(f'{info}/entry_points.txt').decode()
    expected = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert {n for n in names if not n.startswith(info)} == expected
    assert any(n.endswith('transformer/diffusion_pytorch_model.safetensors') for n in names)
    assert any(n.startswith(info) and n.endswith('LICENSE') for n in names)
    assert metadata['Name'].replace('-', '_') == SETTINGS['lib_name'] and metadata['Version'] == SETTINGS['version']
    assert metadata['License-Expression'] == 'Apache-2.0' and metadata['Summary'] == SETTINGS['description']
    assert metadata.get_payload().strip() == (ROOT/'README.md').read_text().strip()
    assert 'dreamfusion = dreamfusion_nb.cli:main' in entry_points.replace('=', ' = ').replace('  ', ' ')

def test_sdist_holds_the_notebooks(dist):
    import tarfile
    with tarfile.open(next(dist.glob('*.tar.gz'))) as t: names = {n.split('/', 1)[-1] for n in t.getnames()}
    assert {f'nbs/{n.name}' for n in NOTEBOOKS} | {'settings.ini', 'LICENSE', 'Makefile', 'tests/test_project.py'} <= names

@pytest.mark.slow
def test_wheel_dreams_elsewhere(wheel, tmp_path):
    "Installed from the wheel alone, far from the sources, the command makes a whole run folder"
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path/'venv')
    python = tmp_path/'venv'/'bin'/'python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel)
    # torch and the rest are seen where they are, instead of being installed again; written after the install, or pip would see this project too
    own = Path(run(python, '-c', 'import site; print(site.getsitepackages()[0])').strip())
    (own/'elsewhere.pth').write_text('\n'.join(site.getsitepackages()) + '\n')
    assert Path(run(python, '-c', 'import dreamfusion_nb; print(dreamfusion_nb.__file__)', cwd=tmp_path).strip()).is_relative_to(own)
    run(python.with_name('dreamfusion'), 'generate', 'a red ball', '--out', 'X', '--steps', '3', '--seed', '1', cwd=tmp_path)
    made = {p.name for p in (tmp_path/'X').iterdir()}
    assert {'run.json', 'scene.safetensors', 'log.csv', 'views.png', 'turntable.gif', 'mesh.glb'} <= made
    record = json.loads((tmp_path/'X'/'run.json').read_text())
    assert record['prompt'] == 'a red ball' and record['version'] == SETTINGS['version']

# ---- 8. make

@pytest.fixture
def workshop(tmp_path):
    "A folder with our Makefile and a .venv of stand-ins in which every command succeeds"
    for f in ('Makefile', 'setup.py', 'settings.ini', 'pyproject.toml', 'constraints.txt'): shutil.copy(ROOT/f, tmp_path)
    stand_in(tmp_path/'.venv/bin/pip', 'echo "pip from $(pwd -P)/.venv/lib"')
    stand_in(tmp_path/'.venv/bin/python', 'echo "$@" >> calls')
    stand_in(tmp_path/'.venv/bin/dreamfusion', 'printf "%s\\n" "$@" > words')
    return tmp_path

def make(folder, *arguments):
    return subprocess.run(['make', *arguments], cwd=folder, text=True, capture_output=True, timeout=60,
                          env={k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'PROMPT', 'ARGS')})

@pytest.mark.parametrize('prompt', ['a red mug', "a bear's mug", 'a "red" mug', 'a $5 $(shell touch oops) mug', '`touch oops`; touch oops', '# \\n %s'])
def test_make_passes_the_prompt_letter_by_letter(workshop, prompt):
    done = make(workshop, 'dream', f'PROMPT={prompt}', 'ARGS=--seed 3')
    assert done.returncode == 0, done.stderr
    assert (workshop/'words').read_text() == f'generate\n{prompt}\n--seed\n3\n'
    assert not (workshop/'oops').exists()

def test_make_sets_up_once(workshop):
    for _ in range(2): assert make(workshop, 'words').returncode == 0
    assert (workshop/'calls').read_text().count('install') == 1
    assert make(workshop, 'test').returncode == 0 and make(workshop, 'words').returncode == 0
    assert (workshop/'calls').read_text().count('install') == 2

def test_make_tries_a_failed_set_up_again(workshop):
    stand_in(workshop/'.venv/bin/python', 'exit 1')
    done = make(workshop, 'words')
    assert done.returncode != 0 and 'did not finish' in done.stderr
    assert not list((workshop/'.venv').glob('.ready*')) and not (workshop/'words').exists()

def test_make_says_what_is_missing(workshop):
    assert 'a red mug' in make(workshop, 'dream').stderr
    stand_in(workshop/'old', '[ "$1" = --version ] && echo Python 3.8.1; exit 1')
    done = make(workshop, 'words', 'PYTHON=./old')
    assert done.returncode != 0 and '3.11 or newer' in done.stderr and '3.8.1' in done.stderr
    assert 'no nothing' in make(workshop, 'words', 'PYTHON=nothing').stderr.replace('there is no', 'no')

# ---- 9. the README

README = (ROOT/'README.md').read_text()

def test_readme_links_lead_somewhere():
    links = [l for l in re.findall(r'\]\(([^)]+)\)', README) if '://' not in l]
    assert {f'nbs/{n.name}' for n in NOTEBOOKS} <= set(links)
    assert not [l for l in links if not (ROOT/l).exists()]

def test_readme_names_what_exists():
    code = [node for block in re.findall(r'```python\n(.*?)```', README, re.S) for node in ast.parse(block).body]
    run(sys.executable, '-c', '\n'.join(ast.unparse(n) for n in code if isinstance(n, ast.ImportFrom)))
    targets = set(re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(), re.M))
    assert set(re.findall(r'\bmake ([a-z-]+) *(?:PROMPT.*)?(?:#|`)', README)) <= targets

def test_readme_lists_the_words_of_the_prior():
    from dreamfusion_nb.prior import load_prior, words
    from dreamfusion_nb.shapeworld import COLOURS, OBJECTS
    known = set(words(load_prior()))
    for table in (OBJECTS, COLOURS): assert len(known & set(table)) >= 10 and ', '.join(sorted(known & set(table))) in README.replace('\n', ' ')
