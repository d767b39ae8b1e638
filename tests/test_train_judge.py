"The judge's training: what sentences are true, batches, the loss, resume, and the folder that comes out"
import math
import pytest
import torch
import torch.nn.functional as F
from dreamfusion_nb import train_judge as tj
from dreamfusion_nb.cameras import POSES, SIDES
from dreamfusion_nb.evaluate import load_judge, meaning, plain, sentence_vectors
from dreamfusion_nb.shapeworld import COLOURS, OBJECTS, PATTERNS, RELATIONS, sample_world_cameras
from dreamfusion_nb.train_prior import PHRASES, World, new_tokenizer, some_pairs
from dreamfusion_nb.utils import UserError, seeded

SILENT = PHRASES.index('')

@pytest.fixture(scope='module')
def world():
    "Discs in place of objects: their size says which one; quick to make"
    place = torch.linspace(-1, 1, 64)
    radius = torch.linspace(.3, .9, len(OBJECTS))[:, None, None]
    disc = (place[:, None].square() + place.square() < radius.square()).to(torch.uint8)*255
    layers = torch.zeros(len(OBJECTS), 1, 9, 64, 64, dtype=torch.uint8)
    layers[:, 0, 0] = layers[:, 0, 4] = layers[:, 0, 8] = disc
    pairs = some_pairs(1000)[:4]
    return World(layers, torch.zeros(len(OBJECTS), 1, dtype=torch.int64), pairs, layers[:4], torch.zeros(4, 1, dtype=torch.int64))

def tiny(seed=0): return tj.new_judge(seed, (8, 8, 8, 8), 32, 16)

def test_the_end_of_the_sentence_is_read():
    "Padding must not count, every word must"
    model, tokenizer = tj.new_judge().eval(), new_tokenizer()
    with torch.no_grad():
        both, alone = sentence_vectors(model, tokenizer, ['a red mug', 'a red mug, low front view']), sentence_vectors(model, tokenizer, ['a red mug'])
        other = sentence_vectors(model, tokenizer, ['a red cat'])
    assert torch.allclose(both[0], alone[0], atol=1e-5) and (both[1] - alone[0]).norm() > 1e-3 and (other - alone).norm() > 1e-3

def test_size():
    assert sum(p.numel() for p in tj.new_judge().parameters()) < 2.4e6                   # below 5 MB as float16

def test_judge_views():
    seen = tj.judge_views('mug', 2, seed=3, size=16)
    layers, again = seen['layers'], tj.judge_views('mug', 2, seed=3, size=16)['layers']
    assert layers.shape == (2, 9, 16, 16) and layers.dtype == torch.uint8 and torch.equal(layers, again)
    assert (layers[:, 8] <= layers[:, 4]).all() and layers[:, 8].amax() > 100 and seen['views'].max() < len(POSES)
    pair = tj.judge_views(('cat', 'on', 'table'), 1, seed=3, size=16)['layers']
    assert pair.shape == (1, 9, 16, 16) and (pair[:, 6:8] == 0).all()

def test_lamps():
    cameras = sample_world_cameras(2000, seeded(0))
    def towards(share): return F.normalize(tj.judge_lamps(cameras, share, seeded(1)).position, dim=-1)
    up, near = towards(1.), towards(0.)
    assert (up[:, 1] > 0).all() and up[:, [0, 2]].mean(0).abs().max() < .05
    camera = F.normalize(cameras.position, dim=-1)
    assert (near*camera).sum(-1).mean() > .8 and (up*camera).sum(-1).mean() < .6
    light = tj.judge_lamps(cameras, .5, seeded(1))
    assert ((light.diffuse + light.ambient - 1).abs() < 1e-6).all()
    ours = (F.normalize(light.position, dim=-1) - near).norm(dim=-1) < 1e-6                # the same draws, so each lamp is the one or the other
    assert .45 < ours.float().mean() < .55 and (ours | ((F.normalize(light.position, dim=-1) - up).norm(dim=-1) < 1e-6)).all()

