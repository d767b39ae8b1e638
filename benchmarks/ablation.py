"""The paper's ablation (figure 6) and its sweep of the guidance weight (figure 9), in the world of the embedded prior.

    python benchmarks/ablation.py rungs --out runs/ablation
    python benchmarks/ablation.py guidance --out runs/guidance

`rungs` adds one thing after the other, as the paper does: at first cameras at one height and one distance, colours without light and prompts without a word for the view; then the wide range of cameras; then the
paper's four view words; then a lamp; then white objects. Two rows more are ours: twenty-four view phrases with cameras that begin near them, in place of the four words and the white objects; and quality `draft` as it is,
which also cleans the surface at the end. `guidance` runs `draft` with other guidance weights and without the cleaning, which has a weight of its own. Each run is marked by the embedded judge three times: by its colours alone, under a lamp, and white under a lamp; and by its overlap with the true shape.

The prompts are those of the suite `quick` whose objects have sides. The same call goes on where it was stopped. Each run has a folder with its scene, its marks and a picture; results.json, table.txt and sheet.png are written again
now and then, over the rounds that are whole (all variants of one prompt and seed). An error is the standard error over runs (prompts and seeds).
"""
import argparse, json, statistics, sys, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
import torch
from PIL import Image, ImageDraw
from dreamfusion_nb import __version__
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.evaluate import hits, judged_pictures, load_judge, marks, plain
from dreamfusion_nb.generate import QUALITIES, Dream, look
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.runs import slug
from dreamfusion_nb.suites import aligned, suite_captions, suite_prompts, written
from dreamfusion_nb.utils import UserError, write_atomic
from dreamfusion_nb.viz import save_png, sheet

NARROW = dict(elevation=(30., 30.), distance=(2.5, 2.5), focal=(1.3, 1.3), position_jitter=0., target_jitter=0., up_jitter=0.)
BARE = dict(view_words=False, fine_views=False, mixed_views=False, perp_neg=0., pose_spread=(1., 0., 1.), shaded=0., textureless=0., finish=0.)
RUNGS = {'base': BARE | NARROW,
         '+ cameras': BARE,
         '+ view words': BARE | dict(view_words=True),
         '+ lamp': BARE | dict(view_words=True, shaded=.75),
         '+ white objects': BARE | dict(view_words=True, shaded=.75, textureless=.5),
         '24 phrases': dict(finish=0.),
         'draft': {}}
WEIGHTS = 2., 5., 10., 20., 50., 100.
SEEN = 'albedo', 'shaded', 'textureless'
COLUMNS = {'albedo': '.1%', 'shaded': '.1%', 'textureless': '.1%', 'iou': '.3f', 'chamfer': '.3f'}
ROUND = 'ball', 'ring', 'mushroom', 'lamp'                    # alike from all sides: nothing to be seen of what this is about

def variants(
    what:str,  # 'rungs' or 'guidance'
    free:bool, # without a bound on the contrast
)->dict: # name -> changes of the settings
    "What is compared"
    unbound = dict(contrast=None) if free else {}
    return {name: changed | unbound for name, changed in RUNGS.items()} if what == 'rungs' else {f'w = {w:g}': dict(guidance=w, finish=0.) | unbound for w in WEIGHTS}

def sided()->list[str]:
    "The prompts of the suite `quick` whose objects are not alike from all sides"
    return [prompt for prompt in suite_prompts('quick') if prompt.split()[-1] not in ROUND]

def pictures(scene)->dict: # name of `SEEN` -> (8, 3, 64, 64)
    "The object once around, at the height where the judge looks from"
    bare = look(scene, orbit(torch.arange(8)*45., 30., 2.5, 1.3), 64, 64, background=.6).rgb.movedim(-1, 1).clamp(0, 1)
    return {'albedo': bare, 'shaded': judged_pictures(scene), 'textureless': judged_pictures(scene, textureless=True)}

