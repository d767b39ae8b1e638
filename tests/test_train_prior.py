"Training: several processes, damaged checkpoints, what the command says"
import json, subprocess, sys
import pytest
import safetensors.torch
import torch
from dreamfusion_nb.cameras import POSES, VIEWS
from dreamfusion_nb.prior import PixelPrior, load_prior
from dreamfusion_nb.pictures import Drawn, even_views, rivals
from dreamfusion_nb.train_prior import (BLIND, FAINT, PARTY, PHRASES, Training, World, blind_share, denoising_loss, learning_rate, likely_mean, main, mean_layers, new_models, noise_levels,
                                        pair_pictures, paper_word, picture_batch, random_caption, some_pairs, traced_world, train, trained_models, vocabulary)
from dreamfusion_nb.shapeworld import COLOURS, OBJECTS, PATTERNS, RELATIONS, SYNONYMS, compose, held_out, layer_batch, second_tone
from dreamfusion_nb.utils import UserError, seeded

RUN = """
import sys, torch
import torch.distributed as dist
from dreamfusion_nb.train_prior import new_models, train
torch.set_num_threads(1)
if len(sys.argv) > 2: dist.init_process_group('gloo')
train(sys.argv[1], pictures=24, batch=4, views=(24, 20, 1), models=new_models(0, 32, 1, 16), every=1000)
"""

VIEWS_OF = 24, 20, 1

def noise_world(cache=None, views=VIEWS_OF):
    "A world whose traced views are noise, so that nothing needs tracing; kept in a folder if there is one"
    per_object, pairs, per_pair = views
    def noise(i, *shape): return torch.randint(256, shape, generator=seeded(i), dtype=torch.uint8)
    seen = torch.arange(per_object).remainder(24)
    layers = [noise(i, per_object, 8, 64, 64) for i in range(len(OBJECTS))]
    couples = noise(99, pairs, per_pair, 6, 64, 64)
    if cache:
        (cache/'world').mkdir(parents=True)
        for name, l in zip(OBJECTS, layers): safetensors.torch.save_file({'layers': l, 'views': seen}, cache/'world'/f'{name}-{per_object}.safetensors')
        safetensors.torch.save_file({'layers': couples, 'views': torch.zeros(pairs, per_pair, dtype=torch.int64)}, cache/'world'/f'pairs-0-{per_pair}.safetensors')
    return World(torch.stack(layers), seen.expand(len(OBJECTS), -1).contiguous(), some_pairs(0), couples, torch.zeros(pairs, per_pair, dtype=torch.int64))

@pytest.fixture
def folder(tmp_path):
    "Folders with a world of noise"
    def make(name):
        noise_world(tmp_path/name)
        return tmp_path/name
    return make

def tiny(out, **kw): return train(out, pictures=24, batch=4, views=VIEWS_OF, models=new_models(0, 32, 1, 16), **kw)

def test_two_processes_train_what_one_trains(folder, tmp_path):
    one, two, script = folder('one'), folder('two'), tmp_path/'run.py'
    script.write_text(RUN)
    subprocess.run([sys.executable, script, one], check=True, capture_output=True, timeout=300)
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', script, two, 'shared'],
                   check=True, capture_output=True, timeout=300)
    a, b = (safetensors.torch.load_file(f/'checkpoint.safetensors') for f in (one, two))
    start = Training(new_models(0, 32, 1, 16), noise_world()).average
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
    train(second, pictures=8, batch=4, views=VIEWS_OF, models=trained_models(first), peak=1.)
    a, b = (safetensors.torch.load_file(f/'transformer'/'diffusion_pytorch_model.safetensors') for f in (first, second))
    moved = max((a[k].float() - b[k].float()).abs().max().item() for k in a)
    assert 0 < moved < .05                                                 # by two steps of the warm-up
    with pytest.raises(SystemExit, match='no prior'): main(['--out', str(folder('third')), '--base', str(second.parent)])

