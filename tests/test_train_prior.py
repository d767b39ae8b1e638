"Training: several processes, damaged checkpoints, what the command says"
import json, subprocess, sys
import pytest
import safetensors.torch
import torch
from dreamfusion_nb.cameras import POSES, VIEWS
from dreamfusion_nb.prior import PixelPrior, load_prior
from dreamfusion_nb.train_prior import (BLIND, PHRASES, Training, blind_share, denoising_loss, learning_rate, main, mean_layers, new_models, noise_levels, picture_batch,
                                        random_caption, train, trained_models, vocabulary)
from dreamfusion_nb.shapeworld import COLOURS, OBJECTS, compose
from dreamfusion_nb.utils import UserError, seeded

RUN = """
import sys, torch
import torch.distributed as dist
from dreamfusion_nb.train_prior import new_models, train
torch.set_num_threads(1)
if len(sys.argv) > 2: dist.init_process_group('gloo')
train(sys.argv[1], pictures=24, batch=4, per_object=40, models=new_models(0, 32, 1, 16), every=1000)
"""

@pytest.fixture
def folder(tmp_path):
    "A folder whose traced views are noise, so that nothing needs tracing"
    layers = torch.randint(256, (len(OBJECTS), 40, 5, 64, 64), generator=seeded(0), dtype=torch.uint8)
    views = torch.arange(40).remainder(24).expand(len(OBJECTS), 40).contiguous()
    def make(name):
        (tmp_path/name).mkdir()
        safetensors.torch.save_file({'layers': layers, 'views': views}, tmp_path/name/'world-40.safetensors')
        return tmp_path/name
    return make

def tiny(out, **kw): return train(out, pictures=24, batch=4, per_object=40, models=new_models(0, 32, 1, 16), **kw)

def test_two_processes_train_what_one_trains(folder, tmp_path):
    one, two, script = folder('one'), folder('two'), tmp_path/'run.py'
    script.write_text(RUN)
    subprocess.run([sys.executable, script, one], check=True, capture_output=True, timeout=300)
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', script, two, 'shared'],
                   check=True, capture_output=True, timeout=300)
    a, b = (safetensors.torch.load_file(f/'checkpoint.safetensors') for f in (one, two))
    kept = safetensors.torch.load_file(one/'world-40.safetensors')
    start = Training(new_models(0, 32, 1, 16), kept['layers'], kept['views']).average
    moved = torch.cat([(a[f'average.{i}'] - p).abs().flatten() for i, p in enumerate(start)])
    # Adam divides by the size of the gradient, so rounding can turn a step of a weight whose gradient is next to nothing
    far = torch.cat([(a[k] - b[k]).abs().flatten() for k in a if k.startswith('average.')])
    assert a.keys() == b.keys() and far.mean() < 1e-2*moved.mean()
    assert [line.split(',')[:2] for line in (one/'log.csv').read_text().splitlines()] == [line.split(',')[:2] for line in (two/'log.csv').read_text().splitlines()]

def test_a_stopped_run_goes_on_and_a_damaged_checkpoint_is_named(folder):
    out = folder('prior')
    tiny(out)
    first = (out/'transformer'/'diffusion_pytorch_model.safetensors').read_bytes()
    tiny(out)                                                              # nothing is left to do
    assert (out/'transformer'/'diffusion_pytorch_model.safetensors').read_bytes() == first
    assert json.loads((out/'training.json').read_text())['pictures'] == 24
    assert load_prior(out).encode(['a red mug']).shape == (1, 16, 16)
    checkpoint = out/'checkpoint.safetensors'
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match='checkpoint.*damaged'): tiny(out)

def test_training_begins_with_the_weights_it_is_given(folder):
    first, second = folder('first'), folder('second')
    tiny(first)
    train(second, pictures=8, batch=4, per_object=40, models=trained_models(first), peak=1.)
    a, b = (safetensors.torch.load_file(f/'transformer'/'diffusion_pytorch_model.safetensors') for f in (first, second))
    moved = max((a[k].float() - b[k].float()).abs().max().item() for k in a)
    assert 0 < moved < .05                                                 # by two steps of the warm-up
    with pytest.raises(SystemExit, match='no prior'): main(['--out', str(folder('third')), '--base', str(second.parent)])

def test_a_loss_that_is_not_finite_stops_the_run(folder):
    kept = safetensors.torch.load_file(folder('x')/'world-40.safetensors')
    run = Training(new_models(0, 32, 1, 16), kept['layers'], kept['views'], pictures=24, batch=4)
    with torch.no_grad(): run.parameters[0].fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='step 0'): run.advance()

