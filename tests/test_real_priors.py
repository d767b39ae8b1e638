"Every family of borrowed priors, on small random models of the very same classes; what the hub and the disk can answer"
import errno, gc, json, shutil, sys, weakref
from functools import partial
from pathlib import Path
import pytest
import torch
from dreamfusion_nb import borrowed, hub, real_priors, runs
from dreamfusion_nb.borrowed import RealPrior, colour_charts, fit_colours, mix_colours, resize, visit
from dreamfusion_nb.diffusion import at, guided_eps
from dreamfusion_nb.generate import Settings, generate, look
from dreamfusion_nb.prior import load_prior, sample, words
from dreamfusion_nb.hub import count_weights, download
from dreamfusion_nb.real_priors import FAMILIES, KNOWN, Flux, Plan, borrow, dtype_option, nearest, pack, plan_memory, random_pipeline, unpack, wanted, weight_files
from dreamfusion_nb.sds import sds_grad
from dreamfusion_nb.utils import UserError, seeded
import huggingface_hub.errors

http = sys.modules.get('httpx2') or sys.modules['httpx']   # the hub's library speaks through one of the two

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A folder for each family, made when it is first asked for"
    folder, made = tmp_path_factory.mktemp('models'), {}
    def get(family, name=None, **options):
        name = name or family
        if name not in made: made[name] = random_pipeline(family, folder/name, **options)
        return made[name]
    return get

@pytest.fixture
def copy(saved, tmp_path):
    "A model that may be damaged"
    return Path(shutil.copytree(saved('StableDiffusionPipeline'), tmp_path/'model'))

def whole(folder):
    "The real pipeline, with everything in it, in float32 and silent"
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def by_hand(pipe, image, prompt, step, noise, w):
    "z and the gradient of score distillation from the parts of a pipeline, written down family by family; the negative prompt comes first, as in diffusers"
    import diffusers
    family, (t,) = type(pipe).__name__, step.tolist()
    if family == 'IFPipeline': z = 2*torch.nn.functional.interpolate(image, size=16, mode='bilinear') - 1
    else: z = pipe.vae.encode(2*torch.nn.functional.interpolate(image, size=32, mode='bilinear') - 1).latent_dist.mean
    twice = torch.cat([noise, noise])
    if family == 'FluxPipeline':
        z, s = (z - .1159)*.3611, (t + .5)/1000
        line = pipe._pack_latents((1 - s)*z + s*noise, 1, 4, 16, 16)
        def v(prompt):
            tokens, pooled, text_ids = pipe.encode_prompt(prompt)
            out = pipe.transformer(line, encoder_hidden_states=tokens, pooled_projections=pooled, timestep=torch.tensor([s]), guidance=torch.tensor([1.]),
                                   txt_ids=text_ids, img_ids=pipe._prepare_latent_image_ids(1, 8, 8, 'cpu', torch.float32)).sample
            return pipe._unpack_latents(out, 32, 32, 2)
        residual = v('') + (w + 1)*(v(prompt) - v('')) - (noise - z)
        return z, s**2/((1 - s)**2 + s**2)*(1 - s)*residual
    if family == 'StableDiffusion3Pipeline':
        z = (z - .0609)*1.5305
        pos, neg, pooled, neg_pooled = pipe.encode_prompt(prompt, None, None)
        s = (t + .5)/1000
        line = (1 - s)*z + s*noise
        neg_v, pos_v = pipe.transformer(torch.cat([line]*2), timestep=torch.tensor([1000*s]*2), encoder_hidden_states=torch.cat([neg, pos]),
                                        pooled_projections=torch.cat([neg_pooled, pooled])).sample.chunk(2)
        residual = neg_v + (w + 1)*(pos_v - neg_v) - (noise - z)
        return z, s**2/((1 - s)**2 + s**2)*(1 - s)*residual
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    if family != 'IFPipeline': z = z*pipe.vae.config.scaling_factor
    noisy = torch.cat([scheduler.add_noise(z, noise, step)]*2)
    if family == 'StableDiffusionPipeline':
        pos, neg = pipe.encode_prompt(prompt, 'cpu', 1, True)
        said = pipe.unet(noisy, step, encoder_hidden_states=torch.cat([neg, pos])).sample
        if scheduler.config.prediction_type == 'v_prediction':
            kept = scheduler.alphas_cumprod[t]
            said = kept.sqrt()*said + (1 - kept).sqrt()*noisy
    elif family == 'StableDiffusionXLPipeline':
        pos, neg, pooled, neg_pooled = pipe.encode_prompt(prompt)
        added = {'text_embeds': torch.cat([neg_pooled, pooled]), 'time_ids': torch.tensor([[32, 32, 0, 0, 32, 32]]*2)}
        said = pipe.unet(noisy, step, encoder_hidden_states=torch.cat([neg, pos]), added_cond_kwargs=added).sample
    elif family == 'IFPipeline':
        pos, neg = pipe.encode_prompt(prompt)
        said = pipe.unet(noisy, step, encoder_hidden_states=torch.cat([neg, pos])).sample[:, :3]
    else:
        pos, pos_mask, neg, neg_mask = pipe.encode_prompt(prompt)
        said = pipe.transformer(noisy, encoder_hidden_states=torch.cat([neg, pos]), encoder_attention_mask=torch.cat([neg_mask, pos_mask]), timestep=torch.cat([step]*2),
                                added_cond_kwargs={'resolution': None, 'aspect_ratio': None}).sample.chunk(2, 1)[0]
    neg_eps, pos_eps = said.chunk(2)
    return z, (1 - scheduler.alphas_cumprod[t])*(neg_eps + (w + 1)*(pos_eps - neg_eps) - noise)