def test_sentences():
    names, hues = list(OBJECTS), list(COLOURS)
    cat, mug, red, orange = names.index('cat'), names.index('mug'), hues.index('red'), hues.index('orange')
    assert tj.sentence([mug, orange, 0, tj.NONE, tj.NONE, tj.NONE, SILENT]) == f'an orange {PATTERNS[0]} mug'
    both = tj.sentence([cat, red, tj.NONE, 0, mug, orange, PHRASES.index('low back')])
    assert both == f'a red cat {RELATIONS[0]} an orange mug, low back view'
    white = tj.sentence([cat, tj.OPEN, tj.NONE, 0, mug, tj.OPEN, SILENT])
    assert white == plain(both) == f'a cat {RELATIONS[0]} a mug'
    every = {tj.sentence([mug, red, 1, tj.NONE, tj.NONE, tj.NONE, SILENT], seeded(i)) for i in range(60)}
    assert len(every) > 4 and all(meaning(s) == meaning('a red spotted mug') for s in every)

def test_true_of():
    shown = torch.tensor([[3, 1, tj.NONE, tj.NONE, tj.NONE, tj.NONE, POSES.index('high front left')]])
    def true(*said): return tj.true_of(shown, torch.tensor([said])).item()
    rest = tj.NONE, tj.NONE, tj.NONE
    assert true(3, 1, tj.NONE, *rest, SILENT) and true(3, tj.OPEN, tj.OPEN, *rest, SILENT) and true(3, 1, tj.NONE, *rest, PHRASES.index('high front left'))
    assert not true(4, 1, tj.NONE, *rest, SILENT) and not true(3, 2, tj.NONE, *rest, SILENT) and not true(3, 1, 0, *rest, SILENT)
    assert not true(3, 1, tj.NONE, *rest, PHRASES.index('back')) and not true(3, 1, tj.NONE, 0, 5, 5, SILENT)

def test_beside_is_true_both_ways():
    on, beside = RELATIONS.index('on'), RELATIONS.index('next to')
    shown = torch.tensor([[3, 1, tj.NONE, r, 5, 7, POSES.index('low back')] for r in (on, beside)])
    def true(*said): return tj.true_of(shown, torch.tensor([said]))[:, 0].tolist()
    assert true(5, 7, tj.NONE, beside, 3, 1, SILENT) == [False, True] and true(5, 7, tj.NONE, on, 3, 1, SILENT) == [False, False]
    assert true(5, 1, tj.NONE, beside, 3, 7, SILENT) == [False, False] and true(3, 1, tj.NONE, on, 5, 7, SILENT) == [True, False]

def test_twins_differ_in_little():
    g, said = seeded(0), [3, 1, tj.NONE, 0, 5, 7, PHRASES.index('low back')]
    twins = [tj.changed(said, g) for _ in range(200)]
    moved = [sum(a != b for a, b in zip(said, t)) for t in twins]
    assert max(moved) <= 5 and sum(m == 1 for m in moved) > 80 and {i for t in twins for i in range(7) if t[i] != said[i]} == {0, 1, 3, 4, 5, 6}
    bare = [tj.changed([3, tj.OPEN, tj.OPEN, tj.NONE, tj.NONE, tj.NONE, SILENT], g) for _ in range(40)]
    assert all(t[1:] == [tj.OPEN, tj.OPEN, tj.NONE, tj.NONE, tj.NONE, SILENT] for t in bare)

