"The marks: a true shape gets full ones, what is wrong costs the mark that it should, and what cannot be judged says so"
import pytest
import torch
from functools import partial
from dreamfusion_nb.cameras import orbit
from dreamfusion_nb.evaluate import (Judge, Placement, TrueField, best_placement, chamfer, colour_accuracy, colour_difference, faces, facing, floaters, fog, hits, inside, iou,
                                     judged_pictures, load_judge, marks, meaning, plain, seen_sides, side_marks, spread_points, surface_points, true_mesh, true_pictures, true_scene)
from dreamfusion_nb.generate import Scene, Settings, lamp_by, look
from dreamfusion_nb.mesh import Mesh, extract_mesh
from dreamfusion_nb.shapeworld import as_field, ball, box, cut, distance
from dreamfusion_nb.utils import UserError, seeded

def solid(shape): return extract_mesh(lambda x: (100*torch.sigmoid(-shape(x)/.01), torch.ones_like(x)), 64, threshold=50.)

def test_iou():
    a, b = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert iou(a, b) == iou(b, a) == pytest.approx(1/3) and iou(a, a) == 1 and iou(a & b, ~a & ~b) == 0
    assert iou(torch.zeros(3).bool(), torch.zeros(3).bool()) == 0

def test_spread_points():
    p = spread_points(8, 2.)
    assert p.shape == (512, 3) and torch.equal(p, spread_points(8, 2.)) and not torch.equal(p, spread_points(8, 2., seed=1))
    cells = ((p + 2)/.5).floor().long()
    assert len(cells.unique(dim=0)) == 512 and cells.min() == 0 and cells.max() == 7        # one in each cell

@pytest.mark.parametrize('shape', [box((.1, 0, 0), (.5, .3, .2)), cut(ball((0, 0, 0), .7), ball((0, .5, 0), .5))], ids=['box', 'bowl'])
def test_inside(shape):
    p = spread_points(24)
    assert ((shape(p) < 0) != inside(solid(shape), p)).float().mean() < .002
    corners = 5*torch.tensor([[x, y, z] for x in (-1., 1) for y in (-1., 1) for z in (-1., 1)])
    assert not inside(solid(shape), corners).any()

def test_placement():
    there, p = Placement(-70., 1.3, torch.tensor([.2, -.1, .4])), torch.randn(20, 3, generator=seeded(0))
    assert torch.allclose(there.undo(there.place(p)), p, atol=1e-5)
    assert torch.allclose((there.place(p[0]) - there.place(p[1])).norm(), 1.3*(p[0] - p[1]).norm())
    assert torch.equal(there.place(p)[:, 1], 1.3*p[:, 1] - .1)                              # upright stays upright

def test_best_placement_finds_a_turned_chair():
    there, mesh = Placement(200., .7, torch.tensor([-.1, .1, .05])), true_mesh('chair')
    found, agreement = best_placement(Mesh(there.place(mesh.vertices), mesh.faces, mesh.colours), partial(distance, 'chair'))
    assert agreement > .93 and abs(found.yaw - 200) < 3 and abs(found.scale - .7) < .02 and (found.shift - there.shift).norm() < .03

def test_a_shape_that_holds_no_point_cannot_be_placed():
    with pytest.raises(UserError, match='too thin'): best_placement(solid(ball((0, 0, 0), .04)), ball((0, 0, 0), .04), points=4)

def test_chamfer():
    a = torch.tensor([[0., 0, 0], [1., 0, 0]])
    assert chamfer(a, a) == 0 and chamfer(a, a[:1]) == chamfer(a[:1], a) == .25              # one way (0 + 1)/2, the other 0
    points = surface_points(solid(ball((0, 0, 0), .6)), 2000)
    assert points.shape == (2000, 3) and (points.norm(dim=-1) - .6).abs().max() < .01 and points.mean(0).norm() < .05

def test_colour_difference():
    a = torch.rand(50, 3, generator=seeded(0))
    assert (colour_difference(a, a) == 0).all() and torch.allclose(colour_difference(a, 1 - a), colour_difference(1 - a, a))

def test_colours_are_judged_where_they_are():
    still, house = Placement(0., 1., torch.zeros(3)), true_mesh('house', 'blue')
    assert colour_accuracy(house, house, still) == 0
    assert colour_accuracy(Mesh(house.vertices, house.faces, house.colours.flip(1)), house, still) > 5

def test_floaters_and_bubbles():
    bubble = cut(ball((0, 0, 0), .6), ball((0, 0, 0), .3))
    assert floaters(solid(bubble)) == 0
    two = solid(lambda p: torch.minimum(ball((-.4, 0, 0), .4)(p), ball((.5, 0, 0), .3)(p)))
    assert floaters(two) == pytest.approx(27/(27 + 64), abs=.01)

