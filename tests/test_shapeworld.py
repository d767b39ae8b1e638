"The captioned world: dull numbers, bad input, and the promise that training data can be made again"
import math
import pytest
import torch
import torch.nn.functional as F
from dreamfusion_nb.cameras import POSES, VIEWS, camera_rays, orbit, pose_index
from dreamfusion_nb.shading import Light
from dreamfusion_nb.shapeworld import (COLOURS, OBJECTS, OWN, PATTERNS, SHADED, SYNONYMS, arranged, as_field, ball, box, caption, compose, distance,
                                       held_out, joined, layer_batch, pair_caption, painted, part_distances, parts_of, pick, random_prompts, reach,
                                       render_layers, sample_backgrounds, sample_pictures, sample_world_cameras, sample_world_light, second_tone,
                                       surface_normals, to_touch, trace, ways)
from dreamfusion_nb.utils import UserError, seeded

MUG_MEANS = [[82.06, 0., 0., 0., 105.81, 45.16, 20.07, 40.19], [65.10, 0., 0., 0., 111.01, 38.89, 13.07, 30.93]] # of the pictures that `train` starts from
PAIR_MEANS = [[69.25, 0., 0., 0., 91.88, 31.54], [65.51, 0., 0., 0., 97.17, 26.28]]                             # the mug on the table
PAIR = 'mug', 'on', 'table'

def points(n, seed=0, size=1.): return (2*torch.rand(n, 3, generator=seeded(seed)) - 1)*size

@pytest.mark.parametrize('thing', ['duck', 'cake', PAIR])
def test_the_nearest_part_counts(thing):
    p = points(500)
    assert torch.equal(distance(thing, p), part_distances(thing, p).amin(-1)) and part_distances(thing, p).shape == (500, len(parts_of(thing)))

def test_unknown_things():
    with pytest.raises(UserError, match="'unicorn'.*mug"): distance('unicorn', points(2))
    with pytest.raises(UserError, match="'unicorn'"): distance(('mug', 'on', 'unicorn'), points(2))
    with pytest.raises(UserError, match="'under'.*next to"): layer_batch(('mug', 'under', 'table'), 1, seed=0)

def test_tracing_misses_what_is_not_there():
    t, hit = trace(ball((0, 0, 0), .1), camera_rays(orbit(0., 0.), 16))
    assert hit.any() and not hit.view(16, 16)[0].any()
    rays = camera_rays(orbit(0., 0.), 16)
    away = type(rays)(rays.ray_o, -rays.ray_d)
    assert not trace(ball((0, 0, 0), .5), away)[1].any()

def test_normals_of_a_box():
    p = torch.tensor([[.5, .1, .05], [-.1, .4, .1], [.1, 0, -.3]])
    n = surface_normals(box((0, 0, 0), (.5, .4, .3)), p)
    assert torch.allclose(n, torch.tensor([[1., 0, 0], [0, 1, 0], [0, 0, -1]]), atol=1e-3)

def test_layers_do_not_depend_on_their_company():
    cameras = sample_world_cameras(3, seeded(1))
    light = sample_world_light(cameras, seeded(2))
    together = render_layers('car', cameras, light, 16)
    one = torch.tensor([2])
    alone = render_layers('car', pick(cameras, one), pick(light, one), 16)
    assert (together[2].int() - alone[0].int()).abs().max() <= 1     # a batch may round differently
    assert together.shape == (3, 8, 16, 16) and together.dtype == torch.uint8

def test_compose_is_linear_in_the_colours():
    layers, _ = layer_batch('house', 2, seed=0, size=16)
    black, red = torch.zeros(2, 3), torch.tensor([[.85, .1, .1]]).expand(2, 3)
    nothing = compose(layers, black, black)
    assert torch.allclose(compose(layers, red, black) - nothing, layers[:, :1].float()/255*red[..., None, None], atol=1e-6)
    assert torch.allclose(compose(layers, black, red) - nothing, (1 - layers[:, 4:5].float()/255)*red[..., None, None], atol=1e-6)

def test_ambient_light_is_flat():
    flat = Light(torch.tensor([[0., 0, 3]]), torch.zeros(1), torch.ones(1))
    layers = render_layers('cube', orbit(torch.tensor([30.]), torch.tensor([20.])), flat, 32)
    assert torch.equal(layers[:, 0], layers[:, 4])                   # shading 1 wherever there is something