V = dict(name='v', prediction_type='v_prediction')
CASES = [pytest.param(f, {}, id=f) for f in FAMILIES] + [pytest.param('StableDiffusionPipeline', V, id='v-prediction')]

@pytest.mark.parametrize('family, options', CASES)
@torch.no_grad()
def test_the_gradient_is_the_one_computed_by_hand(saved, family, options):
    folder = saved(family, **options)
    prior, image = load_prior(folder), torch.rand(1, 3, 64, 64, generator=seeded(0))
    z = prior.to_latent(image)
    step, noise = torch.tensor([420]), torch.randn(z.shape, generator=seeded(1))
    z_hand, grad_hand = by_hand(whole(folder), image, 'a red mug', step, noise, 7.5)
    assert torch.allclose(z, z_hand, atol=1e-5)
    grad = sds_grad(prior, z, prior.encode(['a red mug']), prior.encode(['']), step, noise, 7.5)
    assert torch.allclose(grad, grad_hand, atol=1e-4), (grad - grad_hand).abs().max()
    assert grad.abs().mean() > .01 and not torch.allclose(grad, sds_grad(prior, z, prior.encode(['a blue mug']), prior.encode(['']), step, noise, 7.5), atol=1e-4)

@pytest.mark.parametrize('family, options', CASES)
@torch.no_grad()
def test_guidance_w_is_the_pipelines_guidance_scale_minus_one(saved, family, options):
    "What the pipeline itself hands to its scheduler, at its own noise level, is what the prior says"
    import diffusers
    folder = saved(family, **options)
    pipe, prior, heard, more = whole(folder), load_prior(folder), [], {}
    if family == 'StableDiffusion3Pipeline': more = dict(sigmas=[.4205])
    elif family == 'FluxPipeline':
        pipe.scheduler.register_to_config(use_dynamic_shifting=False)
        more = dict(sigmas=[.4205], height=32, width=32, negative_prompt='', true_cfg_scale=5.)
        prior.told = 5.                                                     # what the network hears of guidance is a matter of its own
    elif family != 'IFPipeline': pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    if family.startswith('PixArt'): more = dict(clean_caption=False, use_resolution_binning=False)
    if family == 'IFPipeline': more = dict(clean_caption=False)
    take = pipe.scheduler.step
    def listen(out, t, sample, *args, **kwargs): heard.append((out, t, sample)); return take(out, t, sample, *args, **kwargs)
    pipe.scheduler.step = listen
    def unpack_flux(x): return pipe._unpack_latents(x, 32, 32, 2) if family == 'FluxPipeline' else x
    pipe('a red mug', guidance_scale=5., num_inference_steps=1 if 'sigmas' in more else 2, output_type='pt' if family == 'IFPipeline' else 'latent', generator=seeded(2), **more)
    out, t, z = heard[-1]
    out, z = unpack_flux(out), unpack_flux(z)
    step = torch.tensor([int(t)])
    cond, uncond = prior.encode(['a red mug']), prior.encode([''])
    a, s = prior.alpha_t[step].view(1, 1, 1, 1), prior.sigma_t[step].view(1, 1, 1, 1)
    if family in ('StableDiffusion3Pipeline', 'FluxPipeline'): z, expected = z*(a + s), z + a/(a + s)*out
    elif options: expected = a*out + s*z
    else: expected = out[:, :z.shape[1]]
    assert torch.allclose(guided_eps(prior, z, step, cond, uncond, 4.), expected, atol=1e-4)
    assert not torch.allclose(guided_eps(prior, z, step, cond, uncond, 5.), expected, atol=1e-4)

@pytest.mark.parametrize('family', ['StableDiffusionXLPipeline', 'PixArtAlphaPipeline', 'StableDiffusion3Pipeline'])
def test_two_runs_agree_and_seeds_differ(saved, family):
    settings = Settings(steps=2, samples=8, sizes=((0., 8),), field='mlp')
    def run(seed):
        with torch.random.fork_rng():                                       # nothing may depend on the global generator
            torch.manual_seed(int(torch.randint(1000, (1,))))
            return generate('a red mug', str(saved(family)), settings, seed).field.state_dict()
    one, two, other = run(0), run(0), run(1)
    assert all(torch.equal(one[k], two[k]) for k in one) and any(not torch.equal(one[k], other[k]) for k in one)

