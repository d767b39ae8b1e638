"""A measured search: run a suite once for each of several settings, and put the results side by side.

    python benchmarks/compare_settings.py --suite quick --out runs/guidance --try guidance=10 --try "guidance=20,lambda_entropy=0:.3"

Each `--try` is one experiment: changes of the quality's settings, joined by commas (see `Settings` in notebook 09); a pair of numbers is written with a colon. The settings as they are
come first, as `as is`. Each experiment has a folder of its own under `--out` with its runs, table and page; the same call again goes on where it was stopped.
"""
import argparse, ast, json, sys
from dataclasses import fields
from pathlib import Path
from dreamfusion_nb.generate import QUALITIES, Settings
from dreamfusion_nb.runs import slug
from dreamfusion_nb.suites import aligned, evaluate_suite, written
from dreamfusion_nb.utils import UserError

COLUMNS = {'R colour': (('r_precision', 'colour'), '.1%'), 'R geom.': (('r_precision', 'geometry'), '.1%'), 'IoU': (('iou_median',), '.3f'), 'Chamfer': (('chamfer_median',), '.3f'),
           'dE00': (('colour_median',), '.1f'), 'one face': (('faces', 'one'), '.0%'), 'facing': (('facing_mean',), '.0%'), 'empty or full': (('empty_or_full',), 'd'), 'failed': (('failed',), 'd'),
           's': (('seconds_per_prompt',), '.0f')}

def value(
    said:str, # a number, a word, a pair joined by a colon
):
    "What is meant by it"
    if ':' in said: return tuple(value(part) for part in said.split(':'))
    try: return ast.literal_eval(said)
    except (ValueError, SyntaxError): return said

def changes(
    said:str, # such as guidance=20,steps=400
)->dict:
    "The settings that an experiment changes"
    known, found = {f.name for f in fields(Settings)}, {}
    for part in filter(None, said.split(',')):
        name, is_there, what = (piece.strip() for piece in part.partition('='))
        if not is_there or not what: raise UserError(f'{part!r} is no change of a setting: write it as guidance=20.')
        if name not in known: raise UserError(f'There is no setting {name!r}; there are {", ".join(sorted(known))}.')
        found[name] = value(what)
    return found

def figure(
    summary:dict, # from `evaluate_suite`
    path:tuple,   # keys, one below the other
    how:str,      # format
)->str:
    "One cell of the table"
    for key in path: summary = summary[key]
    return written(summary, how)

def comparison(
    found:dict, # name of the experiment -> summary
)->str:
    "One row for each experiment"
    return aligned([['settings', *COLUMNS], *([name, *(figure(summary, *column) for column in COLUMNS.values())] for name, summary in found.items())])

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--suite', default='quick', help='as in `dreamfusion evaluate` (default quick)')
    p.add_argument('--out', type=Path, required=True, help='folder for the experiments and the table')
    p.add_argument('--try', dest='tries', action='append', default=[], metavar='NAME=VALUE,...', help='changes of settings; once for each experiment')
    p.add_argument('--prompts', type=int, help='only the first so many of the suite')
    p.add_argument('--prior', default='embedded')
    p.add_argument('--quality', choices=QUALITIES, default='draft')
    p.add_argument('--seeds', type=int, default=1, help='runs for each prompt (default 1)')
    p.add_argument('--judge', default='embedded')
    p.add_argument('--workers', type=int, help='processes (default: one for each core; 1 on a GPU)')
    p.add_argument('--device', default='auto')
    a = p.parse_args(argv)
    common = {k: v for k, v in vars(a).items() if k not in ('out', 'tries')}
    try:
        experiments, found = {'as is': {}, **{said: changes(said) for said in a.tries}}, {}
        for name, changed in experiments.items():
            found[name] = evaluate_suite(out=a.out/(slug(name.replace('.', 'p').replace('-', 'm')) or 'as-is'), **common, **changed)
            print(comparison(found), end='\n\n', flush=True)
    except KeyboardInterrupt: sys.exit(130)
    except (UserError, OSError) as e: sys.exit(f'compare_settings: {e}')
    (a.out/'comparison.txt').write_text(comparison(found) + '\n')
    (a.out/'comparison.json').write_text(json.dumps({name: {k: v for k, v in s.items() if k != 'prompts'} for name, s in found.items()}, indent=1) + '\n')

if __name__ == '__main__': main()
