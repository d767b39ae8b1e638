"Dull checks of the prior: shapes, bad input, damaged files, kinds of prediction"
import shutil, subprocess, sys
from pathlib import Path
import pytest
import torch
from dreamfusion_nb import prior as module
from dreamfusion_nb.diffusion import (GaussianMixturePrior, add_noise, at, cosine_schedule, ddim, eps_from_v, eps_from_x, guided, guided_eps, to_v,
                                      x_from_eps)
from dreamfusion_nb.prior import PixelPrior, check_prompt, load_prior, prior_folder, sample, words
from dreamfusion_nb.utils import UserError, seeded

def parts(prediction='sample'):
    "The four parts of a very small prior with random weights"
    from diffusers import DDPMScheduler, SD3Transformer2DModel
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
    vocabulary = '<pad> <unk> <bos> <eos> a red blue mug chair front view ,'.split()
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token='<unk>'))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing('<bos> $A <eos>', special_tokens=[('<bos>', 2), ('<eos>', 3)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', unk_token='<unk>', bos_token='<bos>', eos_token='<eos>',
                                        model_max_length=16)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                                num_attention_heads=2, max_position_embeddings=16, pad_token_id=0, bos_token_id=2, eos_token_id=3))
    transformer = SD3Transformer2DModel(sample_size=16, patch_size=8, in_channels=3, out_channels=3, num_layers=1, attention_head_dim=8, num_attention_heads=2,
                                        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=2)
    scheduler = DDPMScheduler(1000, beta_schedule='squaredcos_cap_v2', prediction_type=prediction)
    return transformer.eval(), text_encoder.eval(), tokenizer, scheduler

@pytest.fixture(scope='module')
def prior(): return PixelPrior(*parts())

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prior')
    transformer, text_encoder, tokenizer, scheduler = parts()
    for part, name in ((transformer.half(), 'transformer'), (text_encoder.half(), 'text_encoder'), (tokenizer, 'tokenizer'), (scheduler, 'scheduler')):
        part.save_pretrained(folder/name)
    return folder

def test_conversions_invert_each_other():
    alpha_t, sigma_t = (v.double() for v in cosine_schedule())
    x, noise = torch.randn(5, 2, 3, dtype=torch.double), torch.randn(5, 2, 3, dtype=torch.double)
    step = torch.tensor([0, 10, 500, 800, 998])
    a, s = at(alpha_t, step, x), at(sigma_t, step, x)
    assert a.shape == (5, 1, 1) and a.dtype == torch.double
    z_t = add_noise(x, noise, a, s)
    assert torch.allclose(eps_from_v(to_v(x, noise, a, s), z_t, a, s), noise, atol=1e-6)   # the schedule itself is float32
    assert torch.allclose(eps_from_x(x, z_t, a, s), noise, atol=1e-9)
    assert torch.allclose(x_from_eps(noise, z_t, a, s), x, atol=1e-9)

def test_guidance_is_affine():
    c, u = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(guided(c, u, 5.), 6*c - 5*u, atol=1e-5)

def test_latents_are_pixels_in_both_directions(prior):
    image = torch.rand(2, 3, 16, 16)
    assert prior.to_latent(image).min() < 0 and torch.allclose(prior.from_latent(prior.to_latent(image)), image, atol=1e-6)

def test_encode_has_one_shape_for_all_prompts(prior):
    assert prior.encode(['', 'a red mug', 'a '*40]).shape == (3, 16, 16)
    assert torch.equal(prior.encode(['A RED mug']), prior.encode(['a red mug']))
    assert torch.equal(prior.encode(['a red mug!']), prior.encode(['a red mug']))
    assert not torch.equal(prior.encode(['a red mug']), prior.encode(['a blue mug']))

def test_encode_and_predict_can_be_trained_through_and_eps_not(prior):
    cond = prior.encode(['a red mug'])
    z, step = torch.randn(1, 3, 16, 16), torch.tensor([300])
    assert cond.requires_grad and prior.predict(z, step, cond).requires_grad and not prior.eps(z, step, cond).requires_grad