@pytest.mark.parametrize('family, options', [c for c in CASES if c.id in ('StableDiffusionPipeline', 'IFPipeline', 'FluxPipeline')])
def test_a_short_run_ends_with_all_outputs(saved, tmp_path, monkeypatch, family, options):
    for name, small in (('turntable', partial(runs.turntable, frames=2, size=8)), ('views_sheet', partial(runs.views_sheet, size=8)), ('write_results', partial(runs.write_results, mesh_resolution=24)),
                        ('look', lambda scene, cameras, *_: look(scene, cameras, 8, 8)), ('write_preview', lambda dream, path: path.write_bytes(b''))):
        monkeypatch.setattr(runs, name, small)                              # the outputs themselves are the business of test_generate
    # small steps: an untrained model's noise would fill the whole scene in three of the usual ones
    out = runs.generate_run('a corgi in a top hat', tmp_path/'run', str(saved(family, **options)), steps=3, samples=8, sizes=((0., 8),), field='mlp', lr=.005, device='cpu', progress=False, vram=4.,
                            direct=family == 'FluxPipeline')
    names = {f.name for f in out.iterdir()}
    assert {'run.json', 'scene.safetensors', 'log.csv', 'views.png', 'turntable.gif', 'mesh.glb'} <= names
    record = json.loads((out/'run.json').read_text())
    assert record['prompt'] == 'a corgi in a top hat' and record['direct'] == (family == 'FluxPipeline')

def test_the_command_line_asks_for_direct_latents(monkeypatch, capsys):
    from dreamfusion_nb.cli import main, parser
    assert parser().parse_args(['generate', 'a red mug', '--direct']).direct and 'direct' not in parser().parse_args(['generate', 'a red mug'])
    assert main(['generate', 'a red mug', '--direct', '--out', 'nowhere']) == 1 and 'embedded is of our own kind' in capsys.readouterr().err

@pytest.mark.parametrize('family', FAMILIES)
def test_one_tensor_holds_a_condition(saved, family):
    prior = load_prior(saved(family))
    assert words(prior) == []                                               # reads any text
    cond = prior.encode(['a red mug', 'a blue chair', ''])
    assert cond.dim() == 3 and len(cond) == 3 and torch.equal(cond[[1]], prior.encode(['a blue chair'])) and not torch.equal(cond[0], cond[1])
    z, step = prior.to_latent(torch.rand(2, 3, 20, 20)), torch.tensor([100, 900])
    assert torch.allclose(prior.eps(z, step, cond[:2])[1:], prior.eps(z[1:], step[1:], cond[1:2]), atol=1e-4)   # items of a batch do not meet

def test_pack_and_unpack():
    tokens, vector = torch.randn(2, 5, 8), torch.randn(2, 11)
    assert pack(tokens, vector).shape == (2, 7, 8)
    assert all(torch.equal(a, b) for a, b in zip(unpack(pack(tokens, vector), 11), (tokens, vector)))

@pytest.mark.parametrize('family', ['StableDiffusionPipeline', 'StableDiffusionXLPipeline', 'StableDiffusion3Pipeline'])
def test_the_latent_carries_a_gradient_to_the_picture(saved, family):
    prior = load_prior(saved(family))
    image = torch.rand(1, 3, 8, 8, generator=seeded(0)).requires_grad_()
    weight = torch.randn(1, 8, 16, 16, generator=seeded(1))[:, :prior.to_latent(image).shape[1]]
    def value(x): return (prior.to_latent(x)*weight).sum()
    grad, = torch.autograd.grad(value(image), image)
    nudge = torch.randn(image.shape, generator=seeded(2))
    measured = (value(image + 2e-3*nudge) - value(image - 2e-3*nudge))/4e-3
    assert torch.allclose((grad*nudge).sum(), measured, rtol=1e-2)
    assert prior.from_latent(prior.to_latent(image)).shape == (1, 3, 32, 32)

@pytest.fixture
def quick_gc():
    "The collector looks only at what is made from now on"
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

def test_the_text_encoder_is_read_once_and_gone_before_the_denoiser_comes(saved, monkeypatch, quick_gc):
    prior, loaded, alive = load_prior(saved('StableDiffusionXLPipeline')), [], {}
    load = RealPrior.load
    def spy(self, part, cls, dtype):
        gc.collect()
        loaded.append((part, [k for k, r in alive.items() if r() is not None]))
        net = load(self, part, cls, dtype)
        alive[part] = weakref.ref(net)
        return net
    monkeypatch.setattr(RealPrior, 'load', spy)
    cond, uncond = prior.encode(['a red mug', 'a red mug', 'a hat']), prior.encode([''])
    z = prior.to_latent(torch.rand(1, 3, 32, 32))
    prior.eps(z, torch.tensor([10]), cond[:1])
    assert torch.equal(prior.encode(['a hat']), cond[2:])                   # known already
    assert loaded == [('text_encoder', []), ('text_encoder_2', ['text_encoder']), ('vae', []), ('unet', ['vae'])]
    prior.encode(['something new'])
    assert prior.text is None and [p for p, _ in loaded[4:]] == ['text_encoder', 'text_encoder_2']
    pixels = load_prior(saved('IFPipeline'))                                # no VAE that could have sent it away
    del loaded[:]
    pixels.eps(pixels.to_latent(torch.rand(1, 3, 8, 8)), torch.tensor([10]), pixels.encode(['a hat']))
    assert [p for p, _ in loaded] == ['text_encoder', 'unet'] and 'text_encoder' not in loaded[1][1]

