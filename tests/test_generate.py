"The loop: settings, exact restarts, files, and every field and quality for a few steps"
from dataclasses import asdict, replace
import json, sys
import pytest, torch
from dreamfusion_nb import generate as G
from dreamfusion_nb import optimisers as O
from dreamfusion_nb import scene as S
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.prior import load_prior
from dreamfusion_nb.utils import UserError, seeded

@pytest.fixture(scope='module')
def prior(): return load_prior()

SHORT = dict(sizes=((0., 12), (.5, 16)), samples=12)

def test_settings_survive_json():
    for s in G.QUALITIES.values(): assert G.Settings(**json.loads(json.dumps(asdict(s)))) == s

@pytest.mark.parametrize('quality', G.QUALITIES)
@pytest.mark.parametrize('field', G.FIELDS)
def test_every_quality_and_field_takes_steps(prior, quality, field):
    dream = G.Dream('a red ball', prior, replace(G.QUALITIES[quality], steps=2, field=field, radius=G.QUALITIES[quality].radius if field == 'mlp' else 1., optimiser='adam', **SHORT), seed=3)
    before = [p.clone() for p in dream.modules.parameters()]
    rows = list(dream)
    assert [r['step'] for r in rows] == [1, 2] and all(torch.isfinite(p).all() for p in dream.modules.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, dream.modules.parameters()))

@pytest.mark.parametrize('fine, number', [(True, 24), (False, 4)])
def test_the_prompt_names_the_side_that_the_camera_sees(prior, monkeypatch, fine, number):
    asked, drawn = [], []
    class Listening:
        def __getattr__(self, name): return getattr(prior, name)
        def eps(self, z_t, step, cond): asked.append(cond[0]); return prior.eps(z_t, step, cond)
    sample = G.Dream.cameras
    monkeypatch.setattr(G.Dream, 'cameras', lambda self: drawn.append(sample(self)) or drawn[-1])
    dream = G.Dream('a red ball', Listening(), G.Settings(steps=6, fine_views=fine, **SHORT), seed=1)
    for _ in dream: pass
    names, index = (G.POSES, G.pose_index) if fine else (G.VIEWS, G.view_index)
    assert len(dream.cond) == number
    for cond, cameras in zip(asked, drawn, strict=True):
        said = f'a red ball, {names[index(cameras.azimuth, cameras.elevation)[0]]} view'
        assert torch.allclose(cond, prior.encode([said])[0], atol=1e-5)

def test_cameras_leave_the_middles_of_the_words_by_and_by(prior):
    dream = G.Dream('a red ball', prior, G.Settings(steps=10, views=64, pose_spread=(0., .2, .6), elevation=(-10., 55.)))
    def off():
        azimuth = dream.cameras().azimuth
        return ((azimuth + 22.5) % 45 - 22.5).abs().max().item()
    seen = []
    for dream.step in (0, 2, 4, 6, 9): seen.append(off())
    assert max(seen[:2]) < .01 < 5 < seen[2] < 13 and min(seen[3:]) > 18
    dream.settings = replace(dream.settings, fine_views=False)
    dream.step = 0
    assert off() > 18                                                    # four words are for everywhere

def test_view_words_are_never_cut_off(prior):
    def fits(n):
        try: return bool(G.check_prompt(prior, ' '.join(['red']*n)))
        except UserError: return False
    longest = max(n for n in range(1, 30) if fits(n))
    prompts = G.view_prompts(' '.join(['red']*longest), G.POSES)
    assert all(prior.tokenizer.decode(prior.tokenizer(p, truncation=True).input_ids).endswith('view <eos>') for p in prompts)
    assert longest + 7 == max(len(prior.tokenizer(p).input_ids) for p in prompts) == prior.tokenizer.model_max_length

def test_same_seed_same_object_other_seed_another(prior):
    def made(seed):
        dream = G.Dream('a blue cube', prior, G.Settings(steps=3, **SHORT), seed=seed)
        for _ in dream: pass
        return torch.cat([p.detach().flatten() for p in dream.field.parameters()])
    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))