def test_a_loss_that_is_not_finite_stops_the_run():
    run = Training(new_models(0, 32, 1, 16), noise_world(), pictures=24, batch=4)
    with torch.no_grad(): run.parameters[0].fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='step 0'): run.advance()

def test_the_text_encoder_is_never_trained():
    run, born = Training(new_models(0, 32, 1, 16), noise_world(), pictures=24, batch=4), new_models(0, 32, 1, 16)
    for _ in range(3): run.advance()
    assert all(torch.equal(a, b) for a, b in zip(run.prior.text_encoder.parameters(), born[1].parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(run.prior.transformer.context_embedder.parameters(), born[0].context_embedder.parameters()))

def test_saving_leaves_the_weights_as_they_were(tmp_path):
    run = Training(new_models(0, 32, 1, 16), noise_world(), pictures=24, batch=4)
    for _ in range(2): run.advance()
    def weights(): return {f'{part}.{k}': v.clone() for part in ('transformer', 'text_encoder') for k, v in getattr(run.prior, part).state_dict().items()}
    before = weights()
    run.save_average(tmp_path)                                             # as float16
    after = weights()
    assert all(torch.equal(v, after[k]) for k, v in before.items())

def test_schedules_at_their_corners():
    assert learning_rate(0, 1000) == 0 and learning_rate(10**5, 10**6) == 1.2e-3 and learning_rate(10**6, 10**6) == 0
    assert learning_rate(8*10**5, 10**6) == pytest.approx(.6e-3)
    t = noise_levels(5000, seeded(0))
    assert t.min() >= 0 and t.max() == 999 and (t.diff() >= 0).all()
    assert blind_share(0, 1000) == 1 and blind_share(1000, 1000) == pytest.approx(.4)
    for blind in (1, .7):
        t = noise_levels(5000, seeded(0), blind)
        assert (t >= BLIND).float().mean().item() == pytest.approx(blind, abs=.002) and t.min() == (BLIND if blind == 1 else 0) and (t.diff() >= 0).all()
    for blind, low in ((.1, .5), (0., .25), (.1, 0.), (0., 1.)):
        t = noise_levels(5000, seeded(0), blind, low)
        assert (t >= BLIND).float().mean().item() == pytest.approx(blind, abs=.002) and (t.diff() >= 0).all()
        assert (t < 600).float().mean().item() == pytest.approx((1 - blind)*low, abs=.002)

def test_a_run_can_be_about_the_low_levels():
    told = dict(blind=(.5, .1), low=.9)
    run = Training(new_models(0, 32, 1, 16), noise_world(), pictures=80, batch=40, **told)
    def loss(step, **levels):
        *batch, drawn = picture_batch(run.world, run.means, 40, step)
        return denoising_loss(run.prior, *batch, 77 + step, source=(run.world, drawn), **levels).item()
    assert run.gradient() == pytest.approx(loss(0, blind=.5, low=.9), rel=1e-5) and loss(0, blind=.5, low=.9) != pytest.approx(loss(0, blind=.5), rel=1e-3)
    run.step = 1                                                           # half of the pictures seen
    assert run.gradient() == pytest.approx(loss(1, blind=.3, low=.9), rel=1e-5)

def test_the_command_hands_on_its_levels(monkeypatch):
    told = {}
    monkeypatch.setattr('dreamfusion_nb.train_prior.train', lambda **options: told.update(options))
    main(['--out', 'nowhere'])
    assert (*told['blind'], told['low']) == (1, .4, 1/3)
    main(['--out', 'nowhere', '--blind', '.2', '.1', '--low', '.6'])
    assert (*told['blind'], told['low']) == (.2, .1, .6)

def test_means_are_means():
    layers = torch.randint(256, (2, 6, 8, 64, 64), generator=seeded(1), dtype=torch.uint8)
    views = torch.tensor([[POSES.index(p) for p in row] for row in (['low front']*2 + ['high front', 'low front left', 'low left side', 'overhead back'],
                                                                    ['low front left', 'overhead front', 'high front'] + ['low front']*3)])
    means = mean_layers(layers, views)
    def mean(k, phrase): return means[k, PHRASES.index(phrase)]
    assert means.shape == (3, len(PHRASES), 8, 64, 64) and (mean(0, 'low back') == 0).all()     # never seen from behind
    for got, true in ((mean(1, 'low front'), layers[1, 3:]), (mean(0, 'side'), layers[0, 4:5]), (mean(1, 'overhead'), layers[1, 1:2]), (mean(1, 'overhead front'), layers[1, 1:2])):
        assert torch.allclose(got, true.float().mean(0), atol=1e-3)
    def weighted(k, *shares): return torch.einsum('v,vchw->chw', torch.tensor(shares), layers[k].float())
    assert torch.allclose(mean(0, 'front'), weighted(0, .25, .25, .5, 0., 0., 0.), atol=1e-3)   # each pose counts once
    first, second = weighted(0, .1, .1, .2, .2, .2, .2), weighted(1, .25, .25, .25, 1/12, 1/12, 1/12)
    assert torch.allclose(mean(0, ''), first, atol=1e-3) and torch.allclose(mean(1, ''), second, atol=1e-3) and torch.allclose(mean(2, ''), (first + second)/2, atol=1e-3)

def test_all_poses_are_drawn_equally_often():
    views = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 3], [5, 9, 9, 23, 23, 23, 23, 23]])
    weight = even_views(views)
    assert torch.allclose(weight[0], torch.tensor([1/14]*7 + [.5])) and torch.allclose(weight[1], torch.tensor([1/3, 1/6, 1/6] + [1/15]*5))
    assert torch.equal(even_views(views[1]), weight[1])
    world = noise_world(views=(8, 0, 1))
    world.views[:], world.pairs = views[:1], []
    drawn = [picture_batch(world, mean_layers(world.layers, world.views), 200, seed)[3] for seed in range(5)]
    rare = torch.cat([(d.view == 7)[d.thing >= 0] for d in drawn]).float()
    assert abs(rare.mean() - .5) < 4*(.25/len(rare))**.5                  # one view of eight, and half of the pictures
    silent = Drawn(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.tensor([PHRASES.index('')]), *(torch.zeros(1, 3),)*2, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3))
    world.layers[0] = 0
    world.layers[0, 7, 1] = 255                                            # the rare view is red whatever its colour
    red = rivals(world, silent, torch.tensor([0]), torch.tensor([False]), 1000, seeded(0))[0, 1:, 0, 0, 0]
    assert abs((red > .5).float().mean() - .5) < 4*(.25/999)**.5          # rivals are drawn the same way