def test_a_budget_changes_nothing_but_memory(saved):
    image, noise = torch.rand(1, 3, 64, 64, generator=seeded(0)), torch.randn(1, 4, 16, 16, generator=seeded(1))
    def grads(plan):
        prior = load_prior(saved('StableDiffusionPipeline'))
        prior.plan = plan
        x = image.clone().requires_grad_()
        z = prior.to_latent(x)
        grad = sds_grad(prior, z, prior.encode(['a hat']), prior.encode(['']), torch.tensor([500]), noise, 3.)
        return z.detach(), grad, torch.autograd.grad((grad*z).sum(), x)[0]
    for a, b in zip(grads(Plan()), grads(Plan(True, True, True, True))): assert torch.allclose(a, b, atol=1e-5)

@pytest.mark.parametrize('family', FAMILIES)
def test_no_layer_is_used_while_its_weights_are_away(saved, family):
    one, two = load_prior(saved(family)), load_prior(saved(family))
    z, step, cond = one.to_latent(torch.rand(1, 3, 8, 8, generator=seeded(0))), torch.tensor([300]), one.encode(['a hat'])
    two.open_net()
    weights = {}
    for p in two.net.parameters():
        there, p.data = p.data, torch.full_like(p.data, torch.nan)
        weights[p.data.data_ptr()] = there
    visit(two.net, lambda t: weights.get(t.data_ptr(), t))
    assert torch.equal(one.eps(z, step, cond), two.eps(z, step, cond)) and all(p.isnan().all() for p in two.net.parameters())

def test_plan_memory():
    sd15 = dict(denoiser=1.7, vae=.33, text=.25, size=512)
    assert plan_memory(None, **sd15) == plan_memory(24., **sd15) == Plan()
    assert plan_memory(6., **sd15) == Plan(slices=True, again=True) and plan_memory(4., **sd15) == Plan(slices=True, again=True, offload=True)
    assert plan_memory(8., 1.2, .33, 9.5, 512).text_cpu and not plan_memory(6., 1., 0., 1., 64).again
    with pytest.raises(UserError, match='at least|need') as e: plan_memory(2., **sd15)
    assert '3.8' in str(e.value)

def test_a_long_prompt_is_refused(saved):
    for family in ('StableDiffusionPipeline', 'IFPipeline'):
        with pytest.raises(UserError, match='tokens'): load_prior(saved(family)).encode(['mug '*40])

def test_zeros_for_the_empty_prompt_of_sdxl(saved):
    prior = load_prior(saved('StableDiffusionXLPipeline'))
    assert prior.index['force_zeros_for_empty_prompt'] and not prior.encode(['']).any() and prior.encode(['a']).any()

def test_sd3_without_its_t5(saved, tmp_path):
    folder = Path(shutil.copytree(saved('StableDiffusion3Pipeline'), tmp_path/'model'))
    for part in ('text_encoder_3', 'tokenizer_3'): shutil.rmtree(folder/part)
    index = json.loads((folder/'model_index.json').read_text())
    index.update(text_encoder_3=[None, None], tokenizer_3=[None, None])
    (folder/'model_index.json').write_text(json.dumps(index))
    prior, full = load_prior(folder), load_prior(saved('StableDiffusion3Pipeline'))
    ours, theirs = prior.encode(['a hat']), full.encode(['a hat'])
    assert ours.shape == (1, 77 + 256 + 1, 64) and torch.equal(ours[:, :77], theirs[:, :77]) and torch.equal(ours[:, -1], theirs[:, -1]) and not ours[:, 77:-1].any()

def test_an_old_pixart_folder(saved, tmp_path):
    "The weights on the hub were saved before the class had its present name, with settings that it no longer has"
    folder = Path(shutil.copytree(saved('PixArtAlphaPipeline'), tmp_path/'model'))
    config = json.loads((folder/'transformer'/'config.json').read_text())
    (folder/'transformer'/'config.json').write_text(json.dumps({**config, '_class_name': 'Transformer2DModel', 'only_cross_attention': False, 'num_vector_embeds': None}))
    a, b = (load_prior(f) for f in (folder, saved('PixArtAlphaPipeline')))
    z, step, cond = a.to_latent(torch.rand(1, 3, 8, 8)), torch.tensor([100]), a.encode(['a hat'])
    assert torch.equal(a.eps(z, step, cond), b.eps(z, step, cond))

# ---- what a GPU will do, as far as a CPU can tell

@pytest.mark.parametrize('family', FAMILIES)
def test_half_precision_and_no_waiting(saved, family, monkeypatch):
    "On the device `meta` nothing has a value: whoever asks for one, or mixes two precisions, is told so"
    import diffusers.models.modeling_utils as loading
    monkeypatch.setattr(loading, '_LOW_CPU_MEM_USAGE_DEFAULT', False)       # as without accelerate
    cls, cpu = FAMILIES[family], load_prior(saved(family))
    gpu = cls(saved(family), 'meta')
    assert gpu.dtype == cls.half == (torch.bfloat16 if family == 'FluxPipeline' else torch.float16)
    assert gpu.gb[gpu.denoiser[0]] == pytest.approx(cpu.gb[gpu.denoiser[0]]/2) and gpu.gb.get('vae') == cpu.gb.get('vae')
    image = torch.empty(2, 3, 64, 64, device='meta', requires_grad=True)
    z, cond = gpu.to_latent(image), cpu.encode(['a red mug', 'a hat']).to('meta', gpu.dtype)
    eps = gpu.eps(z.detach(), torch.tensor([10, 500]), cond)
    assert eps.shape == z.shape and eps.dtype == torch.float32 and {p.dtype for p in gpu.net.parameters()} == {cls.half}
    (eps*z).sum().backward()
    assert image.grad.shape == image.shape
    gpu.predict = lambda z_t, *_: z_t*z_t.sum().item()                      # the check itself
    with pytest.raises(RuntimeError, match='meta'): gpu.eps(z.detach(), torch.tensor([10, 500]), cond)