@pytest.mark.parametrize('changes', [{}, dict(field='mlp', background='mlp', blur=(5e-2, 2e-3)), dict(occupancy_from=.2)], ids=['grid', 'mlp', 'skipping'])
def test_resume_is_exact_for_every_field(prior, tmp_path, changes):
    settings = G.Settings(steps=36 if 'occupancy_from' in changes else 6, **SHORT | changes)
    def new(): return G.Dream('a green cone', prior, settings, seed=2)
    straight, stopped = new(), new()
    for _ in straight: pass
    while stopped.step < settings.steps//2 + 1: stopped.advance()
    stopped.save(tmp_path/'c')
    resumed = new().restore(tmp_path/'c')
    for _ in resumed: pass
    assert all(torch.equal(a, b) for a, b in zip(straight.modules.parameters(), resumed.modules.parameters()))
    assert torch.equal(straight.occupancy.cells, resumed.occupancy.cells)

def test_a_checkpoint_of_another_run_is_refused(prior, tmp_path):
    def new(prompt='a green cone', seed=2, steps=4): return G.Dream(prompt, prior, G.Settings(steps=steps, **SHORT), seed)
    new().save(tmp_path/'c')
    for other, word in ((dict(prompt='a red cone'), 'prompt'), (dict(seed=3), 'seed'), (dict(steps=5), 'steps')):
        with pytest.raises(UserError, match=f'another run: its {word} is'): new(**other).restore(tmp_path/'c')

def test_files_say_what_they_are(prior, tmp_path):
    dream = G.Dream('a green cone', prior, G.Settings(steps=4, **SHORT))
    dream.save(tmp_path/'c')
    dream.scene.save(tmp_path/'s')
    with pytest.raises(UserError, match='not a scene'): G.Scene.load(tmp_path/'c')
    with pytest.raises(UserError, match='no file'): G.Scene.load(tmp_path/'nothing')
    (tmp_path/'t').write_text('not tensors')
    with pytest.raises(UserError, match='damaged'): G.Scene.load(tmp_path/'t')
    S.save_tensors(tmp_path/'v', {'a': torch.ones(2)}, 'scene')
    data = (tmp_path/'v').read_bytes().replace(S.__version__.encode(), b'9' + S.__version__.encode()[1:])
    (tmp_path/'v').write_bytes(data)
    with pytest.raises(UserError, match='version 9'): S.load_tensors(tmp_path/'v', 'scene')

def test_a_prior_that_breaks_is_not_hidden(prior):
    class Broken:
        def __getattr__(self, name): return getattr(prior, name)
        def eps(self, z_t, step, cond): return z_t*float('nan')
    dream = G.Dream('a red ball', Broken(), G.Settings(steps=2, **SHORT))
    with pytest.raises(FloatingPointError, match='Step 1 of 2'): dream.advance()
    assert dream.step == 0 and dream.field.levels[0][:, 0].abs().max() == 0          # the density, at its start

def test_occupancy_skipping_keeps_the_picture(prior):
    dream = G.Dream('a red ball', prior, G.Settings(steps=20, **SHORT))
    for _ in dream: pass
    cameras = orbit(torch.tensor([30.]), 20., 2.5, 1.3)
    quick = G.look(dream.scene, cameras, 24, 48)
    full = G.render(dream.field, G.camera_rays(cameras, 24), 48, background=torch.ones(3))
    assert (quick.rgb - full.rgb.detach()).abs().max() < .05

def test_the_lamp_is_above_the_left_shoulder():
    cameras = orbit(torch.tensor([0.]), 0., 2.5, 1.3)
    assert torch.allclose(G.lamp_by(cameras).position, torch.tensor([[-.6, 1., 2.5]]), atol=1e-5)

def test_random_backgrounds_cover_the_greys():
    b = G.random_background(2000, seeded(0))
    assert b.min() >= 0 and b.max() <= 1 and abs(float(b.mean()) - .575) < .02 and b.mean(1).std() > .15

def test_the_paper_has_its_larger_sphere(prior, tmp_path):
    "The density reaches as far as the scene does, also when it is read again; a field that ends before is refused"
    dream = G.Dream('a red mug', prior, replace(G.QUALITIES['paper'], steps=1), 0)
    x = torch.tensor([[0., 0., 1.3], [0., 0., 1.45]])
    assert ((dream.field(x)[0] > 0) == torch.tensor([True, False])).all()
    dream.scene.save(tmp_path/'scene.safetensors')
    assert torch.equal(G.Scene.load(tmp_path/'scene.safetensors').field(x)[0], dream.field(x)[0])
    with pytest.raises(UserError, match='radius of 1'): G.Settings(radius=1.4)