def test_a_mean_leaves_open_what_its_caption_leaves_open():
    world = noise_world(views=(24, 0, 1))
    world.pairs, means = [], mean_layers(world.layers, world.views)
    _, got, captions, _ = picture_batch(world, means, 400, seed=5)
    meant, seen = {w: w for w in (*OBJECTS, *COLOURS, *PATTERNS)} | SYNONYMS, set()
    grey, names, rgb = torch.full((1, 3), .575), list(OBJECTS), torch.tensor(list(COLOURS.values()))
    for picture, text in zip(got, captions):
        said = [meant.get(word) for word in text.partition(',')[0].split()]
        def told(table): return next((w for w in said if w in table), None)
        name, hue, pattern = told(OBJECTS), told(COLOURS), told(PATTERNS)
        phrase = max((p for p in PHRASES if text.endswith(f', {p} view') or not p), key=len)
        seen.add((name is None, hue is not None, pattern is not None, phrase in POSES, phrase in VIEWS))
        colour, tone = (table[[list(COLOURS).index(hue)]] if hue else table.mean(0, keepdim=True) for table in (rgb, second_tone(rgb)))
        layers = means[names.index(name) if name else len(names), PHRASES.index(phrase)][None]
        want = compose(layers, colour, grey, tone if pattern else None, PATTERNS.index(pattern) if pattern else 0)
        assert torch.allclose(picture, want[0], atol=1e-5), text
    assert {(True, False, False, False, False), (False, True, False, True, False), (False, True, True, True, False), (False, True, False, False, True),
            (False, True, False, False, False), (False, False, False, True, False)} <= seen