@pytest.mark.parametrize('family', FAMILIES)
@torch.no_grad()
def test_half_precision_says_nearly_the_same(saved, family):
    full, half = load_prior(saved(family)), load_prior(saved(family), dtype=torch.bfloat16)
    z, step = full.to_latent(torch.rand(1, 3, 64, 64, generator=seeded(0))), torch.tensor([300])
    a, b = (p.eps(z, step, p.encode(['a hat'])) for p in (full, half))
    assert torch.equal(half.to_latent(torch.rand(1, 3, 64, 64, generator=seeded(0))), z)   # the VAE stays in float32
    assert b.dtype == torch.float32 and 0 < (a - b).norm() < .06*a.norm()

def test_convolutions_have_their_channels_last(saved):
    prior = load_prior(saved('StableDiffusionPipeline'))
    prior.eps(prior.to_latent(torch.rand(1, 3, 8, 8)), torch.tensor([10]), prior.encode(['a hat']))
    prior.open_vae()
    for net in (prior.net, prior.vae): assert all(p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.dim() == 4)

def test_compiling(saved, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self, **k: compiled.append(type(self).__name__))
    for wish in (False, True):
        prior = load_prior(saved('StableDiffusionPipeline'), compile=wish)
        prior.eps(prior.to_latent(torch.rand(1, 3, 8, 8)), torch.tensor([10]), prior.encode(['a hat']))
    assert compiled == ['UNet2DConditionModel']
    monkeypatch.setattr(borrowed, 'plan_memory', lambda *a: Plan(offload=True))
    with pytest.raises(UserError, match='cannot be compiled'): load_prior(saved('StableDiffusionPipeline'), vram=4., compile=True)

# ---- latents rendered directly

@pytest.mark.parametrize('family', ['StableDiffusionPipeline', 'StableDiffusion3Pipeline'])
def test_direct_latents(saved, family):
    import numpy as np
    prior, plain = load_prior(saved(family), direct=True), load_prior(saved(family))
    image = torch.rand(2, 3, 64, 64, generator=seeded(0)).requires_grad_()
    z = prior.to_latent(image)
    assert z.shape == plain.to_latent(image).shape and prior.vae is None    # 0 GB: it comes back only for looking
    charts = colour_charts()
    with torch.no_grad(): targets = torch.cat([plain.to_latent(c[None]) for c in charts]).movedim(1, -1).flatten(0, 2).numpy()
    x = resize(charts, 16).movedim(1, -1).flatten(0, 2).numpy()
    theirs = np.linalg.lstsq(np.c_[x, np.ones(len(x))], targets, rcond=None)[0]
    assert torch.allclose(prior.colours, torch.tensor(theirs.T).float(), atol=1e-3)
    grad, = torch.autograd.grad(z[:, 0].sum(), image)
    assert torch.allclose(grad.sum((0, 2, 3)), 2*16*16*prior.colours[0, :3], rtol=1e-3, atol=1e-3)   # all weights of the resizing add up to one
    assert prior.from_latent(z).shape == (2, 3, 32, 32) and prior.eps(z.detach(), torch.tensor([10, 20]), prior.encode(['a', 'b'])).isfinite().all()

def test_a_linear_encoder_is_found_exactly():
    colours = torch.randn(5, 4, generator=seeded(0))
    found, share = fit_colours(lambda p: mix_colours(colours, resize(p, 8)), colour_charts(8))
    assert torch.allclose(found, colours, atol=1e-4) and share > .9999
    charts = colour_charts()
    assert charts.shape == (64, 3, 64, 64) and 0 <= charts.min() and charts.max() <= 1 and torch.equal(charts, colour_charts()) and not torch.equal(charts, colour_charts(seed=1))

def test_direct_latents_need_no_room_for_a_graph(saved, monkeypatch):
    plans = []
    monkeypatch.setattr(borrowed, 'plan_memory', lambda *a: plans.append(a) or Plan())
    for direct in (False, True): load_prior(saved('StableDiffusionPipeline'), vram=2., direct=direct)
    assert plans[0][2] > 0 == plans[1][2]
    with pytest.raises(UserError, match='pixels'): load_prior(saved('IFPipeline'), direct=True)
    with pytest.raises(UserError, match='direct.*borrowed'): load_prior(direct=True)
    assert load_prior(direct=False, compile=None)

# ---- Flux