def begin():
    "What each process has for all its runs"
    global PRIOR, JUDGE
    torch.set_num_threads(1)
    PRIOR, JUDGE = load_prior(), load_judge()

def make(job:dict)->dict: # `folder`, `variant`, `prompt`, `seed`, `settings`, `captions` -> marks
    "One run and its marks, kept in its folder"
    folder, start = Path(job['folder']), time.perf_counter()
    dream = Dream(job['prompt'], PRIOR, job['settings'], job['seed'])
    for _ in dream: pass
    seconds, seen, own = time.perf_counter() - start, pictures(dream.scene), job['captions'].index(job['prompt'])
    asked = {name: [plain(c) for c in job['captions']] if name == 'textureless' else job['captions'] for name in SEEN}
    found = {name: hits(JUDGE, shown, own, asked[name]).float().mean().item() for name, shown in seen.items()}
    try: shape = marks(dream.scene)[0]
    except UserError as e: shape = {'iou': 0., 'chamfer': None, 'why': str(e)}                      # there is no mesh
    dream.scene.save(folder/'scene.safetensors')
    save_png(sheet(list(seen.values())), folder/'strip.png')
    row = {'variant': job['variant'], 'prompt': job['prompt'], 'seed': job['seed'], **found, **shape, 'seconds': round(seconds, 1)}
    write_atomic(folder/'marks.json', lambda p: p.write_text(json.dumps(row, indent=1) + '\n'))    # last: a folder without it is made again
    return row

def mean_error(
    values, # numbers
)->tuple: # mean and its standard error; None where there are too few
    "How sure a mean is, if the runs are independent"
    values = [v for v in values if v is not None]
    return statistics.fmean(values) if values else None, statistics.stdev(values)/len(values)**.5 if len(values) > 1 else None

def summarised(
    rows:list,  # of marks
    names:list, # of the variants, in order
)->dict: # also of each step from one variant to the next, run by run
    "Means over the rounds that every variant has"
    by_run = {(r['prompt'], r['seed'], r['variant']): r for r in rows}
    whole = sorted({(p, s) for p, s, _ in by_run if all((p, s, name) in by_run for name in names)})
    def column(name, key): return [by_run[*run, name].get(key) for run in whole]
    def gain(before, after, key): return [b - a for a, b in zip(column(before, key), column(after, key)) if None not in (a, b)]
    return {'rounds': len(whole), 'prompts': len({p for p, _ in whole}), 'seeds': len({s for _, s in whole}),
            'means': {name: {key: mean_error(column(name, key)) for key in COLUMNS} for name in names},
            'gains': {after: {key: mean_error(gain(before, after, key)) for key in COLUMNS} for before, after in zip(names, names[1:])},
            'empty': {name: sum(iou == 0 for iou in column(name, 'iou')) for name in names}}

def table(
    s:dict, # from `summarised`
)->str:
    "Means with their errors, and what each step brought"
    def cells(found, sign=''): return [f'{written(found[key][0], sign + how)} ± {written(found[key][1], how)}' for key, how in COLUMNS.items()]
    return '\n'.join([f'{s["rounds"]} runs of each: {s["prompts"]} prompts, {s["seeds"]} seeds',
                      aligned([['', *COLUMNS, 'no mesh'], *([name, *cells(found), str(s['empty'][name])] for name, found in s['means'].items())]),
                      '', 'change from the line above, run by run', aligned([['', *COLUMNS], *([name, *cells(found, '+')] for name, found in s['gains'].items())])])