def test_the_text_encoder_is_never_trained(folder):
    kept = safetensors.torch.load_file(folder('x')/'world-40.safetensors')
    run, born = Training(new_models(0, 32, 1, 16), kept['layers'], kept['views'], pictures=24, batch=4), new_models(0, 32, 1, 16)
    for _ in range(3): run.advance()
    assert all(torch.equal(a, b) for a, b in zip(run.prior.text_encoder.parameters(), born[1].parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(run.prior.transformer.context_embedder.parameters(), born[0].context_embedder.parameters()))

def test_schedules_at_their_corners():
    assert learning_rate(0, 1000) == 0 and learning_rate(10**5, 10**6) == 1.2e-3 and learning_rate(10**6, 10**6) == 0
    assert learning_rate(8*10**5, 10**6) == pytest.approx(.6e-3)
    t = noise_levels(5000, seeded(0))
    assert t.min() >= 0 and t.max() == 999 and (t.diff() >= 0).all()
    assert blind_share(0, 1000) == 1 and blind_share(1000, 1000) == pytest.approx(.4)
    for blind in (1, .7):
        t = noise_levels(5000, seeded(0), blind)
        assert (t >= BLIND).float().mean().item() == pytest.approx(blind, abs=.002) and t.min() == (BLIND if blind == 1 else 0) and (t.diff() >= 0).all()

def test_means_are_means():
    layers = torch.randint(256, (2, 6, 5, 64, 64), generator=seeded(1), dtype=torch.uint8)
    views = torch.tensor([[POSES.index(p) for p in row] for row in (['low front']*2 + ['high front', 'low front left', 'low left side', 'overhead back'],
                                                                    ['low front left', 'overhead front', 'high front'] + ['low front']*3)])
    means = mean_layers(layers, views)
    def mean(k, phrase): return means[k, PHRASES.index(phrase)]
    assert means.shape == (3, len(PHRASES), 5, 64, 64) and (mean(0, 'low back') == 0).all()     # never seen from behind
    for got, true in ((mean(1, 'low front'), layers[1, 3:]), (mean(0, 'front'), layers[0, :3]), (mean(0, 'side'), layers[0, 4:5]), (mean(1, 'overhead'), layers[1, 1:2]), (mean(1, 'overhead front'), layers[1, 1:2]), (mean(0, ''), layers[0])):
        assert torch.allclose(got, true.float().mean(0), atol=1e-3)
    assert torch.allclose(mean(2, ''), layers.flatten(0, 1).float().mean(0), atol=1e-3)         # everything

def test_a_mean_leaves_open_what_its_caption_leaves_open():
    views = torch.arange(48).remainder(24).expand(len(OBJECTS), 48)
    layers = torch.randint(256, (len(OBJECTS), 48, 5, 8, 8), generator=seeded(2), dtype=torch.uint8)
    means = mean_layers(layers, views)
    _, got, captions = picture_batch(layers, views, means, 200, seed=5)
    grey, names, colours, seen = torch.full((1, 3), .575), list(OBJECTS), torch.tensor(list(COLOURS.values())), set()
    for picture, text in zip(got, captions):
        said = set(text.replace(',', '').split())
        thing = next((i for i, name in enumerate(names) if name in said), len(names))
        hue = next((colours[i] for i, name in enumerate(COLOURS) if name in said), colours.mean(0))
        phrase = max((p for p in PHRASES if text.endswith(f', {p} view') or not p), key=len)
        seen.add((thing == len(names), bool(said & set(COLOURS)), phrase in POSES, phrase in VIEWS))
        assert torch.allclose(picture, compose(means[thing, PHRASES.index(phrase)][None], hue[None], grey)[0], atol=1e-5), text
    assert {(True, False, False, False), (False, True, True, False), (False, True, False, True), (False, True, False, False), (False, False, True, False)} <= seen

def test_only_blind_steps_learn_from_the_mean():
    models = new_models(0, 32, 1, 16)
    prior, pictures = PixelPrior(*models), torch.rand(50, 3, 64, 64, generator=seeded(3))
    with torch.no_grad():
        def loss(means): return denoising_loss(prior, pictures, means, ['']*50, 7).item()
        plain, steps = loss(pictures), noise_levels(50, seeded(7))
        other = pictures.clone()
        other[steps < BLIND] = 0
        assert loss(other) == plain
        other[steps >= BLIND] = 0
        assert abs(loss(other) - plain) > 1e-3

def test_captions_use_known_words_only():
    g, words = seeded(0), set(vocabulary())
    captions = [random_caption('duck', 'orange', 'low left side', g) for _ in range(300)]
    assert {w for c in captions for w in c.replace(',', ' , ').split()} <= words
    assert {'', 'an orange duck', 'an orange duck, side view', 'an orange duck, low left side view'} < set(captions) and not any('a orange' in c for c in captions)
    assert not any('front view' in random_caption('duck', 'orange', 'high front left', g) for _ in range(100))   # between front and side: none of the four words

def test_the_command(capsys):
    with pytest.raises(SystemExit) as e: main(['--help'])
    assert e.value.code == 0 and '--pictures' in capsys.readouterr().out
    with pytest.raises(SystemExit) as e: main([])
    assert e.value.code == 2
