"""One object with each of the gradients of notebook 14: the same prompt, seed and settings, and another line in the place of score distillation.

    python benchmarks/beyond_3d.py "a red mug" --out runs/beyond --quality draft

It takes about as long as one run of `dreamfusion generate` for each method, SDI several times that. `generate` is used as it is: it looks up `sds_grad` by name, and here that name stands for
another function while it runs. The marks (notebook 13), the seconds and the prior's calls are printed and written to results.json, with one sheet of views for each method.
"""
import argparse, json, time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch
from dreamfusion_nb.beyond import SideGuess, csd, ddim_noise, distil_grad, nfsd, sds, sjc, vsd
from dreamfusion_nb.evaluate import marks
from dreamfusion_nb.generate import QUALITIES, generate, views_sheet
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.sds import sds_grad
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
    settings, prior, results = QUALITIES[a.quality], load_prior('embedded', a.device), {}
    if a.steps: settings = replace(settings, steps=a.steps)
    for name in a.methods:
        grad, changed = METHODS[name]() if name in METHODS else (instead(partial(vsd, own=SideGuess().to(a.device))), {})
        start, calls, used = time.perf_counter(), [], []
        ask = prior.eps
        def counted(z_t, *rest): calls.append(len(z_t)); return ask(z_t, *rest)
        def noticed(*args, **kwargs): used.append(1); return grad(*args, **kwargs)
        with patch('dreamfusion_nb.generate.sds_grad', noticed), patch.object(prior, 'eps', counted):
            scene = generate(a.prompt, prior, replace(settings, **changed), a.seed, a.device)
        assert len(used) == settings.steps, 'generate no longer looks up sds_grad by name'
        results[name] = {'seconds': time.perf_counter() - start, 'calls': sum(calls)/settings.steps, **marks(scene)[0]}
        save_png(views_sheet(scene), a.out/f'{name.replace(" ", "-")}.png')
        print(f'{name:6}', ', '.join(f'{k} {v:.3g}' for k, v in results[name].items()), flush=True)
    (a.out/'results.json').write_text(json.dumps({'prompt': a.prompt, 'quality': a.quality, 'seed': a.seed, 'methods': results}, indent=1) + '\n')

if __name__ == '__main__': main()