def poster(
    jobs:list,    # whose runs are shown if they are there
    names:list,   # of the variants: one row each
    file:Path,
    columns=3,    # prompts side by side
    shown=(0, 2, 4, 6), # of the eight pictures of a strip
):
    "The runs of the first seed: each variant a row; four sides of each prompt, with colour above and white below"
    wanted = list(dict.fromkeys(job['prompt'] for job in jobs if job['seed'] == jobs[0]['seed'] and (Path(job['folder'])/'strip.png').exists()))[-columns:]
    side, line, gap, left = 64, 14, 10, 100
    whole = Image.new('RGB', (left + len(wanted)*(len(shown)*side + gap), line + len(names)*(2*side + 4)), 'white')
    draw = ImageDraw.Draw(whole)
    for job in jobs:
        if job['seed'] != jobs[0]['seed'] or job['prompt'] not in wanted: continue
        k, i, strip = wanted.index(job['prompt']), names.index(job['variant']), Path(job['folder'])/'strip.png'
        x, y = left + k*(len(shown)*side + gap), line + i*(2*side + 4)
        if i == 0: draw.text((x, 1), job['prompt'], 'black')
        if k == 0: draw.text((2, y + side - 6), job['variant'], 'black')
        if not strip.exists(): continue
        with Image.open(strip) as p:
            for r, row in enumerate((1, 2)):                                       # shaded, textureless; `sheet` leaves two pixels between pictures
                for c, n in enumerate(shown): whole.paste(p.crop((n*(side + 2), row*(side + 2), n*(side + 2) + side, row*(side + 2) + side)), (x + c*side, y + r*side))
    write_atomic(file, lambda p: whole.quantize(128).save(p, 'png', optimize=True))

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('rungs', 'guidance'))
    p.add_argument('--out', type=Path, required=True, help='folder for the runs, the table and the picture')
    p.add_argument('--prompts', type=int, default=8, help='the first so many of the suite `quick` whose objects have sides (default 8: all of them)')
    p.add_argument('--seeds', type=int, default=2, help='runs for each prompt (default 2)')
    p.add_argument('--steps', type=int, default=400, help='of each run (default 400: half of `draft`)')
    p.add_argument('--free', action='store_true', help='no bound on the contrast of the guided guess, as in the paper')
    p.add_argument('--workers', type=int, default=2, help='processes with one thread each (default 2)')
    a = p.parse_args(argv)
    changed, captions = variants(a.what, a.free), suite_captions('quick')
    about = {'what': a.what, 'free': a.free, 'steps': a.steps, 'version': __version__, 'variants': json.loads(json.dumps(changed))}
    file = a.out/'about.json'
    if file.exists() and json.loads(file.read_text()) != about: sys.exit(f'ablation: {a.out} holds another experiment: choose another --out.')
    write_atomic(file, lambda p: p.write_text(json.dumps(about, indent=1) + '\n'))
    base = replace(QUALITIES['draft'], steps=a.steps)
    jobs = [{'folder': str(a.out/'runs'/f'{slug(prompt)}-{seed}'/str(k)), 'variant': name, 'prompt': prompt, 'seed': seed, 'captions': captions, 'settings': replace(base, **changes)}
            for seed in range(a.seeds) for prompt in sided()[:a.prompts] for k, (name, changes) in enumerate(changed.items())]
    kept = [Path(job['folder'])/'marks.json' for job in jobs]
    rows = [json.loads(k.read_text()) for k in kept if k.exists()]
    todo = [job for job, k in zip(jobs, kept) if not k.exists()]
    def report():
        s = summarised(rows, list(changed))
        write_atomic(a.out/'results.json', lambda p: p.write_text(json.dumps({**about, **s, 'runs': rows}, indent=1) + '\n'))
        write_atomic(a.out/'table.txt', lambda p: p.write_text(table(s) + '\n'))
        poster(jobs, list(changed), a.out/'sheet.png')
        return s
    pool = ProcessPoolExecutor(max(1, min(a.workers, len(todo))), get_context('spawn'), begin)
    try:
        for done in as_completed([pool.submit(make, job) for job in todo]):
            rows.append(done.result())
            if len(rows) % len(changed) == 0: print(f'{len(rows)} of {len(jobs)} runs, {report()["rounds"]} whole rounds', flush=True)
    except KeyboardInterrupt: sys.exit(130)
    finally: pool.shutdown(cancel_futures=True)
    print(table(report()))

if __name__ == '__main__': main()