OPTIONS = [dict(view_words=False), dict(finish=0.), dict(finish_guidance=30.), dict(finish_levels=(.5, .9)), dict(finish_smoothness=(.1, .1)), dict(mixed_views=True), dict(mixed_views=True, fine_views=False), dict(perp_neg=1.), dict(perp_neg=1., fine_views=False), dict(uniform_area=0.), dict(up_jitter=0.), dict(lambda_distortion=(0., 1.)),
           dict(lambda_normals=(1., 1.)), dict(normal_eps=0., albedo_until=0., shaded=1.), dict(cosine_after_warmup=True, warmup=.5), dict(orient_until=.25, lambda_orient=(0., 10.)),
           dict(field='mlp', blob_before=True), dict(field='mlp', blur=(.05, .002)), dict(field='mlp', blur=(.05, .002), blur_squared=False)]

@pytest.mark.parametrize('changes', OPTIONS, ids=lambda c: '-'.join(c))
def test_every_option_takes_steps_and_matters(prior, changes):
    def end(changes):
        dream = G.Dream('a red mug', prior, G.Settings(steps=3, **SHORT, **{'albedo_until': 0., 'shaded': 1., **changes}), seed=1)
        for _ in dream: pass
        return torch.cat([p.detach().flatten() for p in dream.modules.parameters()])
    changed, plain = end(changes), end({k: v for k, v in changes.items() if k == 'field'})
    assert changed.isfinite().all() and not torch.equal(changed, plain)

@pytest.mark.parametrize('field', ['grid', 'mlp'])
@pytest.mark.parametrize('optimiser', ['adan', 'shampoo'])
def test_resume_is_exact_for_every_optimiser(prior, tmp_path, optimiser, field):
    pytest.importorskip('pytorch_optimizer')
    settings = G.Settings(steps=14, sizes=((0., 8),), samples=8, field=field, optimiser=optimiser, lr=.01)   # Shampoo uses its roots from step 5 on
    def new(): return G.Dream('a green cone', prior, settings, seed=2)
    straight, stopped = new(), new()
    for _ in straight: pass
    while stopped.step < 12: stopped.advance()
    stopped.save(tmp_path/'c')
    resumed = new().restore(tmp_path/'c')
    assert all(torch.equal(a, b) for a, b in zip(stopped.modules.parameters(), resumed.modules.parameters()))
    for _ in resumed: pass
    assert all(torch.equal(a, b) for a, b in zip(straight.modules.parameters(), resumed.modules.parameters()))