@torch.no_grad()
def test_flux_hears_its_own_guidance(saved, tmp_path):
    import diffusers
    prior = load_prior(saved('FluxPipeline'))
    z, step, cond = prior.to_latent(torch.rand(1, 3, 8, 8, generator=seeded(0))), torch.tensor([300]), prior.encode(['a hat'])
    one = prior.eps(z, step, cond)
    prior.told = 3.5
    assert prior.told != Flux.told and not torch.allclose(one, prior.eps(z, step, cond), atol=1e-4)
    schnell = Path(shutil.copytree(saved('FluxPipeline'), tmp_path/'model'))   # the other member of the family has no such input, and reads 256 tokens
    config = dict(prior.net.config) | {'guidance_embeds': False}
    diffusers.FluxTransformer2DModel.from_config(config).save_pretrained(schnell/'transformer')
    other = load_prior(schnell)
    assert other.encode(['a hat']).shape[1] == 256 + 1 and prior.encode(['a hat']).shape[1] == 512 + 1
    first = other.eps(z, step, other.encode(['a hat']))
    other.told = 3.5
    assert torch.equal(first, other.eps(z, step, other.encode(['a hat'])))

# ---- files

def test_one_precision_is_read():
    both = ['model.safetensors', 'model.fp16.safetensors', 'model.non_ema.safetensors', 'model.bin', 'config.json']
    assert weight_files(both, True) == ['model.fp16.safetensors'] and weight_files(both, False) == ['model.safetensors']
    assert weight_files(['model.fp16-00001-of-00002.safetensors'], False) == ['model.fp16-00001-of-00002.safetensors'] and weight_files(['model.bin'], True) == []
    index = {'_class_name': 'X', 'unet': ['diffusers', 'U'], 'tokenizer': ['transformers', 'T'], 'safety_checker': ['s', 'S'], 'text_encoder_3': [None, None], 'flag': True}
    files = ['model_index.json', 'v1-5-pruned.safetensors', 'README.md', 'unet/config.json', 'unet/model.safetensors', 'unet/model.fp16.safetensors', 'unet/model.bin',
             'tokenizer/merges.txt', 'tokenizer/spiece.model', 'safety_checker/model.safetensors']
    assert wanted(files, index, True) == ['model_index.json', 'unet/config.json', 'tokenizer/merges.txt', 'tokenizer/spiece.model', 'unet/model.fp16.safetensors']

def test_half_precision_files_are_read_and_weighed(saved, tmp_path):
    folder = tmp_path/'model'
    whole(saved('StableDiffusionPipeline')).to(torch.float16).save_pretrained(folder, variant='fp16')
    assert (folder/'unet'/'diffusion_pytorch_model.fp16.safetensors').exists()
    half, full = load_prior(folder), load_prior(saved('StableDiffusionPipeline'))
    assert half.gb['unet'] == pytest.approx(full.gb['unet'], rel=.05)
    z, step = full.to_latent(torch.rand(1, 3, 8, 8)), torch.tensor([100])
    assert half.eps(z, step, half.encode(['a hat'])).dtype == torch.float32
    assert torch.allclose(half.eps(z, step, half.encode(['a hat'])), full.eps(z, step, full.encode(['a hat'])), atol=1e-2)

def test_dtype_has_two_names(monkeypatch):
    import diffusers, transformers
    for version, name in (('0.39.0', 'torch_dtype'), ('0.40.0', 'dtype'), ('0.42.1', 'dtype')):
        monkeypatch.setattr(diffusers, '__version__', version)
        assert dtype_option(diffusers.UNet2DConditionModel, torch.float16) == {name: torch.float16}
        assert dtype_option(transformers.CLIPTextModel, torch.float16) == {'dtype': torch.float16}

def test_weights_are_counted_from_the_headers(saved):
    pipe, prior = whole(saved('StableDiffusion3Pipeline')), load_prior(saved('StableDiffusion3Pipeline'))
    for part in ('transformer', 'vae', 'text_encoder_3'):
        n = sum(p.numel() for p in {id(p): p for p in getattr(pipe, part).parameters()}.values())
        n += sum(b.numel() for name, b in getattr(pipe, part).named_buffers() if name in getattr(pipe, part).state_dict())
        assert count_weights((prior.folder/part).glob('*.safetensors')) == n == round(prior.gb[part]*1e9/4)

def damage(folder, file, how):
    path = folder/file
    if how == 'remove': path.unlink()
    if how == 'cut': path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
    if how == 'pickle': path.with_suffix('.bin').write_bytes(b'anything'); path.unlink()
    if how == 'incomplete':
        from safetensors.torch import load_file, save_file
        weights = load_file(path); weights.pop(sorted(weights)[0]); save_file(weights, path, {'format': 'pt'})

UNET, CLIP, VAE = 'unet/diffusion_pytorch_model.safetensors', 'text_encoder/model.safetensors', 'vae/diffusion_pytorch_model.safetensors'

@pytest.mark.parametrize('file, how, message', [('model_index.json', 'cut', 'model_index'), ('unet/config.json', 'remove', 'unet/config'), ('vae/config.json', 'cut', 'vae/config'),
    ('scheduler/scheduler_config.json', 'remove', 'scheduler'), (UNET, 'pickle', 'only safetensors'), (CLIP, 'pickle', 'only safetensors'), (VAE, 'remove', 'vae has no'),
    (UNET, 'cut', 'unet'), (CLIP, 'cut', 'text_encoder'), (VAE, 'incomplete', 'incomplete'), ('tokenizer/tokenizer.json', 'cut', 'tokenizer')])
