"The loop: settings, exact restarts, files, and every field and quality for a few steps"
from dataclasses import asdict, replace
import json
import pytest, torch
from dreamfusion_nb import generate as G
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
    dream = G.Dream('a red ball', prior, replace(G.QUALITIES[quality], steps=2, field=field, radius=G.QUALITIES[quality].radius if field == 'mlp' else 1., **SHORT), seed=3)
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
    sample = G.sample_cameras
    monkeypatch.setattr(G, 'sample_cameras', lambda *a, **k: drawn.append(sample(*a, **k)) or drawn[-1])
    dream = G.Dream('a red ball', Listening(), G.Settings(steps=6, fine_views=fine, **SHORT), seed=1)
    for _ in dream: pass
    names, index = (G.POSES, G.pose_index) if fine else (G.VIEWS, G.view_index)
    assert len(dream.cond) == number
    for cond, cameras in zip(asked, drawn, strict=True):
        said = f'a red ball, {names[index(cameras.azimuth, cameras.elevation)[0]]} view'
        assert torch.allclose(cond, prior.encode([said])[0], atol=1e-5)

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
    for other in (dict(prompt='a red cone'), dict(seed=3), dict(steps=5)):
        with pytest.raises(UserError, match='another run'): new(**other).restore(tmp_path/'c')

def test_files_say_what_they_are(prior, tmp_path):
    dream = G.Dream('a green cone', prior, G.Settings(steps=4, **SHORT))
    dream.save(tmp_path/'c')
    dream.scene.save(tmp_path/'s')
    with pytest.raises(UserError, match='not a scene'): G.Scene.load(tmp_path/'c')
    with pytest.raises(UserError, match='no file'): G.Scene.load(tmp_path/'nothing')
    (tmp_path/'t').write_text('not tensors')
    with pytest.raises(UserError, match='damaged'): G.Scene.load(tmp_path/'t')
    G.save_tensors(tmp_path/'v', {'a': torch.ones(2)}, 'scene')
    data = (tmp_path/'v').read_bytes().replace(G.__version__.encode(), b'9' + G.__version__.encode()[1:])
    (tmp_path/'v').write_bytes(data)
    with pytest.raises(UserError, match='version 9'): G.load_tensors(tmp_path/'v', 'scene')

def test_a_prior_that_breaks_is_not_hidden(prior):
    class Broken:
        def __getattr__(self, name): return getattr(prior, name)
        def eps(self, z_t, step, cond): return z_t*float('nan')
    with pytest.raises(FloatingPointError): G.Dream('a red ball', Broken(), G.Settings(steps=2, **SHORT)).advance()

def test_occupancy_skipping_keeps_the_picture(prior):
    dream = G.Dream('a red ball', prior, G.Settings(steps=20, **SHORT))
    for _ in dream: pass
    cameras = G.orbit(torch.tensor([30.]), 20., 2.5, 1.3)
    quick = G.look(dream.scene, cameras, 24, 48)
    full = G.render(dream.field, G.camera_rays(cameras, 24), 48, background=torch.ones(3))
    assert (quick.rgb - full.rgb.detach()).abs().max() < .05

def test_the_lamp_is_above_the_left_shoulder():
    cameras = G.orbit(torch.tensor([0.]), 0., 2.5, 1.3)
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