def test_fog():
    assert fog(torch.zeros(4)) == 0 and fog(torch.ones(4)) == 0 and fog(torch.full((4,), .5)) == 1
    assert fog(torch.tensor([[.2, 1.], [0., 1.]])) == pytest.approx(1/3)

def test_meaning():
    def said(thing, colour, pattern=None, second=None): return dict(thing=thing, colour=colour, pattern=pattern, second=second)
    assert meaning('A blue Car, low front view') == meaning('a blue automobile') == said('car', 'blue') and meaning('a photo of an orange ring') == said('ring', 'orange')
    assert meaning('a crimson stripy cup') == meaning('a striped red mug') == said('mug', 'red', 'striped')
    assert meaning('a grey kitten next to the blue chair, back view') == said(('cat', 'next to', 'chair'), 'gray', None, 'blue')
    for prompt in ('', ',', 'a mug', 'red', 'a red mug and a red car', 'a red and blue mug', 'a red dragon', 'a red mug with wings', 'a mug on a red table', 'a red mug on', 'on a red mug',
                   'a red striped mug on a blue table', 'a red mug on a blue table on a red cat', 'a red mug, upside down', 'mug red', 'a red red mug', 'a striped spotted red mug'):
        with pytest.raises(UserError, match='one object and one colour'): meaning(prompt)

def test_plain():
    assert plain('a crimson stripy cup, low front view') == 'a mug' and plain('a red airplane') == 'an airplane'
    assert plain('a red mug on an orange desk') == 'a mug on a table'

def test_truth_gets_full_marks_and_another_toy_does_not():
    found, placement = marks(true_scene('a blue car'), size=32)
    assert found['iou'] > .9 and found['chamfer'] < .025 and found['colour'] < 3 and found['floaters'] == 0 and found['fog'] < .35 and 'faces' not in found
    assert abs((placement.yaw + 180) % 360 - 180) < 3 and abs(placement.scale - 1) < .05
    wrong, _ = marks(Scene(TrueField('a green tree'), 'a blue car', Settings(), 0), size=32)
    assert wrong['iou'] < .5 and wrong['chamfer'] > .08 and wrong['colour'] > 20
    with pytest.raises(UserError, match='dragon'): marks(Scene(TrueField('a blue car'), 'a blue dragon', Settings(), 0))

def test_pairs_and_patterns_have_a_truth():
    found, _ = marks(true_scene('a red mug on a blue table'), size=16)
    assert found['iou'] > .85 and found['colour'] < 3
    plain_ball, striped = true_mesh('ball', 'red'), true_mesh('ball', 'red', 'striped')
    assert torch.allclose(plain_ball.vertices, striped.vertices) and colour_accuracy(striped, striped, Placement(0., 1., torch.zeros(3))) == 0
    assert (striped.colours - plain_ball.colours).abs().max() > .3

def test_what_the_judge_sees():
    colour, white = true_pictures('a red ball', 2, 24), true_pictures('a red ball', 2, 24, textureless=True)
    assert colour.shape == white.shape == (2, 3, 24, 24) and 0 <= white.min() and white.max() <= 1
    assert (white[:, 0] - white[:, 1]).abs().max() < 1e-5 and torch.allclose(white[:, :, 0, 0], torch.tensor(.25), atol=1e-4) and white.max() > .8
    assert colour[:, 0, 12, 12].min() > 3*colour[:, 2, 12, 12].max() and torch.allclose(colour[:, :, 0, 0], torch.tensor(.6), atol=1e-4)

def test_a_white_object_needs_light():
    cameras = orbit(torch.zeros(1), 30., 2.5, 1.3)
    with pytest.raises(UserError, match='light'): look(true_scene('a red ball'), cameras, 8, textureless=True)
    assert torch.equal(look(true_scene('a red ball'), cameras, 8, 32, lamp_by(cameras), textureless=True).rgb, look(true_scene('a blue ball'), cameras, 8, 32, lamp_by(cameras), textureless=True).rgb)

class Colours:
    "A judge that knows red, green and blue, and sees sides as shades"
    def pictures(self, x): return torch.nn.functional.normalize(x.mean((2, 3)), dim=-1)
    def sentences(self, said): return torch.stack([torch.tensor([1. if w in s.split() else 0. for w in ('red', 'green', 'blue')]) for s in said])

def test_hits():
    red = torch.tensor([1., .1, .1])[:, None, None].expand(2, 3, 4, 4)
    pictures = torch.cat([red, red.flip(1)])
    assert hits(Colours(), pictures, 1, ['a blue mug', 'a red mug', 'a green mug']).tolist() == [True, True, False, False]
    assert hits(Colours(), pictures, 2, ['a blue mug', 'a red mug', 'a red mug', 'a blue mug']).tolist() == [True, True, False, False]    # the same caption twice is one

