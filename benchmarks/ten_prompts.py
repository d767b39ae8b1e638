"""Run the main job on ten prompts, drawn once from the 15 toys in 10 colours that the embedded prior knows, and put the results on one sheet.

    python benchmarks/ten_prompts.py --out runs/ten

Each row is one prompt: the shaded object once around at 20 degrees, then from 45 degrees (two views) and 70 (two). Its marks (notebook 13) are printed beside it.
A run that is there already is not made again.
"""
import argparse, json, statistics
from pathlib import Path
import torch
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.evaluate import marks
from dreamfusion_nb.generate import QUALITIES, Scene, lamp_by, look
from dreamfusion_nb.runs import generate_run, slug
from dreamfusion_nb.viz import sheet, to_uint8

PROMPTS = ('an orange mug', 'a green car', 'a white ring', 'an orange table', 'a white mug', 'a yellow table', 'a gray ring', 'a yellow mug', 'a pink duck', 'a white rocket')

def row(scene, size):
    "Twelve views of a finished object, (12, 3, size, size)"
    cameras = orbit(torch.cat([torch.arange(8)*45., torch.tensor([45., 225., 0., 135.])]), torch.tensor([20.]*8 + [45.]*2 + [70.]*2), 2.5, 1.3)
    return look(scene, cameras, size, 96, lamp_by(cameras)).rgb.movedim(-1, 1)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, required=True, help='folder for the runs and the sheet')
    p.add_argument('--prompts', type=int, default=10, help='only the first so many (default 10)')
    p.add_argument('--seed', type=int, default=0, help='seed of the runs (default 0)')
    p.add_argument('--quality', choices=QUALITIES, default='draft')
    p.add_argument('--size', type=int, default=80, help='pixels per picture (default 80)')
    a = p.parse_args()
    from PIL import Image, ImageDraw
    prompts, rows, results = PROMPTS[:a.prompts], [], {}
    for prompt in prompts:
        folder = a.out/slug(prompt)
        if not folder.exists(): generate_run(prompt, folder, seed=a.seed, quality=a.quality, resume=folder.with_name(folder.name + '.partial').exists())
        scene = Scene.load(folder/'scene.safetensors')
        results[prompt] = {'seconds': json.loads((folder/'run.json').read_text())['seconds']['total'], **marks(scene)[0]}
        rows.append(row(scene, a.size))
        print(f'{prompt:24}', ', '.join(f'{k} {v:.3g}' for k, v in results[prompt].items()), flush=True)
    picture = Image.fromarray(to_uint8(sheet(rows)))
    page = Image.new('RGB', (picture.width + 130, picture.height), 'white')
    page.paste(picture, (130, 0))
    for i, prompt in enumerate(prompts): ImageDraw.Draw(page).text((6, i*(a.size + 2) + a.size//2 - 5), prompt, fill='black')
    page.quantize(128).save(a.out/'sheet.png', optimize=True)
    (a.out/'results.json').write_text(json.dumps(results, indent=1) + '\n')
    print('median  ' + ', '.join(f'{k} {statistics.median(r[k] for r in results.values()):.3g}' for k in results[prompts[0]]))
    print(f'longest {max(r["seconds"] for r in results.values()):.1f} s; {a.out/"sheet.png"}')

if __name__ == '__main__': main()