def test_pairs_have_two_colours_and_no_held_out_one():
    world = noise_world()
    pictures, captions = pair_pictures(world, 300, seeded(1))
    assert pictures.shape == (300, 3, 64, 64) and len(captions) == 300
    meant, relations = {w: w for w in (*OBJECTS, *COLOURS)} | SYNONYMS, set()
    for text in captions:
        if not text: continue
        relation = next(r for r in RELATIONS if f' {r} ' in text)
        first, second = text.partition(',')[0].split(f' {relation} ')
        (a, *colour), (b, other) = ([meant[w] for w in reversed(part.split()) if w in meant] for part in (first, second))
        assert (a, relation, b) in world.pairs and not held_out(b, other) and (not colour or colour[0] != other and not held_out(a, colour[0])), text
        relations.add(relation)
    assert relations == set(RELATIONS)
    k = [[w in text for w in (' on ', ' next to ')] for text in captions if text]
    assert all(sum(row) == 1 for row in k)

def test_a_batch_mixes_pairs_among_the_others():
    world = noise_world()
    pictures, means, captions, _ = picture_batch(world, mean_layers(world.layers, world.views), 600, seed=2)
    paired = torch.tensor([any(f' {r} ' in text for r in RELATIONS) for text in captions])
    assert .04 < paired.float().mean() < .11 and torch.equal(pictures[paired], means[paired]) and not torch.equal(pictures[~paired], means[~paired])
    assert paired[:300].any() and paired[300:].any()                      # not all at one end: noise levels ascend within a batch
    world.pairs = []
    assert not any(f' {r} ' in text for r in RELATIONS for text in picture_batch(world, mean_layers(world.layers, world.views), 200, seed=2)[2])

def test_a_world_is_traced_once_and_shared_out(tmp_path, monkeypatch):
    import dreamfusion_nb.pictures as module
    calls = []
    monkeypatch.setattr(module, 'layer_batch', lambda thing, n, seed: calls.append((thing, n, seed)) or (torch.full((n, 8 if isinstance(thing, str) else 6, 64, 64), seed % 251, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)))
    size = 3, PARTY, 2
    assert traced_world(tmp_path, size, share=slice(0, None, 2)) is None and 0 < len(calls) < len(OBJECTS) + PARTY
    traced_world(tmp_path, size, share=slice(1, None, 2))
    assert len(calls) == len(OBJECTS) + PARTY == len({seed for _, _, seed in calls})
    world = traced_world(tmp_path, size)
    assert len(calls) == len(OBJECTS) + PARTY                              # nothing was traced again
    alone = traced_world(None, size)
    assert torch.equal(world.layers, alone.layers) and torch.equal(world.pair_layers, alone.pair_layers) and world.pairs == alone.pairs == some_pairs(0)
    assert world.layers.shape == (len(OBJECTS), 3, 8, 64, 64) and world.pair_layers.shape == (PARTY, 2, 6, 64, 64)
    with pytest.raises(UserError, match='multiple of 20'): traced_world(None, (3, 7, 2))

def test_an_object_is_the_same_however_its_views_are_batched(monkeypatch):
    from dreamfusion_nb.train_prior import object_layers
    got = object_layers('ball', 3, batch=2)
    first, _ = layer_batch('ball', 2, seed=0)
    assert got['layers'].shape == (3, 8, 64, 64) and torch.equal(got['layers'][:2], first)