def test_the_hollow_of_the_mug_lies_in_the_shade():
    flat = Light(torch.tensor([[0., 3, 0]]), torch.zeros(1), torch.ones(1))
    layers = render_layers('mug', orbit(torch.tensor([0.]), torch.tensor([89.])), flat, 32).float()/255
    share = layers[0, 0][layers[0, 4] == 1]
    assert share[share < .9].numel() > 40 and abs(share.min() - SHADED) < .01 and share.max() == OWN
    side = render_layers('mug', orbit(torch.tensor([0.]), torch.tensor([0.])), flat, 32)
    assert torch.equal(side[:, 0], side[:, 4])                       # from the side nobody sees it

def test_training_data_can_be_made_again():
    layers, views = layer_batch('mug', 2, seed=10)
    assert layers.shape == (2, 8, 64, 64) and views.tolist() == [0, 8]
    sums = layers.double().mean((-1, -2))
    assert torch.allclose(sums, torch.tensor(MUG_MEANS).double(), atol=.05), sums   # not bit by bit: other machines round otherwise
    again, _ = layer_batch('mug', 2, seed=10)
    assert torch.equal(layers, again)
    pair, _ = layer_batch(PAIR, 2, seed=10)
    assert pair.shape == (2, 6, 64, 64) and torch.allclose(pair.double().mean((-1, -2)), torch.tensor(PAIR_MEANS).double(), atol=.05)

def test_cameras_lights_and_backgrounds():
    cameras = sample_world_cameras(500, seeded(0))
    d = cameras.position.norm(dim=-1)
    assert d.min() > 2.1 and d.max() < 2.9 and cameras.elevation.min() > -16 and cameras.elevation.max() < 90
    assert set(pose_index(cameras.azimuth, cameras.elevation).tolist()) == set(range(24))
    light = sample_world_light(cameras, seeded(1))
    assert torch.allclose(light.ambient + light.diffuse, torch.ones(500))
    assert abs((light.ambient == 1).float().mean() - .25) < .06
    assert ((light.ambient == 1) | ((light.ambient >= .25) & (light.ambient <= .5))).all()
    background = sample_backgrounds(4000, seeded(2))
    assert background.shape == (4000, 3) and background.min() >= 0 and background.max() <= 1
    assert abs(background.mean() - .575) < .01 and abs((background[:, 0] - background[:, 1]).std() - .05*2**.5) < .005

def test_captions():
    assert caption('mug', 'red') == 'a red mug' and caption('ball', 'orange', 'overhead') == 'an orange ball, overhead view'
    assert caption('car', 'blue', 'low front left') == 'a blue car, low front left view' and caption('cat', 'gray', None, 'spotted') == 'a gray spotted cat'
    assert pair_caption('cat', 'red', 'next to', 'hat', 'orange', 'back') == 'a red cat next to an orange hat, back view'

@pytest.mark.parametrize('bad', [('unicorn', 'red'), ('mug', 'beige'), ('mug', 'red', 'bottom'), ('mug', 'red', 'front', 'plaid')])
def test_unknown_words(bad):
    with pytest.raises(UserError, match=bad[0] if bad[0] == 'unicorn' else bad[-1]): caption(*bad)

def test_unknown_words_of_pairs():
    with pytest.raises(UserError, match='under'): pair_caption('mug', 'red', 'under', 'table', 'blue')
    with pytest.raises(UserError, match='beige'): pair_caption('mug', 'red', 'on', 'table', 'beige')
    with pytest.raises(UserError, match='unicorn'): pair_caption('mug', 'red', 'on', 'unicorn', 'blue')

def test_every_caption_is_read_back():
    every = {caption(n, c, v, p): (n, c, v, p) for n in OBJECTS for c in COLOURS for v in (None, *VIEWS) for p in (None, *PATTERNS)}
    assert len(every) == 36*12*5*4                                   # no two say the same
    for text, (name, colour, view, pattern) in every.items():
        said, _, seen = text.partition(', ')
        article, first, *middle, last = said.split()
        assert (first, last, middle, seen) == (colour, name, [pattern] if pattern else [], f'{view} view' if view else '') and article in ('a', 'an')