def test_damaged_folders_give_one_sentence(copy, file, how, message):
    damage(copy, file, how)
    with pytest.raises(UserError, match=message) as caught:
        prior = load_prior(copy)
        cond = prior.encode(['a hat'])
        prior.eps(prior.to_latent(torch.rand(1, 3, 8, 8)), torch.tensor([10]), cond)
    assert '\n' not in str(caught.value)

def test_a_pickle_is_never_opened(copy, monkeypatch):
    damage(copy, UNET, 'pickle')
    monkeypatch.setattr(torch, 'load', lambda *a, **k: pytest.fail('torch.load was called'))
    with pytest.raises(UserError, match='pickle'): load_prior(copy)

def test_other_pipelines_and_predictions_are_refused(copy, saved):
    index = json.loads((copy/'model_index.json').read_text())
    (copy/'model_index.json').write_text(json.dumps({**index, '_class_name': 'KandinskyPipeline'}))
    with pytest.raises(UserError, match='KandinskyPipeline.*StableDiffusionPipeline'): load_prior(copy)
    (copy/'model_index.json').write_text('[]')
    with pytest.raises(UserError, match='adapters'): load_prior(copy)
    (copy/'model_index.json').write_text(json.dumps(index))
    config = json.loads((copy/'scheduler'/'scheduler_config.json').read_text())
    (copy/'scheduler'/'scheduler_config.json').write_text(json.dumps({**config, 'prediction_type': 'flow_prediction'}))
    with pytest.raises(UserError, match='flow_prediction'): load_prior(copy)

# ---- the hub

@pytest.fixture
def offline(monkeypatch, tmp_path):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))

def test_without_a_network(offline):
    with pytest.raises(UserError, match='cannot be reached.*embedded'): load_prior('nobody/nothing')
    with pytest.raises(UserError, match='None of the 3 places.*cannot be reached'): load_prior('stable-diffusion')

def answer(error):
    "The hub's exception as its library raises it"
    from huggingface_hub import errors
    cls = getattr(errors, error)
    if not issubclass(cls, errors.HfHubHTTPError): return cls('no')
    try: return cls('no', response=http.Response(404, request=http.Request('GET', 'https://huggingface.co/x/y')))
    except TypeError: return cls('no')

@pytest.mark.parametrize('error, message', [('GatedRepoError', 'accept its licence.*hf auth login'), ('RepositoryNotFoundError', 'did you mean stable-diffusion-v1-5/stable-diffusion-v1-5'),
    ('LocalEntryNotFoundError', 'cannot be reached'), ('OfflineModeIsEnabled', 'cannot be reached'), ('EntryNotFoundError', 'no model_index.json'), ('HfHubHTTPError', 'refused')])
def test_every_answer_of_the_hub_is_one_sentence(monkeypatch, error, message):
    import huggingface_hub
    def fail(*args, **kwargs): raise answer(error)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fail)
    with pytest.raises(UserError, match=message) as caught: load_prior('stable-difusion-v1-5/stable-diffusion-v1.5')
    assert '\n' not in str(caught.value)

def test_the_ids_of_a_family_are_tried_in_order(monkeypatch, saved):
    import huggingface_hub
    tried, folder = [], saved('StableDiffusionPipeline')
    def first(name, file, **kwargs):
        tried.append(name)
        if len(tried) < 3: raise answer('RepositoryNotFoundError')
        return str(folder/file)
    class Api:
        def list_repo_files(self, name): return [str(f.relative_to(folder)) for f in folder.rglob('*') if f.is_file()]
    def snapshot(name, allow_patterns=None, **kwargs): tried.append(allow_patterns); return str(folder)
    for k, v in dict(hf_hub_download=first, HfApi=Api, snapshot_download=snapshot).items(): monkeypatch.setattr(huggingface_hub, k, v)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    prior = load_prior('stable-diffusion')
    assert tuple(tried[:3]) == KNOWN['stable-diffusion'].ids and UNET in tried[3] and len(tried) == 4
    assert prior.name == 'stable-diffusion' and prior.encode(['a hat']).shape == (1, 77, 32)

def test_a_full_disk_and_a_damaged_index(monkeypatch, tmp_path):
    import huggingface_hub
    def full(*a, **k): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', full)
    with pytest.raises(UserError, match='no room for x/y.*HF_HOME'): load_prior('x/y')
    (tmp_path/'index').write_text('{"_class')
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda *a, **k: str(tmp_path/'index'))
    with pytest.raises(UserError, match='model_index.json of x/y is damaged'): load_prior('x/y')

class Listing:
    "A hub that only lists files"
    def __init__(self, files): self.files = files
    def __call__(self): return self
    def list_repo_files(self, name): return self.files