def test_new_words_join_the_old_ones(folder):
    old = folder('old')
    tiny(old)
    (old/'tokenizer').mkdir(exist_ok=True)
    prior = load_prior(old)
    table = prior.text_encoder.get_input_embeddings().weight
    lost = prior.tokenizer.get_vocab()['teapot']
    from dreamfusion_nb.train_prior import new_tokenizer
    again = trained_models(old)
    assert torch.equal(again[1].get_input_embeddings().weight, table)      # knows all of them
    tokens = json.loads((old/'tokenizer'/'tokenizer.json').read_text())
    words = [w for w in sorted(tokens['model']['vocab'], key=tokens['model']['vocab'].get) if w != 'teapot']
    tokens['model']['vocab'] = {w: i for i, w in enumerate(words)}
    (old/'tokenizer'/'tokenizer.json').write_text(json.dumps(tokens))
    import safetensors.torch as st
    file = old/'text_encoder'/'model.safetensors'
    weights = st.load_file(file)
    key = next(k for k in weights if k.endswith('token_embedding.weight'))
    weights[key] = torch.cat([weights[key][:lost], weights[key][lost + 1:]])
    st.save_file(weights, file, metadata={'format': 'pt'})
    config = json.loads((old/'text_encoder'/'config.json').read_text())
    (old/'text_encoder'/'config.json').write_text(json.dumps({**config, 'vocab_size': config['vocab_size'] - 1}))
    _, text, tokenizer, _ = trained_models(old)
    grown = text.get_input_embeddings().weight
    others = torch.arange(len(grown)) != lost
    assert tokenizer.get_vocab() == new_tokenizer().get_vocab() and torch.equal(grown[others], table[others]) and grown[lost].norm() > 0 and not torch.equal(grown[lost], table[lost + 1])

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

def test_a_batch_may_be_all_pairs_or_have_none():
    world = noise_world()
    means = mean_layers(world.layers, world.views)
    sizes = {tuple((drawn.thing < 0).tolist()) for *_, captions, drawn in (picture_batch(world, means, 1, seed) for seed in range(60)) if captions != ['']}
    assert sizes == {(True,), (False,)}                                    # one picture: a pair, or none

def test_rivals_are_drawn_as_the_picture_was():
    "Each view has a red level of its own, so that a picture tells which view it is of"
    world = noise_world(views=(48, 20, 1))
    world.layers.zero_()
    world.layers[:, :, 1] = (5*torch.arange(48))[None, :, None, None].to(torch.uint8)
    world.layers[:, :, 4, :32] = 255                                       # the lower half shows the background
    pictures, _, captions, drawn = picture_batch(world, mean_layers(world.layers, world.views), 80, seed=3)
    alone = (drawn.thing >= 0).nonzero()[:, 0]
    assert 50 < len(alone) < 80 and all((' on ' in c or ' next to ' in c or not c) == (t < 0) for c, t in zip(captions, drawn.thing.tolist()))
    fresh = torch.arange(len(alone)) % 2 == 0
    got = rivals(world, drawn, alone, fresh, 30, seeded(1))
    assert torch.equal(got[:, 0], pictures[alone])
    ground = got[:, :, 1:, 40, 0]
    assert all(len(g.unique(dim=0)) == (30 if new else 1) for g, new in zip(ground, fresh))
    for row, caption, shown in zip(got, (captions[i] for i in alone), drawn.thing[alone]):
        view = (row[:, 0, 0, 0]*51).round().long()
        phrase = caption.removesuffix(' view').partition(', ')[2]
        said = [POSES[v] for v in world.views[shown, view]]
        assert all(phrase in (pose, '') or phrase == paper_word(pose) for pose in said)
        fit = {POSES[v] for v in world.views[shown].tolist() if phrase in (POSES[v], '') or phrase == paper_word(POSES[v])}
        assert len(set(said)) > .4*len(fit)                                # and all that fit have their turn

def test_the_likely_mean_is_the_posterior_mean():
    "Monte Carlo: of all noisy pictures near a given one, what were they made of?"
    rows, g = torch.tensor([[-1.], [.2], [1.]]).view(3, 1, 1, 1), seeded(0)
    x, noise = rows[torch.randint(3, (400_000,), generator=g)], torch.randn(400_000, 1, 1, 1, generator=g)
    z, al, si = .6*x + .8*noise, torch.tensor(.6).view(1, 1, 1, 1), torch.tensor(.8).view(1, 1, 1, 1)
    for at_z in (-.7, .1, 1.1):
        near = (z - at_z).abs().flatten() < .02
        want = x[near].mean().item()
        assert likely_mean(torch.full((1, 1, 1, 1), at_z), rows[None], al, si).item() == pytest.approx(want, abs=4*x[near].std().item()/near.sum().item()**.5)