def test_a_missing_package_is_named(prior, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_optimizer', None)
    with pytest.raises(UserError, match='pip install pytorch_optimizer'): G.Dream('a red ball', prior, G.PAPER)
    with pytest.raises(UserError, match='no optimiser'): G.Settings(optimiser='sgd')

def test_the_memory_of_another_optimiser_is_refused(prior, tmp_path):
    dream = G.Dream('a green cone', prior, G.Settings(steps=4, **SHORT))
    dream.advance()
    tensors = {k: v for k, v in G.memories(dream.optimiser).items() if not k.endswith('exp_avg_sq')}
    with pytest.raises(UserError, match='another version of the optimiser'): G.recall(dream.optimiser, tensors, 1)

def test_a_gradient_that_is_no_number_changes_nothing(prior, monkeypatch):
    dream = G.Dream('a green cone', prior, G.Settings(steps=4, **SHORT))
    dream.advance()
    before = [p.detach().clone() for p in dream.modules.parameters()]
    monkeypatch.setattr(G, 'opacity_loss', lambda o: (o - o.detach()).sum().sqrt())      # its slope at 0 is infinite
    with pytest.raises(FloatingPointError, match='Step 2 of 4: The gradient of the field'): dream.advance()
    assert dream.step == 1 and all(torch.equal(a, b) for a, b in zip(before, dream.modules.parameters()))

def test_the_schedule_of_the_step_size(prior):
    dream = G.Dream('a red ball', prior, G.Settings(steps=100, lr=1., lr_end=.1, warmup=.2))
    def at(step): dream.step = step; return dream.lr
    assert at(0) == pytest.approx(.05*1.) and at(100) == pytest.approx(.1) and at(50) == pytest.approx(.55)
    dream.settings = replace(dream.settings, cosine_after_warmup=True)
    assert at(20) == pytest.approx(1.) and at(60) == pytest.approx(.55) and at(100) == pytest.approx(.1)

def test_mixed_words_reach_the_prior(prior):
    dream = G.Dream('a red ball', prior, G.Settings(steps=2, fine_views=False, mixed_views=True))
    cameras = orbit(torch.tensor([0., 30., 180.]), torch.tensor([0., 10., 70.]))
    cond, _ = dream.ask(cameras)
    front, side, back, above = dream.cond
    assert torch.allclose(cond, torch.stack([front, 2/3*front + side/3, above]), atol=1e-5)

def test_perp_neg_grows_towards_the_back(prior):
    dream = G.Dream('a red ball', prior, G.Settings(steps=2, perp_neg=2.))
    _, averse = dream.ask(orbit(torch.tensor([0., 90., 180., -90.]), torch.tensor([0., 30., 70., 0.])))
    assert torch.allclose(averse.strength, torch.tensor([0., 1., 2., 1.]))
    assert torch.equal(averse.negative, dream.cond[[G.POSES.index(f'{height} front') for height in ('low', 'high', 'overhead', 'low')]])
    assert averse.alpha_t is prior.alpha_t

def test_without_view_words_every_view_has_the_prompt_itself(prior):
    dream = G.Dream('a red ball', prior, G.Settings(steps=2, view_words=False))
    assert torch.allclose(dream.cond, prior.encode(['a red ball']).expand_as(dream.cond), atol=1e-5)

def levels_and_guidance(prior, monkeypatch, **changes):
    "What each step of a short run asks with"
    asked, sds = [], G.sds_grad
    monkeypatch.setattr(G, 'sds_grad', lambda prior, z, cond, uncond, step, noise, guidance, *rest: asked.append((step.item(), guidance)) or sds(prior, z, cond, uncond, step, noise, guidance, *rest))
    for _ in G.Dream('a red ball', prior, G.Settings(steps=10, sizes=((0., 8),), samples=8, **changes), seed=1): pass
    return asked

def test_the_last_fifth_asks_gently(prior, monkeypatch):
    asked = levels_and_guidance(prior, monkeypatch)
    assert [guidance for _, guidance in asked] == [20.]*8 + [1.]*2
    assert min(step for step, _ in asked[:8]) >= 700 and max(step for step, _ in asked[8:]) <= 500

def test_without_it_all_steps_ask_alike(prior, monkeypatch):
    asked = levels_and_guidance(prior, monkeypatch, finish=0.)
    assert {guidance for _, guidance in asked} == {20.} and min(step for step, _ in asked) >= 700

def test_the_smoothness_terms_fade_while_cleaning(prior, monkeypatch):
    "Whole until then, and down by equal factors after it; the step after the last one would have the end"
    weights, grid = [], type(G.FIELDS['grid']())
    rough = grid.roughness
    monkeypatch.setattr(grid, 'roughness', lambda field, first, second: weights.append((first, second)) or rough(field, first, second))
    for _ in G.Dream('a red ball', prior, G.Settings(steps=10, finish=.4, finish_smoothness=(.8, .05), lambda_smooth=.1, lambda_bend=2., sizes=((0., 8),), samples=8), seed=1): pass
    assert [second for _, second in weights] == pytest.approx([2.]*6 + [2*.8*(.05/.8)**(k/4) for k in range(4)])
    assert [first for first, _ in weights] == pytest.approx([second/20 for _, second in weights])

def test_the_share_that_cleans_is_a_share():
    with pytest.raises(UserError, match='finish'): G.Settings(finish=1.)
    with pytest.raises(UserError, match='finish_smoothness'): G.Settings(finish_smoothness=(1., 0.))

@pytest.mark.parametrize('optimiser', ['adam', 'shampoo'])
def test_resume_is_exact_while_cleaning(prior, tmp_path, optimiser):
    "The memory is a new one there, and counts from its own beginning: Shampoo's roots come ten steps after that"
    if optimiser != 'adam': pytest.importorskip('pytorch_optimizer')
    settings = G.Settings(steps=16, finish=.75, sizes=((0., 8),), samples=8, optimiser=optimiser, lr=.01)
    def new(): return G.Dream('a green cone', prior, settings, seed=2)
    straight = new()
    assert straight.finish_step == 4
    for _ in straight: pass
    for at in (4, 5, 9):
        stopped = new()
        while stopped.step < at: stopped.advance()
        stopped.save(tmp_path/'c')
        resumed = new().restore(tmp_path/'c')
        for _ in resumed: pass
        assert all(torch.equal(a, b) for a, b in zip(straight.modules.parameters(), resumed.modules.parameters())), at

def test_cleaning_begins_with_a_fresh_memory(prior):
    dream, counted = G.Dream('a red ball', prior, G.Settings(steps=10, sizes=((0., 8),), samples=8), seed=1), []
    for _ in dream: counted.append(int(dream.optimiser.state[dream.field.levels[0]]['step']))
    assert counted == [*range(1, 9), 1, 2]

def slow_to_look(dream, every=10):
    dream.ledger.every = every
    return dream

def test_the_loop_reads_nothing_between_two_looks(prior, monkeypatch):
    "On a GPU each number that the program reads is a wait; what the other modules read, they read on a CPU only, but for the counting of samples in `render`"
    read, where = [], {'generate', 'optimisers', 'parallel', 'shading', 'sds'}
    def watch(name):
        original = getattr(torch.Tensor, name)
        def noted(self, *args, **kwargs):
            frame = sys._getframe(1)
            read.append((frame.f_globals.get('__name__', '').removeprefix('dreamfusion_nb.'), frame.f_code.co_name))
            return original(self, *args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, noted)
    for name in ('item', 'tolist', '__bool__', '__float__', '__int__', '__index__', 'numpy', 'nonzero'): watch(name)
    dream = slow_to_look(G.Dream('a red ball', prior, G.Settings(steps=24, occupancy_from=1., **SHORT), seed=1))
    looks = []
    while dream.step < 12:
        read.clear()
        dream.advance()
        looks.append(('optimisers', 'read') in read)
        allowed = {('optimisers', 'read'), ('shading', 'sample_mode'), ('sds', 'check_batch'), ('sds', 'sds_grad')}    # two random numbers of the CPU's generator; what is looked at on a CPU only
        assert {r for r in read if r[0] in where} <= allowed
    assert looks == [True] + [False]*8 + [True, False, False]

def test_a_bad_step_that_is_noticed_late_changes_nothing(prior, monkeypatch, tmp_path):
    dream = slow_to_look(G.Dream('a green cone', prior, G.Settings(steps=24, **SHORT)))
    while dream.step < 4: dream.advance()
    before, memory = [p.detach().clone() for p in dream.modules.parameters()], {k: v.clone() for k, v in O.memories(dream.optimiser).items()}
    with monkeypatch.context() as m:
        m.setattr(G, 'opacity_loss', lambda o: (o - o.detach()).sum().sqrt())            # its slope at 0 is infinite
        dream.advance()
    dream.advance()
    with pytest.raises(FloatingPointError, match='Step 5 of 24: The gradient of the field'): dream.save(tmp_path/'c')
    assert dream.step == 4 and not (tmp_path/'c').exists() and all(torch.equal(a, b) for a, b in zip(before, dream.modules.parameters()))
    assert all(torch.equal(v, memory[k]) for k, v in O.memories(dream.optimiser).items())
    for _ in dream: pass
    assert dream.step == 24 and all(p.isfinite().all() for p in dream.modules.parameters())

def test_looking_rarely_makes_the_same_object(prior):
    def made(every):
        dream = slow_to_look(G.Dream('a green cone', prior, G.Settings(steps=8, **SHORT), seed=1), every)
        rows = list(dream)
        return torch.cat([p.detach().flatten() for p in dream.modules.parameters()]), rows[-1]['grad']
    (a, grad), (b, same) = made(1), made(5)
    assert torch.equal(a, b) and grad == same

@pytest.mark.parametrize('field', ['mlp', 'hash'])
def test_sixteen_bits_are_nearly_the_field(field):
    f, x = S.make_field(G.Settings(field=field), seeded(0)), .8*torch.rand(500, 3, generator=seeded(1)) - .4
    (density, albedo), (rough, painted) = f(x), S.in_bfloat16(f, 'cpu')(x)
    assert rough.dtype == painted.dtype == torch.float32 and not torch.equal(rough, density)
    torch.testing.assert_close(rough, density, rtol=.05, atol=.05)
    torch.testing.assert_close(painted, albedo, rtol=.05, atol=.02)
    rough.sum().backward()
    assert all(p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in f.parameters())

def test_sixteen_bits_are_for_a_gpu(prior):
    with pytest.raises(UserError, match='CUDA GPU, and the device is cpu'): G.Dream('a red ball', prior, G.Settings(mixed=True))
