"""How a gallery of many runs behaves: how long it takes to make, its size, and in a browser the time to load, to answer a key, and to scroll.

    python benchmarks/gallery_page.py runs/quick --items 300 --out benchmarks/gallery.json

The runs in the folder are linked again and again until there are enough of them. Needs Chromium and playwright."""
import argparse, json, os, shutil, statistics, tempfile, time
from pathlib import Path
from playwright.sync_api import sync_playwright
from dreamfusion_nb.gallery import find_runs, make_gallery

TYPE = '''(text) => { const box = document.getElementById("search"), times = [];
  for (let round = 0; round < 5; round++) for (let n = 1; n <= text.length; n++) {
    box.value = text.slice(0, n); const t = performance.now(); box.dispatchEvent(new Event("input")); document.body.offsetHeight; times.push(performance.now() - t); }
  box.value = ""; box.dispatchEvent(new Event("input")); return times; }'''
SCROLL = '''() => new Promise(done => { const gaps = [], begin = performance.now(), height = document.body.scrollHeight - innerHeight; let last = begin;
  const frame = now => { gaps.push(now - last); last = now; const part = (now - begin)/4000; scrollTo(0, height*Math.min(1, part)); part < 1 ? requestAnimationFrame(frame) : done(gaps.slice(1)); };
  requestAnimationFrame(frame); })'''

def many(runs, n, folder):
    "n runs out of a few, as hard links, each with a sentence of its own"
    for i in range(n):
        run = folder/f'{runs[i % len(runs)].name}-{i}'
        run.mkdir(parents=True)
        for file in runs[i % len(runs)].iterdir():
            if file.name != 'run.json' and file.is_file(): os.link(file, run/file.name) if os.stat(file).st_dev == os.stat(run).st_dev else shutil.copy(file, run)
        record = json.loads((runs[i % len(runs)]/'run.json').read_text())
        (run/'run.json').write_text(json.dumps({**record, 'prompt': f'{record["prompt"]} {i}'}))

def spread(times): return {'median': round(statistics.median(times), 1), 'p95': round(sorted(times)[int(.95*(len(times) - 1))], 1), 'most': round(max(times), 1)}

def look(page_file):
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')))), args=['--no-sandbox'])
        loads, read = [], []
        for _ in range(5):
            page = browser.new_page(viewport={'width': 1280, 'height': 800})
            page.on('requestfinished', lambda r: read.append(r.url))
            read.clear()
            page.goto(page_file.as_uri())
            loads.append(page.evaluate('performance.getEntriesByType("navigation")[0].loadEventEnd'))
            page.wait_for_timeout(500)
            if len(loads) < 5: page.close()
        first = len(read) - 1
        keys, gaps = page.evaluate(TYPE, 'yellow mushroom 12'), page.evaluate(SCROLL)
        browser.close()
    return {'load_ms': spread(loads), 'pictures_at_first': first, 'key_ms': spread(keys), 'frame_ms': spread(gaps), 'frames': len(gaps)}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder')
    p.add_argument('--items', type=int, default=300)
    p.add_argument('--out', default='benchmarks/gallery.json')
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=Path(a.folder).parent) as folder:
        folder = Path(folder)
        many(find_runs(a.folder)[0], a.items, folder/'runs')
        begin, busy = time.time(), time.process_time()
        page, _ = make_gallery(folder/'runs')
        made = {'make_s': round(time.time() - begin, 1), 'make_cpu_s': round(time.process_time() - busy, 1)}
        begin, busy = time.time(), time.process_time()
        make_gallery(folder/'runs')
        made |= {'again_s': round(time.time() - begin, 1), 'again_cpu_s': round(time.process_time() - busy, 1)}
        files = list((folder/'runs'/'index-files').iterdir())
        size = lambda end: sum(f.stat().st_size for f in files if f.name.endswith(end))
        sizes = {'page': page.stat().st_size, 'viewer': size('viewer.js'), 'first_pictures': size('.webp') - size('-turn.webp'), 'strips': size('-turn.webp'), 'meshes': size('.js') - size('page.js')}
        result = {'items': a.items, **made, 'bytes': sizes, **look(page)}
    Path(a.out).write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))

if __name__ == '__main__': main()