def test_targets_between_sight_and_blindness_are_likely_means(monkeypatch):
    world, prior = noise_world(), PixelPrior(*new_models(0, 32, 1, 16))
    world.layers[:] = world.layers[:, :1]                                  # all views alike: only backgrounds differ
    *batch, drawn = picture_batch(world, mean_layers(world.layers, world.views), 40, seed=3)
    with torch.no_grad():
        def loss(share=slice(None), **options): return denoising_loss(prior, *batch, 7, share, source=(world, drawn), **options).item()
        sighted = dict(blind=0., low=0.)
        whole = loss(**sighted)
        assert loss(blind=0., low=1.) == denoising_loss(prior, *batch, 7, blind=0., low=1.).item()   # where all is seen nothing changes
        assert (loss(slice(0, None, 2), **sighted) + loss(slice(1, None, 2), **sighted))/2 == pytest.approx(whole, rel=1e-5)   # processes see the same rivals
        steps, asked = noise_levels(40, seeded(7), 0., 0.), []
        prior.predict = lambda z_t, step, words: asked.append(step) or prior.to_latent(batch[0])   # it knows the picture itself
        assert denoising_loss(prior, *batch, 7, **sighted).item() == 0 < .001 < loss(**sighted)     # which is not what it is asked for
        monkeypatch.setattr('dreamfusion_nb.objective.PALE', BLIND)
        assert loss(**sighted) < 1e-9 and torch.equal(asked[0], steps) and (steps >= FAINT).any()  # on its own background it is, as all views are alike

def test_captions_use_known_words_only():
    g, words = seeded(0), set(vocabulary())
    captions = [random_caption('duck', 'purple', 'low left side', g) for _ in range(400)]
    captions += [random_caption('rabbit', 'orange', 'low left side', g, pattern='striped') for _ in range(300)]
    captions += [random_caption('rabbit', 'orange', 'overhead front left', g, beside=('next to', 'red', 'ball')) for _ in range(300)]
    assert {w for c in captions for w in c.replace(',', ' , ').split()} <= words
    assert {'', 'a purple duck', 'a violet duck', 'a purple duck, side view', 'a purple duck, low left side view', 'an orange striped rabbit',
            'an orange rabbit next to a red ball', 'an orange rabbit next to a red ball, overhead front left view'} < set(captions)
    assert all(any(part in c for c in captions) for part in ('orange stripy rabbit', 'striped bunny', 'orange bunny next to', 'next to a crimson ball', 'next to a red sphere'))
    assert not any(wrong in c for c in captions for wrong in ('a orange', 'an red', 'an purple'))
    assert not any('front view' in random_caption('duck', 'orange', 'high front left', g) for _ in range(100))   # between front and side: none of the four words

def test_every_caption_fits_into_the_tokens():
    from dreamfusion_nb.train_prior import TOKENS, new_tokenizer
    tokenizer, g = new_tokenizer(), seeded(3)
    longest = [random_caption('rabbit', 'orange', 'overhead front left', g, beside=('next to', 'red', 'ball')) for _ in range(200)]
    longest += [random_caption('rabbit', 'orange', 'overhead front left', g, pattern='spotted') for _ in range(200)]
    sizes = [len(tokenizer(text).input_ids) for text in longest]
    assert max(sizes) <= TOKENS, longest[sizes.index(max(sizes))]

def test_the_command(capsys):
    with pytest.raises(SystemExit) as e: main(['--help'])
    assert e.value.code == 0 and '--pictures' in capsys.readouterr().out
    with pytest.raises(SystemExit) as e: main([])
    assert e.value.code == 2
