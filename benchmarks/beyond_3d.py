"""One object with each of the gradients of notebook 14: the same prompt, seed and settings, and another line in the place of score distillation.

    python benchmarks/beyond_3d.py "a red mug" --out runs/beyond --quality draft

It takes about as long as one run of `dreamfusion generate` for each method, SDI several times that. `generate` is used as it is: it looks up `sds_grad` by name, and here that name stands for
another function while it runs. The marks (notebook 13), the seconds and the prior's calls are printed and written to results.json, with one sheet of views for each method and one of them all. A method that
is in results.json already is not made again.
"""
import argparse, json, sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch
from PIL import Image, ImageDraw
from dreamfusion_nb.beyond import SideGuess, csd, ddim_noise, distil_grad, nfsd, sds, sjc, vsd
from dreamfusion_nb.evaluate import marks
from dreamfusion_nb.generate import QUALITIES, generate, views_sheet
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.sds import sds_grad
from dreamfusion_nb.utils import write_atomic
from dreamfusion_nb.viz import save_png

def instead(push, negative=False, invert=False):
    "A function with the arguments of `sds_grad` that follows another push; without a bound on the contrast"
    def grad(prior, z, cond, uncond, step, noise, guidance, weight=None, contrast=None):
        if invert:
            found = ddim_noise(prior, z, cond, uncond, step, calls=5)
            noise = .91**.5*found/found.std() + .3*noise
        return distil_grad(prior, z, cond, uncond, step, noise, push, weight, uncond if negative else None)
    return grad

METHODS = {  # what stands for `sds_grad`, changed settings
    'as is': lambda: (sds_grad, {}),
    'SDS': lambda: (instead(partial(sds, guidance=20.)), {}),
    'SJC': lambda: (instead(partial(sjc, guidance=20.)), {}),
    'CSD': lambda: (instead(csd), {}),
    'NFSD': lambda: (instead(nfsd, negative=True), {}),
    'SDI': lambda: (instead(partial(sds, guidance=6.5), invert=True), dict(t_high=(.98, .25), t_low=(.98, .25), weight_power=0.)),
}

def poster(out:Path, names):
    "The objects under the lamp, once around, a row for each method"
    side, left = 98, 50
    whole = Image.new('RGB', (left + 8*side, len(names)*side), 'white')
    for row, name in enumerate(names):
        ImageDraw.Draw(whole).text((4, row*side + side//2 - 6), name, 'black')
        with Image.open(out/f'{name.replace(" ", "-")}.png') as views: whole.paste(views.crop((0, side, 8*side - 2, 2*side - 2)), (left, row*side))
    whole.quantize(128).save(out/'sheet.png', optimize=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('prompt', nargs='?', default='a red mug')
    p.add_argument('--out', type=Path, required=True, help='folder for the sheets and results.json')
    p.add_argument('--methods', nargs='*', choices=[*METHODS, 'VSD'], default=[*METHODS, 'VSD'])
    p.add_argument('--quality', choices=QUALITIES, default='draft')
    p.add_argument('--steps', type=int, help='in place of those of the quality')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--device', default='cpu')
    a = p.parse_args()
    settings, prior, file = QUALITIES[a.quality], load_prior('embedded', a.device), a.out/'results.json'
    if a.steps: settings = replace(settings, steps=a.steps)
    about = {'prompt': a.prompt, 'quality': a.quality, 'seed': a.seed, 'steps': settings.steps}
    found = json.loads(file.read_text()) if file.exists() else {**about, 'methods': {}}
    if {k: found[k] for k in about} != about: sys.exit(f'beyond_3d: {a.out} holds another experiment: choose another --out.')
    for name in a.methods:
        if name in found['methods']: continue
        grad, changed = METHODS[name]() if name in METHODS else (instead(partial(vsd, own=SideGuess().to(a.device))), {})
        start, calls, used = time.perf_counter(), [], []
        ask = prior.eps
        def counted(z_t, *rest): calls.append(len(z_t)); return ask(z_t, *rest)
        def noticed(*args, **kwargs): used.append(1); return grad(*args, **kwargs)
        with patch('dreamfusion_nb.generate.sds_grad', noticed), patch.object(prior, 'eps', counted):
            scene = generate(a.prompt, prior, replace(settings, **changed), a.seed, a.device)
        assert len(used) == settings.steps, 'generate no longer looks up sds_grad by name'
        found['methods'][name] = row = {'seconds': time.perf_counter() - start, 'calls': sum(calls)/settings.steps, **marks(scene)[0]}
        save_png(views_sheet(scene), a.out/f'{name.replace(" ", "-")}.png')
        print(f'{name:6}', ', '.join(f'{k} {v:.3g}' for k, v in row.items()), flush=True)
        write_atomic(file, lambda p: p.write_text(json.dumps(found, indent=1) + '\n'))
    poster(a.out, [name for name in [*METHODS, 'VSD'] if name in found['methods']])

if __name__ == '__main__': main()