def test_batch(world):
    pictures, shown, said, words = tj.judge_batch(world, 96, seed=1)
    assert pictures.shape == (96, 3, 64, 64) and 0 <= pictures.min() and pictures.max() <= 1 and len(words) == len(said) == 192
    assert tj.true_of(shown, said)[:, :96].diagonal().all()
    for word in words:
        if any(c in word.split() for c in COLOURS): meaning(word)                          # each that names a colour is a sentence of the world
    bare = shown[:, 1] == tj.OPEN
    assert .1 < bare.float().mean() < .4 and all(not set(COLOURS) & set(w.split()) for w, b in zip(words, bare) if b)
    grey = pictures[bare]
    assert (grey.mean((2, 3)) - grey.mean((1, 2, 3))[:, None]).abs().max() < .01           # white on grey has no colour
    assert torch.equal(pictures, tj.judge_batch(world, 96, seed=1)[0]) and not torch.equal(pictures, tj.judge_batch(world, 96, seed=2)[0])

def test_gray_and_white_are_in_every_batch(world):
    hues, alike = list(COLOURS), {'gray', 'white'}
    for seed in range(5):
        _, shown, bare = tj.drawn_views(world, 200, 14, 6, seeded(seed))
        drawn = {hues[c] for c in shown[:, 1].tolist()}
        assert alike <= drawn and len(drawn) == 6
    assert {hues[c] for c in tj.drawn_views(world, 200, 14, 1, seeded(0))[1][:, 1].tolist()} <= alike

def test_some_pictures_are_of_exactly_the_named_colour():
    "Else only white objects would be neutral, and a neutral gray would be taken for white"
    sheet, red = torch.zeros(300, 9, 64, 64, dtype=torch.uint8), torch.tensor(COLOURS['red']).expand(300, 3)
    sheet[:, [0, 4]] = 255
    none = torch.zeros(300, dtype=torch.bool)
    seen = tj.fresh_pictures(sheet, red, red, torch.zeros(300, dtype=torch.int64), none, seeded(0))[:, :, 24:40, 24:40]
    even, off = seen.std((2, 3)).amax(1) < 1e-6, (seen.mean((2, 3)) - red).abs().amax(1)
    assert .15 < even.float().mean() < .35 and .1 < (off[even] < 1e-5).float().mean() < .4
    assert (off > .02).float().mean() > .3                                                 # and most are only near it

