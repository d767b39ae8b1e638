"Every family of borrowed priors, on small random models of the very same classes; what the hub and the disk can answer"
import gc, json, shutil, weakref
from functools import partial
from pathlib import Path
import httpx
import pytest
import torch
from dreamfusion_nb import real_priors as module, runs
from dreamfusion_nb.generate import Settings, generate, look
from dreamfusion_nb.prior import at, guided_eps, load_prior, sample, words
from dreamfusion_nb.real_priors import FAMILIES, KNOWN, Plan, borrow, dtype_option, nearest, pack, plan_memory, random_pipeline, unpack, wanted, weight_files
from dreamfusion_nb.sds import sds_grad
from dreamfusion_nb.utils import UserError, seeded

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
    elif family != 'IFPipeline': pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    if family.startswith('PixArt'): more = dict(clean_caption=False, use_resolution_binning=False)
    if family == 'IFPipeline': more = dict(clean_caption=False)
    take = pipe.scheduler.step
    def listen(out, t, sample, *args, **kwargs): heard.append((out, t, sample)); return take(out, t, sample, *args, **kwargs)
    pipe.scheduler.step = listen
    pipe('a red mug', guidance_scale=5., num_inference_steps=1 if 'sigmas' in more else 2, output_type='pt' if family == 'IFPipeline' else 'latent', generator=seeded(2), **more)
    out, t, z = heard[-1]
    step = torch.tensor([int(t)])
    cond, uncond = prior.encode(['a red mug']), prior.encode([''])
    a, s = prior.alpha_t[step].view(1, 1, 1, 1), prior.sigma_t[step].view(1, 1, 1, 1)
    if family == 'StableDiffusion3Pipeline': z, expected = z*(a + s), z + a/(a + s)*out
    elif options: expected = a*out + s*z
    else: expected = out[:, :z.shape[1]]
    assert torch.allclose(guided_eps(prior, z, step, cond, uncond, 4.), expected, atol=1e-4)
    assert not torch.allclose(guided_eps(prior, z, step, cond, uncond, 5.), expected, atol=1e-4)

@pytest.mark.parametrize('family', ['StableDiffusionXLPipeline', 'IFPipeline', 'PixArtAlphaPipeline', 'StableDiffusion3Pipeline'])
def test_two_runs_agree_and_seeds_differ(saved, family):
    settings = Settings(steps=3, samples=8, sizes=((0., 8),), field='mlp')
    def run(seed):
        with torch.random.fork_rng():                                       # nothing may depend on the global generator
            torch.manual_seed(int(torch.randint(1000, (1,))))
            return generate('a red mug', str(saved(family)), settings, seed).field.state_dict()
    one, two, other = run(0), run(0), run(1)
    assert all(torch.equal(one[k], two[k]) for k in one) and any(not torch.equal(one[k], other[k]) for k in one)

@pytest.mark.parametrize('family, options', CASES)
def test_a_short_run_ends_with_all_outputs(saved, tmp_path, monkeypatch, family, options):
    for name, small in (('turntable', partial(runs.turntable, frames=2, size=8)), ('views_sheet', partial(runs.views_sheet, size=8)), ('write_results', partial(runs.write_results, mesh_resolution=24)),
                        ('look', lambda scene, cameras, *_: look(scene, cameras, 8, 8)), ('write_preview', lambda dream, path: path.write_bytes(b''))):
        monkeypatch.setattr(runs, name, small)                              # the outputs themselves are the business of test_generate
    # small steps: an untrained model's noise would fill the whole scene in three of the usual ones
    out = runs.generate_run('a corgi in a top hat', tmp_path/'run', str(saved(family, **options)), steps=3, samples=8, sizes=((0., 8),), field='mlp', lr=.005, device='cpu', progress=False, vram=4.)
    names = {f.name for f in out.iterdir()}
    assert {'run.json', 'scene.safetensors', 'log.csv', 'views.png', 'turntable.gif', 'mesh.glb'} <= names
    assert json.loads((out/'run.json').read_text())['prompt'] == 'a corgi in a top hat'

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

def test_the_text_encoder_is_read_once_and_gone_before_the_denoiser_comes(saved, monkeypatch):
    prior, loaded, alive = load_prior(saved('StableDiffusionXLPipeline')), [], {}
    load = module.RealPrior.load
    def spy(self, part, cls, dtype):
        gc.collect()
        loaded.append((part, [k for k, r in alive.items() if r() is not None]))
        net = load(self, part, cls, dtype)
        alive[part] = weakref.ref(net)
        return net
    monkeypatch.setattr(module.RealPrior, 'load', spy)
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
    module.visit(two.net, lambda t: weights.get(t.data_ptr(), t))
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
    try: return cls('no', response=httpx.Response(404, request=httpx.Request('GET', 'https://huggingface.co/x/y')))
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

def test_names_that_nothing_has():
    assert 'stable-diffusion?' in nearest('stable-difusion') and 'sdxl' in nearest('xyzzy')
    with pytest.raises(UserError, match='did you mean sdxl'): load_prior('sdlx')
    with pytest.raises(UserError, match='no prior'): load_prior('./nowhere')

def test_cuda_where_there_is_none(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='no CUDA GPU'): load_prior(saved('IFPipeline'), 'cuda')

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