def test_faces_and_facing():
    around = ['front', 'front', 'side', 'back', 'back', 'back', 'side', 'front']
    azimuths = torch.arange(8)*45.
    for turn in range(8):
        turned = around[turn:] + around[:turn]
        assert faces(turned) == 1 and facing(turned, azimuths) == 1
    janus = ['front', 'front', 'side', 'front', 'front', 'front', 'side', 'front']
    assert faces(janus) == 2 and facing(janus, azimuths) == 5/8 and faces(['back']*8) == 0 and faces(['front']*8) == 1
    assert facing(['side']*8, azimuths) == 2/8

class Sides:
    "A judge that reads the side from the brightness of the picture"
    def pictures(self, x): return torch.eye(8)[(x.mean((1, 2, 3))*8).long().clamp(max=7)]
    def sentences(self, said):
        from dreamfusion_nb.cameras import SIDES
        return torch.stack([torch.eye(8)[SIDES.index(s.split(', high ')[1].removesuffix(' view'))] for s in said])

def test_seen_sides():
    pictures = ((torch.arange(8) + .5)/8)[:, None, None, None].expand(8, 3, 4, 4)
    assert seen_sides(Sides(), pictures, 'a red mug') == ['front', 'front', 'side', 'back', 'back', 'back', 'side', 'front']

def test_no_sides_where_the_truth_has_none():
    assert side_marks(true_scene('a red ball'), Sides()) == {'faces': None, 'facing': None}

@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    "A small CLIP with random weights, saved as transformers saves it"
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
    folder = tmp_path_factory.mktemp('clip')
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    letters = 'abcdefghijklmnopqrstuvwxyz'
    vocabulary = {word: i for i, word in enumerate(['<|startoftext|>', '<|endoftext|>', *letters, *(c + '</w>' for c in letters)])}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=dict(small, vocab_size=len(vocabulary), eos_token_id=1, bos_token_id=0, pad_token_id=1), vision_config=dict(small, image_size=32, patch_size=8), projection_dim=12))
    model.half().save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32}), CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return folder

def test_any_clip_is_a_judge(clip):
    judge, x = load_judge(clip), torch.rand(3, 3, 64, 64, generator=seeded(0))
    seen, read = judge.pictures(x), judge.sentences(['a red mug', 'a blue mug', 'a red mug'])
    assert seen.shape == read.shape == (3, 12) and torch.allclose(seen.norm(dim=-1), torch.ones(3), atol=1e-5) and torch.equal(read[0], read[2]) and not torch.equal(read[0], read[1])
    assert not seen.requires_grad and hits(judge, x, 0, ['a red mug', 'a blue mug']).shape == (3,)

def test_pictures_are_prepared_as_the_processor_does(clip):
    from PIL import Image
    from transformers import CLIPImageProcessor
    judge, smooth = load_judge(clip), torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=seeded(0)), (64, 64), mode='bilinear')
    picture = Image.fromarray((smooth[0].movedim(0, -1)*255).round().byte().numpy())
    pixels = CLIPImageProcessor(size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32})(picture, return_tensors='pt').pixel_values
    with torch.no_grad(): theirs = judge.model.visual_projection(judge.model.vision_model(pixel_values=pixels).pooler_output)
    assert (torch.nn.functional.normalize(theirs, dim=-1) - judge.pictures(smooth)).abs().max() < 5e-3

def test_folders_that_are_no_judge(clip, tmp_path):
    with pytest.raises(UserError, match='no judge'): load_judge(tmp_path)
    with pytest.raises(UserError, match='no judge'): load_judge('nothing-here')
    (tmp_path/'config.json').write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert'"): load_judge(tmp_path)
    for file in clip.iterdir(): (tmp_path/file.name).write_bytes(file.read_bytes())
    (tmp_path/'model.safetensors').write_bytes(b'nonsense')
    with pytest.raises(UserError, match='cannot be read'): load_judge(tmp_path)

def test_an_installation_without_a_judge(tmp_path, monkeypatch):
    import dreamfusion_nb
    monkeypatch.setattr(dreamfusion_nb, '__file__', str(tmp_path/'__init__.py'))
    with pytest.raises(UserError, match='install'): load_judge()

def test_a_hub_that_says_no(monkeypatch):
    from transformers import AutoTokenizer
    def refuse(*args, **kw): raise OSError('You are trying to access a gated repo.')
    monkeypatch.setattr(AutoTokenizer, 'from_pretrained', refuse)
    with pytest.raises(UserError, match='ask for access'): load_judge('someone/gated-clip')