def test_pickles_are_refused_before_anything_is_fetched(monkeypatch, saved):
    import huggingface_hub
    folder = saved('StableDiffusionPipeline')
    files = [str(f.relative_to(folder)) for f in folder.rglob('*') if f.is_file()]
    for k, v in dict(hf_hub_download=lambda *a, **k: str(folder/'model_index.json'), HfApi=Listing([f.replace(UNET, 'unet/model.bin') for f in files]),
                     snapshot_download=lambda *a, **k: pytest.fail('something was fetched')).items(): monkeypatch.setattr(huggingface_hub, k, v)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    with pytest.raises(UserError, match='unet of x/y is pickled'): load_prior('x/y')

def test_pickles_of_parts_that_nobody_reads_are_no_reason(monkeypatch, saved, tmp_path):
    import huggingface_hub
    folder, fetched = saved('StableDiffusionPipeline'), []
    files = [str(f.relative_to(folder)) for f in folder.rglob('*') if f.is_file()]
    index = json.loads((folder/'model_index.json').read_text()) | {'safety_checker': ['s', 'S']}
    (tmp_path/'model_index.json').write_text(json.dumps(index))
    def snapshot(name, allow_patterns=None, **kwargs): fetched.extend(allow_patterns); return str(folder)
    for k, v in dict(hf_hub_download=lambda *a, **k: str(tmp_path/'model_index.json'), HfApi=Listing([*files, 'safety_checker/pytorch_model.bin']), snapshot_download=snapshot).items():
        monkeypatch.setattr(huggingface_hub, k, v)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    load_prior('x/y')
    assert UNET in fetched and not any('safety' in f for f in fetched)

def test_what_is_in_the_cache_needs_no_line(monkeypatch, saved, tmp_path):
    import huggingface_hub
    folder, asked = saved('StableDiffusionPipeline'), []
    class Down:
        def list_repo_files(self, name): raise http.ConnectError('no route')
    def snapshot(name, **options): asked.append(options); return str(folder)
    for k, v in dict(hf_hub_download=lambda *a, **k: str(folder/'model_index.json'), HfApi=Down, snapshot_download=snapshot).items(): monkeypatch.setattr(huggingface_hub, k, v)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    assert load_prior('x/y').name == 'x/y' and asked == [{'local_files_only': True}]
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *a, **k: str(tmp_path))     # only the small file had come
    with pytest.raises(UserError, match='cannot be reached'): load_prior('x/y')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='cannot be reached'): load_prior('x/y')

def test_a_budget_that_is_too_small_is_not_tried_at_three_places(monkeypatch, saved):
    fetched = []
    monkeypatch.setattr(real_priors, 'download', lambda name, *a: fetched.append(name) or saved('StableDiffusionPipeline'))
    with pytest.raises(UserError, match='budget of 1 GB is too small'): load_prior('stable-diffusion', vram=1.)
    assert fetched == ['stable-diffusion-v1-5/stable-diffusion-v1-5']

def test_names_that_nothing_has():
    assert 'stable-diffusion?' in nearest('stable-difusion') and 'sdxl' in nearest('xyzzy')
    with pytest.raises(UserError, match='did you mean sdxl'): load_prior('sdlx')
    with pytest.raises(UserError, match='no prior'): load_prior('./nowhere')

def test_cuda_where_there_is_none(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='no CUDA GPU'): load_prior(saved('IFPipeline'), 'cuda')
    with pytest.raises(UserError, match="no kind of device 'gpu'"): load_prior(saved('IFPipeline'), 'gpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(UserError, match='no cuda:5: the GPUs here are cuda:0 to cuda:1'): load_prior(saved('IFPipeline'), 'cuda:5')

def test_a_package_that_is_not_there(saved, monkeypatch):
    import diffusers
    def fail(*a, **k): raise ImportError('T5Tokenizer requires the SentencePiece library\nbut it was not found')
    monkeypatch.setattr(diffusers.IFPipeline, 'from_pretrained', fail)
    with pytest.raises(UserError, match='needs a package.*SentencePiece library$'): load_prior(saved('IFPipeline')).encode(['a hat'])

@pytest.mark.parametrize('why', ['', 'raise OSError("Could not find compatible tinycudann extension for compute capability 61.")'])
def test_a_broken_tinycudann_is_as_good_as_none(tmp_path, monkeypatch, why):
    from dreamfusion_nb.grids import fast_grid
    if why: (tmp_path/'tinycudann.py').write_text(why); monkeypatch.syspath_prepend(tmp_path)
    else: monkeypatch.setitem(sys.modules, 'tinycudann', None)
    fast_grid.cache_clear()
    assert fast_grid(otype='HashGrid') is None
    fast_grid.cache_clear()

@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory'), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_full_memory_is_one_sentence_with_numbers(saved, monkeypatch, error):
    prior = load_prior(saved('StableDiffusionPipeline'))
    cond, z = prior.encode(['a hat']), prior.to_latent(torch.rand(1, 3, 8, 8))
    def fail(*args): raise error
    monkeypatch.setattr(prior, 'predict', fail)
    with pytest.raises(UserError, match=r'not enough memory.*unet 0\.0.*--vram') as caught: prior.eps(z, torch.tensor([1]), cond)
    assert '\n' not in str(caught.value)
    monkeypatch.setattr(prior, 'predict', lambda *a: (_ for _ in ()).throw(RuntimeError('shapes differ')))
    with pytest.raises(RuntimeError, match='shapes'): prior.eps(z, torch.tensor([1]), cond)