def test_synonyms():
    words = [*OBJECTS, *COLOURS, *PATTERNS]
    assert set(SYNONYMS.values()) <= set(words) and not set(SYNONYMS) & set(words)
    assert all(ways(word)[0] == word for word in words) and ways('mug') == ['mug', 'cup'] and ways('duck') == ['duck']
    assert all(way == word or SYNONYMS[way] == word for word in words for way in ways(word))

def test_a_fifth_is_held_out():
    held = torch.tensor([[held_out(name, word) for word in (*COLOURS, *PATTERNS)] for name in OBJECTS])
    assert held.sum() == 108 and held.numel() == 540
    assert set((~held[:, :12]).sum(1).tolist()) == {9, 10} and set((~held[:, 12:]).sum(1).tolist()) == {2, 3} and set((~held).sum(0).tolist()) == {28, 29}
    assert [w for w in (*COLOURS, *PATTERNS) if held_out('mug', w)] == ['orange', 'pink', 'turquoise'] # must not change: released weights were trained without them
    with pytest.raises(UserError, match='beige'): held_out('mug', 'beige')
    with pytest.raises(UserError, match='unicorn'): held_out('unicorn', 'red')

def test_patterns():
    p = torch.tensor([[0., 0, 0], [0, .17, 0], [0, .34, 0], [.32, 0, 0], [.32, 0, .32], [.19, .38, .19], [0, .38, 0]])
    stripes, spots, checks = painted(p).T
    assert stripes.tolist() == [False, True, False, False, False, False, False]
    assert checks.tolist()[3:5] == [True, False] and not checks[0]
    assert spots.tolist()[0] and spots[5] and not spots[6]           # every other layer is shifted by half a cell
    assert painted(p.reshape(7, 1, 3)).shape == (7, 1, 3)
    table = torch.tensor(list(COLOURS.values()))
    tone = second_tone(table)
    assert tone.min() >= 0 and tone.max() <= 1 and (tone - table).norm(dim=-1).min() > .3
    assert torch.equal(second_tone(table[3]), tone[3])

def test_second_colours():
    for thing in ('car', PAIR):
        layers, _ = layer_batch(thing, 2, seed=1, size=16)
        red, blue, grey = (torch.tensor([c]).expand(2, 3) for c in (COLOURS['red'], COLOURS['blue'], (.5, .5, .5)))
        plain = compose(layers, red, grey)
        assert torch.equal(compose(layers, red, grey, red), plain)   # the same colour twice is none
        for k in range(layers.shape[1] - 5):
            one = compose(layers, red, grey, blue, k)
            assert torch.equal(compose(layers, red, grey, blue, torch.tensor([k, k])), one)
            assert torch.allclose(one - plain, layers[:, 5 + k, None].float()/255*(blue - red)[..., None, None], atol=1e-6)
            assert (layers[:, 5 + k] <= layers[:, 0]).all() and layers[:, 5 + k].any()
    mixed = compose(layer_batch('car', 2, seed=1, size=16)[0], red, grey, blue, torch.tensor([0, 2]))
    assert torch.equal(mixed[1], compose(layer_batch('car', 2, seed=1, size=16)[0], red, grey, blue, 2)[1])

def test_reach_and_touch():
    for axis in range(3):
        for side in (-1, 1):
            met = reach(ball((.1, .1, .1), .5), axis, side)
            assert met.shape == (48*48,) and abs(side*met[met.isfinite()].mul(side).max().item() - (.1 + .5*side)) < .01
            assert (met[~met.isfinite()]*side < 0).all()
    h, R, r = .4, .5, .3
    assert abs(to_touch(ball((h, 0, 0), r), ball((0, 0, 0), R), 1, 1) - math.sqrt((R + r)**2 - h**2)) < .015  # no line need hit the point of contact
    assert abs(to_touch(box((0, .2, 0), (.3, .3, .3)), box((0, 0, 0), (.4, .4, .4)), 0, -1) + .7) < .01
    assert to_touch(ball((3., 0, 0), .1), ball((0, 0, 0), R), 1, 1) == -math.inf