def test_kinds_of_prediction(prior):
    z, step, cond = torch.randn(2, 3, 16, 16), torch.tensor([30, 700]), prior.encode(['a red mug', ''])
    out, a, s = prior.predict(z, step, cond), at(prior.alpha_t, step, z), at(prior.sigma_t, step, z)
    def eps(kind): return PixelPrior(prior.transformer, prior.text_encoder, prior.tokenizer, parts(kind)[3]).eps(z, step, cond)
    assert torch.allclose(eps('epsilon'), out, atol=1e-6)
    assert torch.allclose(eps('v_prediction'), a*out + s*z, atol=1e-6)
    assert torch.allclose(x_from_eps(eps('sample'), z, a, s), out, atol=1e-4)
    with pytest.raises(UserError, match='flow'): eps('flow')

def test_a_guidance_pair_is_one_network_call(prior):
    calls, eps = [], prior.eps
    class Counting:
        def eps(self, z_t, step, cond): calls.append(len(z_t)); return eps(z_t, step, cond)
    z, step = torch.randn(2, 3, 16, 16), torch.tensor([30, 700])
    cond, uncond = prior.encode(['a red mug', 'a blue chair']), prior.encode([''])
    both = guided_eps(Counting(), z, step, cond, uncond, 3.)
    assert calls == [4]
    assert torch.allclose(both, guided(eps(z, step, cond), eps(z, step, uncond.expand_as(cond)), 3.), atol=1e-4)

def test_sample_repeats_itself_and_stays_in_range(prior):
    one, two = (sample(prior, ['a red mug'], steps=3, size=16, generator=seeded(1)) for _ in range(2))
    other = sample(prior, ['a red mug'], steps=3, size=16, generator=seeded(2))
    assert one.shape == (1, 3, 16, 16) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, two) and not torch.equal(one, other)

def test_mixture():
    toy = GaussianMixturePrior(torch.randn(3, 2), .3, names=['a', 'b', 'c'])
    assert toy.encode(['', 'b']).shape == (2, 1, 3) and toy.encode(['b'])[0, 0].tolist() == [0, 1, 0]
    with pytest.raises(UserError, match="'d'"): toy.encode(['d'])
    z = ddim(toy, torch.randn(400, 2), toy.encode(['b']).expand(400, -1, -1), toy.encode(['']), guidance=0., steps=100)
    assert torch.allclose(z.mean(0), toy.means[1], atol=.08) and abs(z.std(0).mean() - .3) < .04

def test_fresh_noise_and_early_steps():
    toy = GaussianMixturePrior(torch.tensor([[-1., 0.], [1., 0.]]), .2, names=['a', 'b'])
    start, cond, seen = torch.randn(3000, 2, generator=seeded(0)), toy.encode(['']).expand(3000, -1, -1), []
    def sampled(seed=1, **options): return ddim(toy, start, cond, cond[:1], guidance=0., steps=150, generator=seeded(seed), **options)
    plain, once = sampled(), sampled(fresh=1.)
    assert torch.equal(once, sampled(fresh=1.)) and torch.equal(plain, sampled(seed=2)) and not torch.equal(once, sampled(seed=2, fresh=1.))
    for x in (plain, once, sampled(fresh=.5, early=.5)):                    # all of them end at the same distribution
        right = x[:, 0] > 0
        assert abs(right.float().mean() - .5) < .04 and abs(x[right].mean(0)[0] - 1) < .03 and abs(x[right].std(0).mean() - .2) < .02
    eps = toy.eps
    toy.eps = lambda z, step, cond: seen.append(step[0].item()) or eps(z, step, cond)
    sampled(early=2/3)
    assert len(seen) == 150 and seen[0] == 999 and seen[-1] == 0 and sum(t > 849 for t in seen) == 100 and seen == sorted(set(seen), reverse=True)