def test_matching_loss():
    n, m, own = 6, 12, torch.eye(6, 12, dtype=torch.bool)
    same, axes = F.normalize(torch.ones(m, 16), dim=-1), torch.eye(m, 16)
    assert tj.matching_loss(same[:n], same, 20., own).item() == pytest.approx((math.log(n) + math.log(m))/2, abs=1e-5)
    assert tj.matching_loss(axes[:n], axes, 100., own) < 1e-5
    twice = axes[torch.arange(n)//2]
    alike = twice @ twice.T > .5
    assert tj.matching_loss(twice, twice, 100., alike) < 1e-5
    assert tj.matching_loss(twice, twice, 100., own[:, :n]).item() == pytest.approx(math.log(2), abs=1e-4)

def test_naming_loss():
    "Guessing costs the logarithm of the choices; what shows no colour, or more than one, is asked for its object only"
    k, rest = len(OBJECTS), [tj.NONE]*3
    shown = torch.tensor([[3, 2, tj.NONE, *rest, 0], [4, tj.OPEN, tj.OPEN, *rest, 0], [5, 1, 0, *rest, 0], [6, 1, tj.NONE, 0, 7, 2, 0]])
    flat = F.normalize(torch.ones(len(tj.NAMES + tj.COLOURED), 8), dim=-1)
    assert tj.naming_loss(flat[:4], flat, 9., shown).item() == pytest.approx(math.log(k) + math.log(k*len(COLOURS)), abs=1e-4)
    assert tj.naming_loss(flat[:2], flat, 9., shown[1:3]).item() == pytest.approx(math.log(k), abs=1e-4)
    assert tj.naming_loss(flat[:1], flat, 9., shown[3:]).item() == 0                       # two objects have no one name
    axes = torch.eye(len(flat))
    own = torch.stack([axes[3] + axes[k + len(COLOURS)*3 + 2]])/2**.5
    assert tj.naming_loss(own, axes, 100., shown[:1]) < 1e-5 < tj.naming_loss(own, axes, 100., shown[:1] + torch.tensor([0, 1, 0, 0, 0, 0, 0]))

def test_rate():
    assert tj.judge_rate(0, 1000, 1., 100) == 0 and tj.judge_rate(50, 10**9, 1., 100) == pytest.approx(.5) and tj.judge_rate(1000, 1000, 1., 100) == pytest.approx(0)

def test_resume_is_exact_and_saving_changes_nothing(world, tmp_path):
    def run(seed): return tj.JudgeTraining(tiny(seed), world, pictures=100, batch=8)
    straight, stopped, resumed = run(0), run(0), run(1)
    for _ in range(4): straight.advance()
    for _ in range(2): stopped.advance()
    stopped.save(tmp_path/'judge')                                        # as float16
    resumed.restore({k: v.clone() for k, v in stopped.state().items()})
    for _ in range(2): resumed.advance()
    assert all(torch.equal(a, b) for a, b in zip(straight.state().values(), resumed.state().values()))

def test_it_learns(world):
    run = tj.JudgeTraining(tiny(), world, pictures=10**6, batch=24, peak=.003)         # small steps: rounding, which differs between processors, must not decide
    losses = [run.advance()[0] for _ in range(60)]
    assert sum(losses[-20:])/20 < .95*sum(losses[:10])/10

def test_a_run_stops_and_goes_on(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tj, 'judge_layers', lambda *args, **kw: world)
    tj.train_judge(tmp_path, pictures=16, batch=8, model=tiny())
    step = lambda: tj.safetensors.torch.load_file(tmp_path/'checkpoint.safetensors')['step'].item()
    assert step() == 2
    tj.train_judge(tmp_path, pictures=32, batch=8, model=tiny(5))
    assert step() == 4
    judge = load_judge(tmp_path)
    assert judge.pictures(torch.rand(2, 3, 64, 64)).shape == judge.sentences(['a red mug', 'a cat']).shape == (2, 16)
    assert {p.name for p in tmp_path.iterdir()} >= {'config.json', 'model.safetensors', 'tokenizer.json', 'training.json', 'log.csv'}
    (tmp_path/'checkpoint.safetensors').write_bytes(b'nonsense')
    with pytest.raises(UserError, match='damaged'): tj.train_judge(tmp_path, pictures=32, batch=8, model=tiny())

def test_command(capsys):
    with pytest.raises(SystemExit) as stop: tj.main(['--help'])
    assert stop.value.code == 0 and '--pictures' in capsys.readouterr().out
    with pytest.raises(SystemExit): tj.main([])

def test_accuracy_and_confusions(monkeypatch, world):
    "A judge that always says the same"
    class Stubborn:
        def pictures(self, x): return torch.ones(len(x), 1)
        def sentences(self, said): return torch.tensor([[1. if s in ('a red mug', 'a mug') else 0.] for s in said])
    monkeypatch.setattr(tj, 'judge_views', lambda name, n, seed, **kw: {'layers': world.layers[list(OBJECTS).index(name)].expand(n, -1, -1, -1), 'views': torch.zeros(n, dtype=torch.int64)})
    found, answers = tj.judge_accuracy(Stubborn(), per_object=1)
    assert found['textureless'] == pytest.approx(1/len(OBJECTS)) and found['pictures'] == len(OBJECTS)*(len(COLOURS) + 1) == len(answers.said)
    both = tj.held_out('mug', 'red')
    assert found['held-out' if both else 'trained']['both'] > 0 and found['trained' if both else 'held-out']['both'] == 0
    assert all(said == 'mug' and n == len(COLOURS) + 1 for _, said, n in tj.confusions(answers)) and len(tj.confusions(answers)) == len(OBJECTS) - 1

def test_views_that_do_not_show_their_colour_can_be_left_out(monkeypatch, world):
    "A mug whose own colour is nowhere to be seen stays as a white picture only"
    class Stubborn:
        def pictures(self, x): return torch.ones(len(x), 1)
        def sentences(self, said): return torch.ones(len(said), 1)
    layers, mug = world.layers.clone(), list(OBJECTS).index('mug')
    layers[mug, :, 0] = 0
    layers[0, :, 0, :, :32] = 0                                            # half of it is enough
    monkeypatch.setattr(tj, 'judge_views', lambda name, n, seed, **kw: {'layers': layers[list(OBJECTS).index(name)].expand(n, -1, -1, -1), 'views': torch.zeros(n, dtype=torch.int64)})
    _, every = tj.judge_accuracy(Stubborn(), per_object=1)
    found, shown = tj.judge_accuracy(Stubborn(), per_object=1, least=.05)
    assert len(every.own) == len(OBJECTS)*(len(COLOURS) + 1) and found['pictures'] == len(every.own) - len(COLOURS)
    assert (shown.shown[:, 0] == mug).sum() == 1 and shown.shown[shown.shown[:, 0] == mug][0, 1] == tj.OPEN and torch.equal(shown.said, tj.that_show(every, .05).said)
    assert every.own[every.shown[:, 0] == 0][:len(COLOURS)].sub(.5).abs().max() < .02

def test_painted_accuracy(monkeypatch):
    "A painter that does as it is told, and a judge that reads what was painted"
    class Reader:
        def pictures(self, x): return F.one_hot(x[:, 0, 0, 0].round().long(), len(tj.COLOURED)).float()
        def sentences(self, said): return torch.eye(len(said))
    asked = []
    def obedient(prior, prompts, guidance, steps, generator, fresh, early):
        asked.extend(prompts)
        assert (fresh, early) == (1, 2/3)
        return torch.tensor([float(tj.COLOURED.index(p.partition(',')[0])) for p in prompts])[:, None, None, None].expand(-1, 3, 64, 64)
    monkeypatch.setattr(tj, 'sample', obedient)
    found, answers = tj.painted_accuracy(Reader(), None, every=5)
    assert found['trained']['both'] == found['held-out']['both'] == 1 and found['pictures'] == len(answers.shown) == 87
    assert all(p.endswith(' view') and p.split(', ')[1].removesuffix(' view') in POSES for p in asked) and len({p.split(', ')[1] for p in asked}) > 12
    assert [f'{POSES[v]} view' for v in answers.views] == [p.split(', ')[1] for p in asked]
    monkeypatch.setattr(tj, 'sample', lambda *args, **kw: torch.zeros(len(args[1]), 3, 64, 64))    # always paints the first
    found, _ = tj.painted_accuracy(Reader(), None)
    assert found['pictures'] == 432 and 0 < found['trained']['object'] < .05
    _, answers = tj.painted_accuracy(Reader(), None)
    overhead = (answers.views >= 2*len(SIDES)).float().mean()
    assert abs(overhead - .19) < 4*(.19*.81/432)**.5                       # as often from above as the world's own cameras look

def test_by_height():
    shown = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8], [1, tj.OPEN]])
    said = torch.tensor([[1, 2], [3, 5], [5, 6], [7, 8], [2, tj.OPEN]])    # one colour wrong; the white one does not count
    views = torch.tensor([POSES.index(p) for p in ('low front', 'overhead back', 'overhead front', 'high left side', 'low back')])
    assert tj.by_height(tj.Answers(torch.zeros(5, 3, 8, 8), shown, said, views=views)) == {'low': 1, 'high': 1, 'overhead': .5}

def test_the_command_hands_on_its_views(monkeypatch):
    told = {}
    monkeypatch.setattr(tj, 'train_judge', lambda **options: told.update(options))
    tj.main(['--out', 'nowhere'])
    assert told['views'] == (480, 6, 8) and told['model'] is None
    tj.main(['--out', 'nowhere', '--views', '5', '2', '3', '--seed', '4'])
    assert list(told['views']) == [5, 2, 3] and told['seed'] == 4