@pytest.mark.parametrize('pair', [PAIR, ('ball', 'next to', 'cube'), ('apple', 'on', 'cake')])
def test_pairs_touch_and_fit(pair):
    parts, n, p = parts_of(pair), len(OBJECTS[pair[0]]), points(60_000)
    first, second = joined(parts[:n])(p), joined(parts[n:])(p)
    assert (first < 0).any() and (second < 0).any() and len(parts) == n + len(OBJECTS[pair[2]])
    deep = torch.maximum(first, second).min()
    assert -.06 < deep < .02                                         # a random point is at most about .02 from the place of contact
    middle = [p[d < 0].mean(0) for d in (first, second)]
    assert middle[0][1] > middle[1][1] + .2 if pair[1] == 'on' else middle[0][0] < middle[1][0] - .2
    if pair[1] == 'next to': assert abs(p[first < 0][:, 1].min() - p[second < 0][:, 1].min()) < .05            # on one floor
    assert distance(pair, F.normalize(points(4000, 3), dim=-1)*1.05).min() > 0
    assert arranged(*pair) is arranged(*pair)                        # remembered

@pytest.mark.parametrize('thing,pattern,second', [('mug', 'striped', None), ('duck', 'spotted', None), (PAIR, None, 'pink')])
def test_pictures_and_fields_agree(thing, pattern, second):
    cameras = orbit(torch.tensor([35.]), torch.tensor([20.]))
    flat, rays, own = Light(torch.tensor([[0., 0, 3]]), torch.zeros(1), torch.ones(1)), camera_rays(cameras, 24), torch.tensor([COLOURS['green']])
    t, hit = trace(lambda p: distance(thing, p), rays)
    p = (rays.ray_o.reshape(-1, 3) + t[:, None]*rays.ray_d.reshape(-1, 3))[hit]
    _, albedo = as_field(thing, 'green', pattern=pattern, second=second)(p)
    other = torch.tensor([COLOURS[second]]) if second else second_tone(own)
    picture = compose(render_layers(thing, cameras, flat, 24, 1), own, torch.zeros(1, 3), other, PATTERNS.index(pattern) if pattern else 0)
    assert (picture[0].reshape(3, -1).T[hit] - albedo).abs().max() < 2/255

def test_sample_pictures():
    pictures, captions = sample_pictures(5, seed=1, size=16)
    assert pictures.shape == (5, 3, 16, 16) and len(captions) == 5 and pictures.dtype == torch.float32
    again, same = sample_pictures(5, seed=1, size=16)
    assert torch.equal(pictures, again) and captions == same
    assert sample_pictures(5, seed=2, size=16)[1] != captions
    for text in captions:
        said, view = text.split(', ')
        words = said.split()
        assert words[1] in COLOURS and words[-1] in OBJECTS and words[2:-1] in ([], *([p] for p in PATTERNS)) and view.removesuffix(' view') in POSES
    assert any(p in text for text in sample_pictures(12, seed=1, size=8)[1] for p in PATTERNS)
    with pytest.raises(UserError, match='n >= 1'): sample_pictures(0, seed=0)

def test_random_prompts():
    assert len(set(random_prompts(40, seed=0))) == 40 and random_prompts(5, 1) == random_prompts(5, 1) != random_prompts(5, 2)
    assert random_prompts(0, 0) == [] and len(random_prompts(len(OBJECTS)*len(COLOURS), 0)) == 432
    with pytest.raises(UserError, match='432'): random_prompts(433, 0)

@pytest.mark.parametrize('name', ['ball', 'car'])
def test_as_field(name):
    p = points(2000)
    density, albedo = as_field(name, 'pink', plateau=50., edge=.01)(p)
    assert density.shape == (2000,) and albedo.shape == (2000, 3)
    assert torch.equal(density > 25, distance(name, p) < 0) and density.max() <= 50
    own = torch.tensor(COLOURS['pink'])
    allowed = torch.stack([torch.tensor(c) if isinstance(c, tuple) else c*own for _, c in OBJECTS[name]])
    assert (torch.cdist(albedo, allowed).amin(1) < 1e-6).all()

def test_as_field_wants_known_words():
    for bad in (dict(colour='beige'), dict(colour='red', second='beige'), dict(colour='red', pattern='beige')):
        with pytest.raises(UserError, match='beige'): as_field('mug', **bad)