def test_fresh_noise_is_that_of_ddpm():
    "One step from 700 to 699, against the scheduler of diffusers"
    from diffusers import DDPMScheduler
    class Still:
        alpha_t, sigma_t = cosine_schedule()
        def eps(self, z_t, step, cond):
            if step[0] == 699: self.at_699 = z_t[:len(z_t)//2].clone()
            return z_t*.1
    prior, cond = Still(), torch.zeros(5000, 1, 1)
    prior.alpha_t, prior.sigma_t = prior.alpha_t[:701], prior.sigma_t[:701]
    ddim(prior, torch.ones(5000, 1), cond, cond[:1], steps=701, fresh=1., generator=seeded(0))
    want = DDPMScheduler(num_train_timesteps=1000, beta_schedule='squaredcos_cap_v2')._get_variance(700).sqrt().item()
    assert prior.at_699.std().item() == pytest.approx(want, rel=.03)

def test_words_and_check_prompt(prior):
    assert words(prior) == ['a', 'blue', 'chair', 'front', 'mug', 'red', 'view']
    assert words(GaussianMixturePrior(torch.zeros(1, 2), 1.)) == []
    assert check_prompt(prior, '  A  Red mug, front view ') == 'A Red mug, front view'
    assert check_prompt(GaussianMixturePrior(torch.zeros(1, 2), 1.), 'anything goes') == 'anything goes'
    for prompt, message in (('', 'empty'), (' \n', 'empty'), ('...', 'empty'), ('a red mgu', "'mgu'.*mug.*dreamfusion words"), ('a red dragon', 'dragon'), ('a '*12, '12 words')):
        with pytest.raises(UserError, match=message): check_prompt(prior, prompt)

def test_loading_is_silent(saved):
    told = subprocess.run([sys.executable, '-c', f'from dreamfusion_nb.prior import load_prior; load_prior({str(saved)!r})'], capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stdout, told.stderr) == (0, '', '')      # no bars, no advice

def test_load_prior(saved):
    prior = load_prior(saved)
    assert prior.transformer.dtype == prior.text_encoder.dtype == torch.float32
    assert not any(p.requires_grad for p in prior.transformer.parameters()) and not prior.transformer.training
    assert torch.allclose(prior.encode(['a red mug']), PixelPrior(*parts()).encode(['a red mug']), atol=1e-2)   # saved in half precision

def test_load_prior_says_what_is_wrong(saved, tmp_path, monkeypatch):
    for name, message in (('./nowhere', 'no prior'), (tmp_path, 'transformer')):
        with pytest.raises(UserError, match=message): load_prior(name)
    monkeypatch.setattr(module.dreamfusion_nb, '__file__', str(tmp_path/'__init__.py'))
    with pytest.raises(UserError, match='install'): load_prior()

@pytest.mark.parametrize('file, damage', [('transformer/diffusion_pytorch_model.safetensors', 'cut'), ('text_encoder/model.safetensors', 'cut'),
    ('text_encoder/model.safetensors', 'remove'), ('transformer/diffusion_pytorch_model.safetensors', 'remove'), ('transformer/config.json', 'cut'),
    ('tokenizer/tokenizer.json', 'cut'), ('scheduler/scheduler_config.json', 'remove'),
    ('transformer/diffusion_pytorch_model.safetensors', 'incomplete'), ('text_encoder/model.safetensors', 'incomplete')])
def test_damaged_files_give_one_sentence(saved, tmp_path, file, damage):
    folder = tmp_path/'prior'
    shutil.copytree(saved, folder)
    path = folder/file
    if damage == 'cut': path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
    if damage == 'remove': path.unlink()
    if damage == 'incomplete':
        from safetensors.torch import load_file, save_file
        weights = load_file(path); weights.pop(sorted(weights)[0]); save_file(weights, path, {'format': 'pt'})
    with pytest.raises(UserError, match=file.split('/')[0]) as caught: load_prior(folder)
    assert '\n' not in str(caught.value)

def test_the_embedded_prior_reads_the_whole_world():
    from dreamfusion_nb.shapeworld import COLOURS, OBJECTS, PATTERNS, SYNONYMS
    embedded = load_prior()
    assert {*COLOURS, *OBJECTS, *PATTERNS, *SYNONYMS} <= set(words(embedded))
    assert sum(f.stat().st_size for f in prior_folder('embedded').rglob('*')) < 25e6
    assert check_prompt(embedded, 'a crimson striped teapot on a blue sofa')
