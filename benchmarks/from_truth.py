"""Where does it go wrong, in the prior or on the way to it? Start score distillation at the true shape and see how far it walks away.

    python benchmarks/from_truth.py "a green car" --try guidance=5,t_high=.7:.7,t_low=.3:.3

A setting under which the truth stays has no fault that more steps could show; what a run from nothing loses beyond that, it loses on the way. Each `--try` is written as in
compare_settings.py and runs 250 steps of 64 x 64 pixels from the same start, whose own marks come first.
"""
import argparse, sys
import torch
from compare_settings import changes
from dreamfusion_nb.evaluate import marks, meaning
from dreamfusion_nb.field import blob
from dreamfusion_nb.generate import Dream, Settings
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.shapeworld import as_field, distance
from dreamfusion_nb.utils import UserError

SHORT = dict(steps=250, sizes=((0., 64),), lr=.03, warmup=.1, albedo_until=0., occupancy_from=0.)

@torch.no_grad()
def put_truth_into(
    dream:Dream, # with the field `grid`, not yet begun
):
    "Fill the finest grid with the shape and the colours that the prompt means, and empty the others"
    said, levels = meaning(dream.prompt), dream.field.levels
    axis = torch.linspace(-1, 1, levels[-1].shape[-1])
    x = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij')[::-1], -1)            # stored as z, y, x
    start = dream.field.to_density.keywords
    for level in levels: level.zero_()
    levels[-1][0, 0] = (-120*distance(said['thing'], x)).clamp(-9, 3) - start['empty'] - blob(x, start['height'], start['width'])
    levels[-1][0, 1:] = torch.logit(as_field(**said)(x)[1].clamp(.02, .98)).movedim(-1, 0)
    dream.occupancy.update(dream.field.density, .05)

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('prompt', help='a sentence of the captioned world')
    p.add_argument('--try', dest='tries', action='append', default=[], metavar='NAME=VALUE,...', help='changes of settings; once for each experiment')
    p.add_argument('--prior', default='embedded')
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args(argv)
    try:
        prior, experiments = load_prior(a.prior), {'the start': dict(steps=1), 'as is': {}, **{said: changes(said) for said in a.tries}}
        for name, changed in experiments.items():
            dream = Dream(a.prompt, prior, Settings(**{**SHORT, **changed}), a.seed)
            put_truth_into(dream)
            if name != 'the start':
                for _ in dream: pass
            found = marks(dream.scene)[0]
            print(f'{name:40} IoU {found["iou"]:.3f}  Chamfer {found["chamfer"]:.4f}  dE00 {found["colour"]:.1f}  fog {found["fog"]:.2f}', flush=True)
    except KeyboardInterrupt: sys.exit(130)
    except (UserError, OSError) as e: sys.exit(f'from_truth: {e}')

if __name__ == '__main__': main()
