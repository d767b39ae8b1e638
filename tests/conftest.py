"Browsers and Jupyter servers for the tests that look at a page"
import os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
from urllib.parse import urlsplit
import pytest

DRAW = '--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist'.split()   # WebGL without a GPU

def why_no_browser():
    "One line on what to install, or None"
    if not next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None): return 'no Chromium: apt-get install chromium (as root), or install Chrome'
    try: import playwright.sync_api
    except ImportError: return 'no playwright: pip install playwright (its own browsers are not needed)'

@pytest.fixture(scope='session')
def browser():
    "A Chromium without a window"
    if why := why_no_browser(): pytest.skip(why)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')))), args=DRAW)
        yield started
        started.close()

@pytest.fixture
def watch_page(browser):
    "Makes pages; whatever one of them complains about, or asks another machine for, fails the test. `page.problems` holds it until then"
    made = []
    def make(viewport=(1000, 700), forgive=(), **context):
        context = browser.new_context(viewport=dict(zip(('width', 'height'), viewport)), **context)
        page = context.new_page()
        page.problems = []
        def note(text):
            if not any(f in text for f in forgive): page.problems.append(text)
        page.on('console', lambda m: m.type == 'error' and note(f'console: {m.text} ({m.location.get("url", "")})'))
        page.on('pageerror', lambda e: note(f'exception: {e}'))
        page.on('request', lambda r: foreign(r.url) and note(f'request: {r.url}'))
        made.append((context, page))
        return page
    yield make
    problems = [p for _, page in made for p in page.problems]
    for context, _ in made: context.close()
    assert not problems

def foreign(url):
    parts = urlsplit(url)
    return parts.scheme not in ('file', 'data', 'blob', 'about') and parts.hostname not in ('127.0.0.1', 'localhost')

def run_cell(page, i):
    "Shift+Enter in the code cell `i` of an open notebook, until it says that it is at work or was: a page that is not ready yet lets the keys fall"
    from playwright.sync_api import TimeoutError
    for _ in range(40):
        page.locator('.cm-content').nth(i).click()
        page.keyboard.press('Shift+Enter')
        try: return page.wait_for_function(r"i => /\[(\*|\d+)\]/.test(document.querySelectorAll('.jp-InputPrompt')[i]?.textContent)", arg=i, timeout=3000)
        except TimeoutError: pass
    raise AssertionError(f'the cell {i} does not begin')

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='session')
def jupyter(tmp_path_factory):
    "Starts JupyterLab or Notebook 7 over a folder, with settings of its own, and gives its address"
    running = {}
    def start(app, folder):
        if (app, folder) in running: return running[app, folder][0]
        if why := why_no_browser(): pytest.skip(why)
        port, home = free_port(), tmp_path_factory.mktemp(f'jupyter-{app}')
        env = {k: v for k, v in os.environ.items() if not k.startswith(('JUPYTER', 'IPYTHON'))} | {f'JUPYTER_{k}_DIR': str(home/k.lower()) for k in ('CONFIG', 'RUNTIME', 'DATA')} | {
            'IPYTHONDIR': str(home/'ipython'), 'HF_HUB_OFFLINE': '1', 'JUPYTERLAB_SETTINGS_DIR': str(home/'lab'), 'JUPYTERLAB_WORKSPACES_DIR': str(home/'spaces'), 'OMP_NUM_THREADS': '1'}
        log = open(home/'log', 'w')
        server = subprocess.Popen([sys.executable, '-m', {'lab': 'jupyterlab', 'notebook': 'notebook'}[app], '--no-browser', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=',
            '--ServerApp.password=', '--allow-root', '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', f'--ServerApp.root_dir={folder}'], env=env, stdout=log, stderr=log, cwd=folder)
        running[app, folder] = address, server, log = f'http://127.0.0.1:{port}', server, log
        end = time.time() + 90
        while True:
            try: return urllib.request.urlopen(address + '/api', timeout=2) and address
            except OSError:
                assert server.poll() is None and time.time() < end, Path(log.name).read_text()[-2000:]
                time.sleep(.2)
    yield start
    for _, server, log in running.values():
        server.terminate()
        try: server.wait(15)
        except subprocess.TimeoutExpired: server.kill()
        log.close()
